// SPDX-License-Identifier: Apache-2.0
// SeededGenerator.swift - random numbers with the same bits on every platform: integers and one float multiplication.
//
//     word[i]   = mix(start + (i + 1) * increment),   start = seed + mix(stream)                      (SplitMix64)
//     normal[i] = (sum of the eight 16-bit parts of word[2i] and word[2i + 1] - mean) / deviation
//
// A word depends on its index alone, so a generator can be moved to any place without running through those before it.
//
// Steele, Lea, Flood: Fast splittable pseudorandom number generators. OOPSLA 2014. doi:10.1145/2660193.2660195

/// A generator that gives the same numbers for the same seed and stream on every platform and in every version.
///
/// Streams of one seed are independent of each other: one for the queries, one for the keys and so on.
/// Its results are not secret: it is no source of randomness for cryptography.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    /// 2^64 divided by the golden ratio, to the nearest odd number.
    private static let increment: UInt64 = 0x9e37_79b9_7f4a_7c15

    /// Stream 0 is SplitMix64 of `seed` itself: mix(0) = 0.
    public init(seed: UInt64, stream: UInt64 = 0) {
        state = seed &+ Self.mix(stream)
    }

    private static func mix(_ word: UInt64) -> UInt64 {
        var word = word
        word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
        word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
        return word ^ (word >> 31)
    }

    // MARK: - Integers

    /// Returns 64 random bits.
    public mutating func next() -> UInt64 {
        state &+= Self.increment
        return Self.mix(state)
    }

    /// Leaves out the next `words` results of ``next()``.
    public mutating func skip(words: Int) {
        state &+= Self.increment &* UInt64(truncatingIfNeeded: words)
    }

    /// Returns an integer from 0 to `bound` - 1, each as likely as any other. `bound` is at least 1.
    public mutating func next(below bound: Int) -> Int {
        precondition(bound > 0, "no integers below \(bound)")
        let bound = UInt64(bound)
        // Lemire's method: the high half of word * bound. Of 2^64 words, 2^64 mod bound are refused to be fair.
        let refused = (0 &- bound) % bound
        while true {
            let product = next().multipliedFullWidth(by: bound)
            if product.low >= refused { return Int(product.high) }
        }
    }

    /// Returns an integer of `range`, each as likely as any other. The range has fewer than `Int.max` integers.
    public mutating func next(in range: ClosedRange<Int>) -> Int {
        range.lowerBound + next(below: range.upperBound - range.lowerBound + 1)
    }

    /// Returns true in `times` of `outOf` cases.
    public mutating func chance(_ times: Int, outOf: Int) -> Bool {
        next(below: outOf) < times
    }

    /// Returns one of `elements`, which is not empty.
    public mutating func element<Elements: RandomAccessCollection>(of elements: Elements) -> Elements.Element {
        elements[elements.index(elements.startIndex, offsetBy: next(below: elements.count))]
    }

    // MARK: - Floats

    /// Words that one normal number takes.
    public static let wordsPerNormal = 2

    /// Returns a multiple of 2^-24 from 0 to 1, without 1.
    public mutating func nextUniform() -> Float {
        Float(next() >> 40) * 0x1p-24
    }

    /// Returns a number close to normally distributed: mean 0, variance 1, symmetric, at most 4.9 in magnitude.
    ///
    /// It is a sum of eight uniform numbers, whose excess kurtosis is -0.15. The sum is an integer below 2^19, so it and
    /// its distance from the mean are exact in `Float`, and the one rounding is that of the multiplication.
    public mutating func nextNormal() -> Float {
        // The parts are added in two lanes of 32 bits at a time: a lane holds up to four of them.
        let lanes: UInt64 = 0x0000_ffff_0000_ffff
        let first = next()
        let second = next()
        let sums = (first & lanes) &+ ((first >> 16) & lanes) &+ (second & lanes) &+ ((second >> 16) & lanes)
        let sum = Int64(truncatingIfNeeded: (sums & 0xffff_ffff) &+ (sums >> 32))
        // The mean of eight numbers from 0 to 65535.
        let mean: Int64 = 262_140
        // 1 / sqrt(8 * (65536^2 - 1) / 12)
        let inverseDeviation: Float = 0x1.3988e2p-16
        return Float(sum &- mean) * inverseDeviation
    }

    /// Fills `values` with ``nextNormal()``.
    public mutating func fillNormal(_ values: UnsafeMutableBufferPointer<Float>) {
        for index in values.indices { values[index] = nextNormal() }
    }

    /// Returns `count` results of ``nextNormal()``.
    public mutating func normals(_ count: Int) -> [Float] {
        var values = [Float](repeating: 0, count: count)
        values.withUnsafeMutableBufferPointer { fillNormal($0) }
        return values
    }
}
