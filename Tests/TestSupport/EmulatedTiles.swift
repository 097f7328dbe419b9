// SPDX-License-Identifier: Apache-2.0
// EmulatedTiles.swift - the kernels of x86_64_amx on any machine.

import EmulatedTiles
import QuietAttention

extension KernelSet {
    /// The kernels of `x86_64_amx`, their tile instructions in plain C.
    public static let emulatedTiles = KernelSet(functions: qattn_emulated_kernels())
}
