// SPDX-License-Identifier: Apache-2.0
// PositionGradients.swift - from the gradient of a turned row to that of the row.

extension ReferencePositions {
    /// The gradient of a row at a position, operation by operation as every kernel set computes it. With
    ///
    ///     T (g1, g2) = (g1 cos + g2 sin, g2 cos - g1 sin)           R with the sine negated: turned back, times the factor
    ///
    /// | form | query pair | key pair, m = (x1 + x2) / 2 |
    /// |---|---|---|
    /// | rotary | T (g1, g2) | T (g1, g2) |
    /// | slack | R (x1, x2) times (g1, g2), by channels, plus T (x1 g1, x2 g2) | both channels half of T's sum, or 0 where m <= 0 |
    /// | strict | 2 (x1, x2) times the first of T (g1, g2) | both channels half of T's first, or 0 where m <= 0 |
    ///
    /// Edge cases: where the gradient is 0 in all channels so is the row's, and nothing is read of the row. A gradient of 0 is
    /// +0.
    ///
    /// - Parameter row: What was turned.
    public func gradient(_ row: [Float], of gradient: [Float], position: Int, _ side: Side) -> [Float] {
        self.gradient(row, of: gradient, side) { cosineAndSine(position: position, pair: $0, side) }
    }

    /// The same by cosines and sines given pair by pair.
    public func gradient(
        _ row: [Float], of gradient: [Float], _ side: Side, by table: (Int) -> (cosine: Float, sine: Float)
    ) -> [Float] {
        if gradient.allSatisfy({ $0 == 0 }) { return [Float](repeating: 0, count: row.count) }
        var result = gradient
        for j in 0..<dimensions / 2 {
            let (first, second) = channels(ofPair: j)
            let (c, s) = table(j)
            (result[first], result[second]) = pairGradient(
                (row[first], row[second]), (gradient[first], gradient[second]), c, s, side)
        }
        return result.map { $0 + 0 }
    }

    private func pairGradient(
        _ x: (Float, Float), _ g: (Float, Float), _ c: Float, _ s: Float, _ side: Side
    ) -> (Float, Float) {
        func rotated(_ x: (Float, Float), _ s: Float) -> (Float, Float) {
            (fma(x.0, c, -(x.1 * s)), fma(x.1, c, x.0 * s))
        }
        func half(_ gradient: Float) -> (Float, Float) {
            let mean = (x.0 + x.1) * 0.5
            let result = mean <= 0 ? 0 : gradient * 0.5
            return (result, result)
        }
        let back = rotated(g, -s)
        switch (form, side) {
        case (.rotary, _): return back
        case (.slack, .queries):
            let y = rotated(x, s)
            let t = rotated((x.0 * g.0, x.1 * g.1), -s)
            return (fma(y.0, g.0, t.0), fma(y.1, g.1, t.1))
        case (.slack, .keys): return half(back.0 + back.1)
        case (.strict, .queries): return ((x.0 + x.0) * back.0, (x.1 + x.1) * back.0)
        case (.strict, .keys): return half(back.0)
        }
    }

    /// The gradient in Double by the derivatives of the formulas: what is true.
    public func oracleGradient(_ row: [Double], of gradient: [Double], position: Int, _ side: Side) -> [Double] {
        var result = gradient
        for j in 0..<dimensions / 2 {
            let (first, second) = channels(ofPair: j)
            let (x1, x2, g1, g2) = (row[first], row[second], gradient[first], gradient[second])
            let (c, s) = oracleCosineAndSine(position: position, pair: j, side)
            let isOn = x1 + x2 > 0
            (result[first], result[second]) =
                switch (form, side) {
                case (.rotary, _): (g1 * c + g2 * s, g2 * c - g1 * s)
                // (x1 (x1 c - x2 s), x2 (x2 c + x1 s))
                case (.slack, .queries):
                    (g1 * (2 * x1 * c - x2 * s) + g2 * x2 * s, g2 * (2 * x2 * c + x1 * s) - g1 * x1 * s)
                // (t c - t s, t c + t s), t = (x1 + x2) / 2
                case (.slack, .keys):
                    isOn ? ((g1 * (c - s) + g2 * (c + s)) / 2, (g1 * (c - s) + g2 * (c + s)) / 2) : (0, 0)
                case (.strict, .queries): (2 * x1 * (g1 * c + g2 * s), 2 * x2 * (g1 * c + g2 * s))
                case (.strict, .keys): isOn ? ((g1 * c + g2 * s) / 2, (g1 * c + g2 * s) / 2) : (0, 0)
                }
        }
        return result
    }
}
