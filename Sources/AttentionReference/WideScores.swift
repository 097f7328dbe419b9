// SPDX-License-Identifier: Apache-2.0
// WideScores.swift - biased scores beyond the range of Float: the definition of their bits.

/// A finite bias may be as large as Float goes, and is larger in base 2. Where there is a bias, scores t are kept as
///
///     W(t) = t where |t| <= 2^127,    sign(t) (2^127 + (|t| - 2^127) / 8) beyond
///
/// which is finite for all sums of two floats times log2(e), and ascends with t.
enum WideScores {
    private static let bound: Float = 0x1p127

    /// W(bias * unit + t); infinite and NaN where t or the bias is.
    static func biased(_ t: Float, bias: Float, unit: Float) -> Float {
        let sum = fma(bias, unit, t)
        guard abs(sum) > bound, bias.isFinite, t.isFinite else { return sum }
        return folded(quarter: fma(bias, unit * 0.25, t * 0.25))
    }

    /// W(x), of a sink.
    static func sink(_ x: Float) -> Float { abs(x) > bound && x.isFinite ? folded(quarter: x * 0.25) : x }

    /// t ln(2) from W(t), where that is beyond 2^127 and x a number; otherwise x. At most Float's largest number, which rounding may pass.
    static func logSumExp(reference: Float, _ x: Float) -> Float {
        guard abs(reference) > bound, reference.isFinite, !x.isNaN else { return x }
        let quarter = 0x1p125 + (abs(reference) - bound) * 2
        let magnitude = min(quarter * (4 * ln2Float), Float.greatestFiniteMagnitude)
        return reference < 0 ? -magnitude : magnitude
    }

    /// W(t) beyond 2^127, from t / 4.
    private static func folded(quarter: Float) -> Float {
        let folded = bound + (abs(quarter) - 0x1p125) * 0.5
        return quarter < 0 ? -folded : folded
    }
}
