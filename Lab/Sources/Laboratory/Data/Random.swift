// SPDX-License-Identifier: Apache-2.0
// Random.swift - SplitMix64: the numbers of a batch depend on seed, step and slice alone, so that a run can go on anywhere.

public struct Random: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(_ seed: UInt64, _ parts: Int...) {
        state = seed
        for part in parts { state = Self.mix(state &+ 0x9e37_79b9_7f4a_7c15) ^ UInt64(bitPattern: Int64(part)) }
        state = Self.mix(state)
    }

    private static func mix(_ word: UInt64) -> UInt64 {
        var word = word
        word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
        word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
        return word ^ (word >> 31)
    }

    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        return Self.mix(state)
    }

    /// From 0 to below 1.
    mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }

    /// From 0 to below the bound, which is small beside 2^64.
    mutating func below(_ bound: Int) -> Int { Int(uniform() * Double(bound)) }

    /// Standard normal, by Marsaglia's polar method.
    mutating func normal() -> Double {
        while true {
            let (u, v) = (2 * uniform() - 1, 2 * uniform() - 1)
            let s = u * u + v * v
            if s > 0, s < 1 { return u * (-2 * naturalLogarithm(s) / s).squareRoot() }
        }
    }
}
