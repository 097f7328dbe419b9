// SPDX-License-Identifier: Apache-2.0
// ALiBi.swift - attention with linear biases: scores that fall with distance.

/// Linear biases: `x[i][j] = scale q[i].k[j] - m[h] |i + keys - queries - j|`, one slope m per query head.
///
/// Under key lengths a row stands where ``AttentionMask/Padding`` says.
///
/// The whole distance counts. The shortcut `+ m[h] j`, which many implementations take under a causal mask, shifts a row's
/// scores by a constant; softmax does not notice, every sink does, and so the shortcut is not offered.
///
/// *Source*: Press et al., "Train Short, Test Long", 2021 (arXiv 2108.12409).
public struct ALiBi: Sendable, Hashable {
    /// One slope per query head; nil: ``slopes(queryHeads:)``.
    let given: [Float]?

    /// The published slopes for any number of heads.
    public static let standard = ALiBi(given: nil)

    /// One slope per query head, of magnitudes up to 2^80: times any distance they stay within the range of Float.
    public static func slopes(_ slopes: [Float]) -> ALiBi { ALiBi(given: slopes) }

    /// The published slopes: `2^(-8 (h + 1) / H)` for H heads, where H is a power of two.
    ///
    /// For other H, with the largest power of two H0 below: heads below H0 have `2^(-8 (h + 1) / H0)`, the others every
    /// second slope of twice as many heads, `2^(-4 (2 (h - H0) + 1) / H0)`.
    ///
    /// - Parameter queryHeads: H, 0...2^20.
    /// - Throws: ``AttentionError`` of kind `dimension`.
    public static func slopes(queryHeads: Int) throws(AttentionError) -> [Float] {
        try AttentionShape.check(queryHeads: queryHeads)
        return inFloatMode { published(queryHeads: queryHeads) }
    }

    private static func published(queryHeads: Int) -> [Float] {
        if queryHeads == 0 { return [] }
        let power = 1 << (Int.bitWidth - 1 - queryHeads.leadingZeroBitCount)
        // 2^(-8 / power) by square roots, which round the same everywhere.
        var ratio = 0x1p-8
        for _ in 0..<power.trailingZeroBitCount { ratio = ratio.squareRoot() }
        let between = ratio.squareRoot()
        var (slope, later) = (1.0, between)
        return (0..<queryHeads).map { head in
            if head < power {
                slope *= ratio
                return Float(slope)
            }
            if head > power { later *= ratio }
            return Float(later)
        }
    }

    /// The slopes, checked.
    func checkedSlopes(queryHeads: Int) throws(AttentionError) -> [Float] {
        guard let given else { return try Self.slopes(queryHeads: queryHeads) }
        guard given.count == queryHeads else {
            throw AttentionError(
                .alibi, "alibi.slopes", expected: "\(queryHeads) slopes, one per query head", found: "\(given.count)")
        }
        for (head, slope) in given.enumerated() where !(abs(slope) <= 0x1p80) {
            throw AttentionError(
                .alibi, "alibi.slopes[\(head)]", expected: "a number of magnitude up to 2^80", found: "\(slope)")
        }
        return given
    }
}
