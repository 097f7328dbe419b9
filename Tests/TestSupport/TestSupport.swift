// SPDX-License-Identifier: Apache-2.0
// TestSupport.swift - placeholder
