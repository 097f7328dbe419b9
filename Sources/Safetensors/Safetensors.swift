// SPDX-License-Identifier: Apache-2.0
// Safetensors.swift - placeholder
