// SPDX-License-Identifier: Apache-2.0
// SafetensorsTests.swift - placeholder
