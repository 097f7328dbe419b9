// SPDX-License-Identifier: Apache-2.0
// AttentionReference.swift - placeholder
