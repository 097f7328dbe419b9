// SPDX-License-Identifier: Apache-2.0
// InputFamily.swift - queries, keys and values drawn so that they break things.

import SeededInputs

/// A way of filling queries, keys and values. Channel 0 is the lever: with `q[0] > 0` a key's channel 0 moves its score.
public enum InputFamily: String, CaseIterable, Sendable, CustomStringConvertible {
    /// Zero mean, unit variance.
    case unitNormal = "unit normal"
    /// Products are subnormal or zero: all scores are nearly equal.
    case tiny
    /// e^score overflows unless the maximum is subtracted; most weights underflow.
    case wide
    /// Scores near 2^80, values near 2^100.
    case huge
    /// Every key is the same: equal scores to the bit.
    case equalScores = "equal scores"
    /// One key outweighs all others together.
    case oneDominant = "one dominant"
    /// Scores rise with the key's index: every block rescales, every chunk outweighs the one before it.
    case ascending
    /// Scores fall with the key's index: later blocks and chunks fade away.
    case descending
    /// A third of the scores, and all of the first 70, are -inf: weight zero, but visible.
    case minusInfinity = "-inf scores"
    /// NaN in one query, one key and one value.
    case notANumber = "NaN"
    /// +inf in one key and one query, both infinities in values.
    case infinity = "infinities"
    /// Subnormal values, and queries so small that the scaled query is subnormal.
    case subnormal
    /// Zeros of both signs.
    case zeros

    public var description: String { rawValue }

    /// The families whose results are all finite.
    public static let finite = allCases.filter { $0 != .notANumber && $0 != .infinity }
}

extension InputFamily {
    /// Fills `queries` [heads][queryCount][headDimension], `keys` [heads][keyCount][headDimension] and `values`
    /// [heads][keyCount][valueDimension]: standard normal numbers come in, the family's come out.
    func shape(
        queries: inout [Float], keys: inout [Float], values: inout [Float],
        queryCount: Int, keyCount: Int, headDimension: Int, valueDimension: Int, using generator: inout SeededGenerator
    ) {
        /// Scores move by `step` per unit of a key's channel 0 when the scale is the default one.
        let lever = Float(headDimension).squareRoot()
        func setChannel0(ofKeys value: (Int) -> Float) {
            for row in 0..<keys.count / headDimension { keys[row * headDimension] = value(row % keyCount) }
            for row in 0..<queries.count / headDimension { queries[row * headDimension] = 1 }
        }
        func scale(_ q: Float, _ k: Float, _ v: Float) {
            for index in queries.indices { queries[index] *= q }
            for index in keys.indices { keys[index] *= k }
            for index in values.indices { values[index] *= v }
        }
        switch self {
        case .unitNormal: break
        case .tiny: scale(0x1p-70, 0x1p-66, 0x1p-60)
        case .wide: scale(12, 12, 1)
        case .huge: scale(0x1p40, 0x1p40, 0x1p100)
        case .equalScores:
            for index in keys.indices { keys[index] = keys[index % headDimension] }
        case .oneDominant:
            let winner = keyCount * 3 / 4
            setChannel0 { $0 == winner ? 60 * lever : 0 }
        case .ascending: setChannel0 { 0.04 * lever * Float($0) }
        case .descending: setChannel0 { -0.04 * lever * Float($0) }
        case .minusInfinity:
            let excluded = (0..<max(1, keyCount)).map { $0 < 70 && $0 < keyCount / 2 || generator.next() % 3 == 0 }
            setChannel0 { excluded[$0] ? -.infinity : 1 }
        case .notANumber:
            put(.nan, in: &queries, row: queryCount / 3, rows: queryCount, width: headDimension)
            put(.nan, in: &keys, row: keyCount * 2 / 3, rows: keyCount, width: headDimension)
            put(.nan, in: &values, row: keyCount / 2, rows: keyCount, width: valueDimension)
        case .infinity:
            put(.infinity, in: &queries, row: queryCount / 4, rows: queryCount, width: headDimension)
            put(.infinity, in: &keys, row: keyCount * 3 / 4, rows: keyCount, width: headDimension)
            put(.infinity, in: &values, row: keyCount / 2, rows: keyCount, width: valueDimension)
            put(-.infinity, in: &values, row: keyCount / 3, rows: keyCount, width: valueDimension)
        case .subnormal: scale(0x1p-127, 0x1p126, 0x1p-135)
        case .zeros:
            for index in queries.indices where index % 3 == 0 { queries[index] = index % 2 == 0 ? 0 : -0.0 }
            for index in keys.indices where index % 5 < 3 { keys[index] = index % 2 == 0 ? 0 : -0.0 }
            for index in values.indices where index % 7 < 5 { values[index] = index % 2 == 0 ? 0 : -0.0 }
        }
    }

    /// Puts `value` at the last channel of one row of the first head only, so that the other heads stay clean.
    private func put(_ value: Float, in tensor: inout [Float], row: Int, rows: Int, width: Int) {
        if row < rows, !tensor.isEmpty { tensor[row * width + width - 1] = value }
    }
}
