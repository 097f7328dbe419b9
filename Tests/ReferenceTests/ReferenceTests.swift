// SPDX-License-Identifier: Apache-2.0
// ReferenceTests.swift - placeholder
