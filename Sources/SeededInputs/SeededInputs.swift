// SPDX-License-Identifier: Apache-2.0
// SeededInputs.swift - placeholder
