// SPDX-License-Identifier: Apache-2.0
// HeadWork.swift - the attention of one layer over a captured text, looked at in several ways.

import QuietAttention

/// Queries `[heads, count, d]` and keys `[kv heads, count, d]`, rotated.
struct HeadWork {
    let queries, keys: [Float]
    let configuration: LlamaConfiguration
    let count: Int
    let options: ModelOptions

    private func shape(values: Int) throws -> AttentionShape {
        try AttentionShape(
            batch: 1, queryHeads: configuration.queryHeads, keyValueHeads: configuration.keyValueHeads, queries: count,
            keys: count, headDimension: configuration.headDimension, valueDimension: values)
    }

    private func attention(values: Int, scale: Double?) throws -> Attention {
        try Attention(
            shape(values: values), sink: options.sink, mask: .causal, scale: scale, scaling: options.scoreScaling,
            threads: options.threads, kernels: options.kernels)
    }

    /// Of all heads and rows, `[heads, count]`.
    func diagnostics(scale: Double?) throws -> [RowDiagnostics] {
        try attention(values: configuration.headDimension, scale: scale).diagnostics(queries: queries, keys: keys)
    }

    /// The weights that rows give to classes of keys are an attention output, where the value of a key says its class.
    func heads(_ rows: [RowDiagnostics], _ classes: [TokenClass]) throws -> [HeadMeasurement] {
        let kinds = TokenClass.allCases.count
        let value = classes.flatMap { own in TokenClass.allCases.map { $0 == own ? Float(1) : 0 } }
        let values = Array(repeating: value, count: configuration.keyValueHeads).flatMap(\.self)
        let result = try attention(values: kinds, scale: nil).forward(queries: queries, keys: keys, values: values)
        let first = min(LayerMeasurement.firstRow, count - 1)
        return (0..<configuration.queryHeads).map { head in
            let chosen = (head * count + first)..<(head + 1) * count
            let share = 1 / Double(chosen.count)
            let weights = (0..<kinds).map { kind in
                chosen.reduce(0.0) { $0 + Double(result.output[$1 * kinds + kind]) } * share
            }
            let own = rows[chosen]
            return HeadMeasurement(
                weightByClass: weights, sinkShare: own.reduce(0) { $0 + $1.sinkShare } * share,
                entropy: own.reduce(0) { $0 + $1.entropy } * share,
                largestWeight: own.reduce(0) { $0 + $1.largestWeight } * share)
        }
    }

    /// Of q.k over the keys that every 32nd row sees, all heads together.
    func scoreVariance() -> Double {
        let d = configuration.headDimension
        let group = configuration.queryHeads / configuration.keyValueHeads
        var (n, sum, squares) = (0.0, 0.0, 0.0)
        for head in 0..<configuration.queryHeads {
            for row in stride(from: 31, to: count, by: 32) {
                let query = (head * count + row) * d
                for key in 0...row {
                    let start = (head / group * count + key) * d
                    var score: Float = 0
                    for channel in 0..<d { score += queries[query + channel] * keys[start + channel] }
                    n += 1
                    sum += Double(score)
                    squares += Double(score) * Double(score)
                }
            }
        }
        return squares / n - (sum / n) * (sum / n)
    }
}
