// SPDX-License-Identifier: Apache-2.0
// main.swift - placeholder
