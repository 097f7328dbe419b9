// SPDX-License-Identifier: Apache-2.0
// TextbookRow.swift - one row of weights in Double, by the formula, and what can be said of it.

import Foundation
import TestSupport

/// The diagnostics of one row, as a textbook has them: from natural scores of the keys it sees.
struct TextbookRow {
    let scores: [Double]
    /// The places of the keys that it sees.
    var keys: [Int] = []
    let sink: Double
    let weights: [Double]
    let sinkShare: Double

    init(scores: [Double], sink: Double) {
        (self.scores, self.sink) = (scores, sink)
        let reference = max(sink, scores.max() ?? sink)
        let powers = scores.map { exp($0 - reference) }
        let sinkPower = sink == -.infinity ? 0 : exp(sink - reference)
        let sum = powers.reduce(sinkPower, +)
        weights = powers.map { $0 / sum }
        sinkShare = sum == 0 ? 0 : sinkPower / sum
    }

    fileprivate func entropy(_ p: [Double]) -> Double { p.reduce(0) { $0 - ($1 > 0 ? $1 * log($1) : 0) } }

    var entropy: Double { entropy(weights + [sinkShare]) }
    /// From the scores: the weights may have vanished beside the sink.
    var keyEntropy: Double { entropy(TextbookRow(scores: scores, sink: -.infinity).weights) }
    var l1OverL2: Double {
        let keys = TextbookRow(scores: scores, sink: -.infinity).weights
        return keys.reduce(0, +) / (Double(keys.count) * keys.reduce(0) { $0 + $1 * $1 }).squareRoot()
    }
    var meanOverMaximum: Double {
        let keys = TextbookRow(scores: scores, sink: -.infinity).weights
        return keys.reduce(0, +) / Double(keys.count) / keys.max()!
    }
    func shareBelow(_ epsilon: Double) -> Double {
        Double(weights.filter { $0 <= epsilon }.count) / Double(weights.count)
    }
    var largestScore: Double { scores.map(abs).max() ?? 0 }
    var medianScore: Double {
        let sorted = scores.map(abs).sorted()
        return (sorted[sorted.count / 2] + sorted[(sorted.count - 1) / 2]) / 2
    }
}

extension AttentionCase {
    /// All rows, in the order [batch][heads][queries].
    func textbookRows(_ inputs: AttentionInputs) -> [TextbookRow] {
        var rows: [TextbookRow] = []
        for item in 0..<batch {
            for head in 0..<queryHeads {
                let part = headProblem(inputs, item: item, head: head)
                for row in 0..<part.queryCount {
                    let query = part.queries.rows(row, 1, part.headDimension)
                    let scores = part.visibleKeys(row).map { key in
                        let products = zip(query, part.keys.rows(key, 1, part.headDimension))
                        return part.scale * products.reduce(0) { $0 + Double($1.0) * Double($1.1) }
                            + Double(part.bias?[row * part.keyCount + key] ?? 0)
                    }
                    var textbook = TextbookRow(scores: scores, sink: Double(part.sink))
                    textbook.keys = Array(part.visibleKeys(row))
                    rows.append(textbook)
                }
            }
        }
        return rows
    }
}
