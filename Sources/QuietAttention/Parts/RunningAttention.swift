// SPDX-License-Identifier: Apache-2.0
// RunningAttention.swift - what rows know of the keys taken in so far.

import CKernels

/// The states of the rows of a ``PartwiseAttention``, over the keys up to ``keys``: of each row, with scores t in base 2,
///
///     m = max_j t[j],    l = sum_j 2^(t[j] - m),    o = sum_j 2^(t[j] - m) v[j]
///
/// One that took in the keys from 0 on may go on in another process: ``states`` are `[H, L]` states of
/// ``stateFloats(valueDimension:)`` floats: m, 1 if the row has seen a key and 0 if not, 14 floats without meaning, l in 16 parts,
/// and o, which is padded to a multiple of 16. All 0 is the state of a row that has seen none.
///
/// Not for several calls at once.
public final class RunningAttention {
    /// The end of the keys taken in.
    public internal(set) var keys = 0
    /// The states. Written to, they are those of another process that took in the keys up to ``keys``.
    public let states: UnsafeMutableBufferPointer<Float>

    init(rows: Int, valueDimension: Int) throws(AttentionError) {
        let count = try CheckedMemory.product("states", rows, Self.stateFloats(valueDimension: valueDimension))
        let bytes = try CheckedMemory.product("states", max(count, 1), MemoryLayout<Float>.stride)
        try CheckedMemory.check("states", count: count, of: Float.self)
        guard let memory = AlignedMemory.allocate(bytes) else {
            throw AttentionError(.memory, "states", expected: "\(bytes) bytes of memory", found: "none")
        }
        states = UnsafeMutableBufferPointer(start: memory.bindMemory(to: Float.self, capacity: count), count: count)
        states.initialize(repeating: 0)
    }

    deinit { AlignedMemory.free(UnsafeMutableRawPointer(states.baseAddress!)) }

    /// Floats of a row's state.
    ///
    /// - Parameter valueDimension: E.
    public static func stateFloats(valueDimension: Int) -> Int { qattn_state_floats(valueDimension) }

    /// Begins anew, from no keys.
    public func reset() {
        keys = 0
        states.update(repeating: 0)
    }

    /// Takes over that `states` hold what was computed elsewhere over the keys from 0 to `keys`.
    public func resume(at keys: Int) { self.keys = keys }
}
