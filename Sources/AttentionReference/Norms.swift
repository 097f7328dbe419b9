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
        let count = Float(row.count)
        let mean = kind == .layer ? laneSum(row) { $0 + $1 } / count : 0
        let variance = laneSum(row.map { $0 - mean }) { fma($1, $1, $0) } / count
        let factor = 1 / (variance + epsilon).squareRoot()
        return row.indices.map { d in
            var y = (row[d] - mean) * factor
            if let gain { y = y * gain[d] }
            if let bias { y = y + bias[d] }
            return y
        }
    }

    /// Channel d joins lane d mod 16, which starts from 0; then the lanes are added in a tree: r and r + 8, then r and
    /// r + 4, r + 2, r + 1.
    private func laneSum(_ row: [Float], _ join: (Float, Float) -> Float) -> Float {
        var lanes = [Float](repeating: 0, count: laneCount)
        for (d, x) in row.enumerated() { lanes[d % laneCount] = join(lanes[d % laneCount], x) }
        for half in [8, 4, 2, 1] {
            for lane in 0..<half { lanes[lane] = lanes[lane] + lanes[lane + half] }
        }
        return lanes[0]
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
