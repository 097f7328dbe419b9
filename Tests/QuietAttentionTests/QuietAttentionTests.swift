// SPDX-License-Identifier: Apache-2.0
// QuietAttentionTests.swift - placeholder
