// SPDX-License-Identifier: Apache-2.0
// PropertyTests.swift - placeholder
