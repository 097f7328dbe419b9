// SPDX-License-Identifier: Apache-2.0
// QuietAttention.swift - placeholder
