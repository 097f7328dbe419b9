// SPDX-License-Identifier: Apache-2.0
// KernelTests.swift - placeholder
