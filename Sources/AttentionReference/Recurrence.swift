// SPDX-License-Identifier: Apache-2.0
// Recurrence.swift - linear attention and retention by their formulas over all pairs: what a recurrence has to come to.

/// Attention without softmax, which can be computed as a recurrence over the keys:
///
///     linear:     out[i] = sum_j w[j] v[j] / sum_j w[j],  w[j] = phi(q[i]).phi(k[j]),  phi(x) = x + 1 above 0, e^x below
///     retention:  out[i] = sum_j g^|p - j| (q[i].k[j] / sqrt(D)) v[j] / sqrt(sum_j g^|p - j|)
///
/// over the keys j that row i sees, where it stands at key p = i + keys - queries and query head h decays by
/// g = 1 - 2^(-5 - h). A row that sees no key puts out 0.
public enum ReferenceRecurrence: Sendable, CaseIterable { case linear, retention }

extension ReferenceProblem {
    /// The output in Double, [batch, queryHeads, queries, valueDimension]. Sizes and masks are the problem's; its scale,
    /// sinks and all else that is for scores have no part.
    public func oracle(
        _ recurrence: ReferenceRecurrence, queries: [Float], keys: [Float], values: [Float]
    ) -> [Double] {
        var output: [Double] = []
        forEachRow(queries: queries, keys: keys, values: values) { row in
            output += self.output(of: row, recurrence)
        }
        return output
    }

    private func output(of row: Row, _ recurrence: ReferenceRecurrence) -> [Double] {
        let (pairs, divisor) = recurrentPairs(row, recurrence)
        var sum = [Double](repeating: 0, count: valueDimension)
        for pair in pairs {
            for e in sum.indices { sum[e] += pair.weight * Double(row.values[pair.key * valueDimension + e]) }
        }
        return sum.map { divisor == 0 ? 0 : $0 / divisor }
    }

    /// The keys that a row sees, their weights kept * feature(q).feature(k[j]), and what their sum is divided by.
    func recurrentPairs(
        _ row: Row, _ recurrence: ReferenceRecurrence
    ) -> (pairs: [(key: Int, weight: Double, kept: Double)], divisor: Double) {
        let head = row.index / queries % queryHeads
        let decay = 1 - Double(sign: .plus, exponent: -5 - head, significand: 1)
        let pairs = (0..<keys).filter { row.isVisible[$0] }.map { j in
            let distance = recurrence == .retention ? abs(row.position - j) : 0
            let kept = (0..<distance).reduce(1.0) { kept, _ in kept * decay }
            return (j, kept * product(row, j, recurrence.feature), kept)
        }
        let sum = pairs.reduce(0) { $0 + (recurrence == .linear ? $1.1 : $1.2) }
        return (pairs, recurrence == .linear ? sum : (sum * Double(headDimension)).squareRoot())
    }

    /// feature(q).feature(k[j]).
    private func product(_ row: Row, _ j: Int, _ feature: (Double) -> Double) -> Double {
        (0..<headDimension).reduce(0) {
            $0 + feature(Double(row.query[$1])) * feature(Double(row.keys[j * headDimension + $1]))
        }
    }
}
