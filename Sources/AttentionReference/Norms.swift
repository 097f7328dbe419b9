// SPDX-License-Identifier: Apache-2.0
// Norms.swift - RMSNorm and LayerNorm of a row.

/// A normalisation of rows:
///
///     rms:    x / sqrt(mean(x^2) + epsilon) * gain + bias
///     layer:  (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gain + bias
public struct ReferenceNorm: Sendable {
    public enum Kind: Sendable, CaseIterable { case rms, layer }
    public var kind: Kind
    public var epsilon: Float
    /// As long as a row; nil: 1.
    public var gain: [Float]?
    /// As long as a row; nil: 0.
    public var bias: [Float]?

    public init(_ kind: Kind, epsilon: Float, gain: [Float]? = nil, bias: [Float]? = nil) {
        self.kind = kind
        self.epsilon = epsilon
        self.gain = gain
        self.bias = bias
    }

    /// The row normalised, operation by operation as every kernel set computes it.
    public func normalised(_ row: [Float]) -> [Float] {
        let z = standardised(row).row
        return row.indices.map { d in
            var y = z[d]
            if let gain { y = y * gain[d] }
            if let bias { y = y + bias[d] }
            return y
        }
    }

    /// The row before gain and bias, (x - mean) * factor, and the factor.
    func standardised(_ row: [Float]) -> (row: [Float], factor: Float) {
        var moments = moments(row, scale: 1)
        // Squares of elements near 2^64 overflow, those of elements near 2^-64 lose bits. Times a power of two is exact.
        if moments.variance < 0x1p-80 {
            moments = self.moments(row, scale: 0x1p90)
        } else if !(moments.variance < .infinity) {
            moments = self.moments(row, scale: 0x1p-80)
        }
        let factor = 1 / moments.variance.squareRoot()
        return (row.map { ($0 * moments.scale - moments.mean) * factor }, factor * moments.scale)
    }

    /// Mean and variance, epsilon included, of the row times a power of two.
    private func moments(_ row: [Float], scale: Float) -> (scale: Float, mean: Float, variance: Float) {
        let count = Float(row.count)
        let row = row.map { $0 * scale }
        let mean = kind == .layer ? sum(of: row) / count : 0
        let variance = sumOfSquares(of: row.map { $0 - mean }) / count
        return (scale, mean, variance + epsilon * scale * scale)
    }

    private func sum(of row: [Float]) -> Float {
        var sums = LaneSums()
        for (d, x) in row.enumerated() { sums.add(x, at: d) }
        return sums.total
    }

    private func sumOfSquares(of row: [Float]) -> Float {
        var sums = LaneSums()
        for (d, x) in row.enumerated() { sums.add(x, times: x, at: d) }
        return sums.total
    }

    /// The row normalised in Double: what is true.
    public func oracle(_ row: [Double]) -> [Double] {
        let count = Double(row.count)
        let mean = kind == .layer ? row.reduce(0, +) / count : 0
        let variance = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / count
        return row.indices.map { d in
            (row[d] - mean) / (variance + Double(epsilon)).squareRoot() * Double(gain?[d] ?? 1) + Double(bias?[d] ?? 0)
        }
    }
}
