// SPDX-License-Identifier: Apache-2.0
// NormGradients.swift - from the gradient of a normalised row to that of the row, of the gain and of the bias.

extension ReferenceNorm {
    /// The gradient of a row, operation by operation as every kernel set computes it. With z = (x - mean) * factor as forward
    /// computes it, and h = gradient * gain:
    ///
    ///     dx[c] = factor * (h[c] - mean(h) - z[c] mean(h z))        mean(h) for layer alone
    ///
    /// Edge cases: where the gradient is 0 in all channels so is dx, and nothing is read of the row. A dx of 0 is +0.
    public func gradient(_ row: [Float], of gradient: [Float]) -> [Float] {
        if gradient.allSatisfy({ $0 == 0 }) { return [Float](repeating: 0, count: row.count) }
        let count = Float(row.count)
        let (z, factor) = standardised(row)
        let h = gain.map { gain in gradient.indices.map { gradient[$0] * gain[$0] } } ?? gradient
        var (sum, products) = (LaneSums(), LaneSums())
        for c in h.indices {
            sum.add(h[c], at: c)
            products.add(h[c], times: z[c], at: c)
        }
        let mean = kind == .layer ? sum.total / count : 0
        let slope = products.total / count
        return h.indices.map { c in (fma(-z[c], slope, h[c]) - mean) * factor + 0 }
    }

    /// The gradients of gain and bias, over the rows of a sequence of one head:
    ///
    ///     dgain[c] = sum over rows of gradient[c] z[c]        dbias[c] = sum over rows of gradient[c]
    ///
    /// Each block of 64 rows is summed from +0, rows ascending, dgain by fma and dbias by additions; blocks are added in
    /// ascending order to what is there. Rows whose gradient is 0 in all channels are left out.
    ///
    /// - Parameter sums: What is added to, -0 counting as +0; nil is zeros. Sequences come head by head, and batch item by batch item.
    public func parameterGradients(
        _ rows: [[Float]], of gradients: [[Float]], addedTo sums: (gain: [Float], bias: [Float])? = nil
    ) -> (gain: [Float], bias: [Float]) {
        let zeros = [Float](repeating: 0, count: rows.first?.count ?? sums?.gain.count ?? 0)
        var sums = sums ?? (zeros, zeros)
        for first in stride(from: 0, to: rows.count, by: rowBlock) {
            var block = (gain: zeros, bias: zeros)
            for i in first..<min(first + rowBlock, rows.count) where !gradients[i].allSatisfy({ $0 == 0 }) {
                let z = standardised(rows[i]).row
                for c in zeros.indices {
                    block.gain[c] = fma(gradients[i][c], z[c], block.gain[c])
                    block.bias[c] += gradients[i][c]
                }
            }
            for c in zeros.indices {
                sums.gain[c] = sums.gain[c] + 0 + block.gain[c]
                sums.bias[c] = sums.bias[c] + 0 + block.bias[c]
            }
        }
        return sums
    }

    /// The gradient of a row in Double, and what the row adds to those of gain and bias: what is true.
    public func oracleGradient(
        _ row: [Double], of gradient: [Double]
    ) -> (row: [Double], gain: [Double], bias: [Double]) {
        let count = Double(row.count)
        let mean = kind == .layer ? row.reduce(0, +) / count : 0
        let variance = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / count
        let factor = 1 / (variance + Double(epsilon)).squareRoot()
        let z = row.map { ($0 - mean) * factor }
        let h = gradient.indices.map { gradient[$0] * Double(gain?[$0] ?? 1) }
        let slope = zip(h, z).reduce(0) { $0 + $1.0 * $1.1 } / count
        let meanGradient = kind == .layer ? h.reduce(0, +) / count : 0
        return (
            row.indices.map { factor * (h[$0] - meanGradient - z[$0] * slope) },
            zip(gradient, z).map { $0 * $1 }, gradient
        )
    }
}

/// Rows of which the gradients of gain and bias are summed from +0.
private let rowBlock = 64
