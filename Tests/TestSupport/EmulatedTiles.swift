// SPDX-License-Identifier: Apache-2.0
// EmulatedTiles.swift - the kernels of x86_64_amx and of x86_64_v4_bf16 on any machine.

import EmulatedTiles
import QuietAttention

extension KernelSet {
    /// The kernels of `x86_64_amx`, their tile instructions in plain C.
    public static let emulatedTiles = KernelSet(functions: qattn_emulated_tile_kernels())

    /// The kernels of `x86_64_v4_bf16`, their dots in plain C.
    public static let emulatedDots = KernelSet(functions: qattn_emulated_dot_kernels())

    /// Both, for tests of what they multiply by these instructions.
    public static let emulated = [emulatedTiles, emulatedDots]
}
