// SPDX-License-Identifier: Apache-2.0
// RecurrentAttentionTests.swift - linear attention and retention: the recurrence against all pairs, in Double.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct RecurrentAttentionTests {
    struct Problem: Sendable, CustomTestStringConvertible {
        var queries: Int
        var keys: Int
        var batch = 1
        var heads = 1
        var keyValueHeads = 1
        var layout = AttentionLayout.batchHeadsSequence
        var testDescription: String { "b\(batch) h\(heads)/\(keyValueHeads) \(queries)x\(keys) \(layout)" }
    }

    /// More queries than keys, fewer, as many, one, none.
    static let problems = [
        Problem(queries: 9, keys: 9), Problem(queries: 3, keys: 11), Problem(queries: 11, keys: 3),
        Problem(queries: 1, keys: 1), Problem(queries: 4, keys: 0), Problem(queries: 0, keys: 4),
        Problem(queries: 5, keys: 7, batch: 2, heads: 4, keyValueHeads: 2),
        Problem(queries: 7, keys: 5, batch: 2, heads: 4, keyValueHeads: 2, layout: .batchSequenceHeads),
    ]

    static let (headDimension, valueDimension) = (5, 3)

    /// One row by its formula over all pairs.
    private func oracle(
        _ kind: RecurrentAttention.Kind, isCausal: Bool, queryHead: Int, place: Int, query: [Float], keys: [[Float]],
        values: [[Float]]
    ) -> [Double] {
        func feature(_ x: Float) -> Double { x > 0 ? Double(x) + 1 : exp(Double(x)) }
        let decay = 1 - pow(2, -5 - Double(queryHead))
        var (sum, norm) = ([Double](repeating: 0, count: Self.valueDimension), 0.0)
        for (j, (key, value)) in zip(keys, values).enumerated() where !isCausal || j <= place {
            let weight: Double
            switch kind {
            case .linear:
                weight = zip(query, key).reduce(0) { $0 + feature($1.0) * feature($1.1) }
                norm += weight
            case .retention:
                let distance = pow(decay, Double(abs(place - j)))
                weight = distance * zip(query, key).reduce(0) { $0 + Double($1.0) * Double($1.1) }
                norm += distance
            }
            for e in sum.indices { sum[e] += weight * Double(value[e]) }
        }
        let divisor = kind == .linear ? norm : (norm * Double(Self.headDimension)).squareRoot()
        return sum.map { divisor == 0 ? 0 : $0 / divisor }
    }

    @Test(arguments: RecurrentAttention.Kind.allCases, problems)
    func recurrenceIsTheSumOverPairs(kind: RecurrentAttention.Kind, problem: Problem) throws {
        let (D, E) = (Self.headDimension, Self.valueDimension)
        let shape = try AttentionShape(
            batch: problem.batch, queryHeads: problem.heads, keyValueHeads: problem.keyValueHeads,
            queries: problem.queries, keys: problem.keys, headDimension: D, valueDimension: E)
        var generator = SeededGenerator(seed: 5)
        let q = generator.normals(shape.queryCount)
        let (k, v) = (generator.normals(shape.keyCount), generator.normals(shape.valueCount))
        func row(_ tensor: [Float], _ item: Int, _ head: Int, _ heads: Int, _ row: Int, _ rows: Int, _ width: Int)
            -> [Float]
        {
            let index =
                problem.layout == .batchHeadsSequence
                ? (item * heads + head) * rows + row : (item * rows + row) * heads + head
            return tensor.rows(index, 1, width)
        }
        for isCausal in [true, false] {
            let output = try RecurrentAttention(kind, shape, isCausal: isCausal, layout: problem.layout)
                .forward(queries: q, keys: k, values: v)
            for (item, head) in (0..<problem.batch).flatMap({ b in (0..<problem.heads).map { (b, $0) } }) {
                let (G, S) = (problem.keyValueHeads, problem.keys)
                let group = head / (problem.heads / G)
                for i in 0..<problem.queries {
                    let expected = oracle(
                        kind, isCausal: isCausal, queryHead: head, place: i + S - problem.queries,
                        query: row(q, item, head, problem.heads, i, problem.queries, D),
                        keys: (0..<S).map { row(k, item, group, G, $0, S, D) },
                        values: (0..<S).map { row(v, item, group, G, $0, S, E) })
                    try requireClose(
                        "row \(i)", row(output, item, head, problem.heads, i, problem.queries, E), expected,
                        tolerance: { 1e-6 * max(1, abs($0)) }, "\(kind), causal \(isCausal), \(problem)")
                }
            }
        }
    }

    /// A causal row does not depend on what comes after it, not even by a bit.
    @Test(arguments: RecurrentAttention.Kind.allCases)
    func causalRowsDoNotSeeTheFuture(kind: RecurrentAttention.Kind) throws {
        func output(length: Int, last: Float) throws -> [Float] {
            let shape = try AttentionShape(queryHeads: 1, queries: length, keys: length, headDimension: 2)
            var generator = SeededGenerator(seed: 6)
            let values = (0..<length).flatMap { _ in generator.normals(2) }
            var keys = values
            keys[keys.count - 1] = last
            return try RecurrentAttention(kind, shape, isCausal: true).forward(
                queries: values, keys: keys, values: values)
        }
        let short = try output(length: 6, last: 1)
        let long = try output(length: 7, last: .nan)
        try requireSameBits("out", Array(long[..<10]), Array(short[..<10]), "\(kind)")
        #expect(long[12...].allSatisfy { $0.isNaN })
    }

    /// Sequences of a packed batch are problems of their own.
    @Test(arguments: RecurrentAttention.Kind.allCases, [true, false])
    func packedSequences(kind: RecurrentAttention.Kind, isCausal: Bool) throws {
        var generator = SeededGenerator(seed: 8)
        let packed = try AttentionShape(packed: [0, 3, 3, 8], queryHeads: 2, headDimension: 4)
        let (q, k) = (generator.normals(packed.queryCount), generator.normals(packed.keyCount))
        let v = generator.normals(packed.valueCount)
        let output = try RecurrentAttention(kind, packed, isCausal: isCausal).forward(queries: q, keys: k, values: v)
        for range in [0..<3, 3..<8] {
            let shape = try AttentionShape(queryHeads: 2, queries: range.count, keys: range.count, headDimension: 4)
            let alone = try RecurrentAttention(kind, shape, isCausal: isCausal, layout: .batchSequenceHeads).forward(
                queries: q.rows(range.lowerBound, range.count, 8), keys: k.rows(range.lowerBound, range.count, 8),
                values: v.rows(range.lowerBound, range.count, 8))
            try requireSameBits("out", output.rows(range.lowerBound, range.count, 8), alone, "\(kind) \(range)")
        }
    }

    /// Weights of linear attention sum to 1.
    @Test func equalValuesComeOut() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 20, keys: 20, headDimension: 4, valueDimension: 1)
        var generator = SeededGenerator(seed: 7)
        let output = try RecurrentAttention(.linear, shape, isCausal: false).forward(
            queries: generator.normals(80), keys: generator.normals(80), values: [Float](repeating: 2.5, count: 20))
        #expect(output.allSatisfy { abs($0 - 2.5) < 1e-6 })
    }

    @Test func errors() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 2)
        for counts in [(1, 2, 2), (2, 3, 2), (2, 2, 0)] {
            let zeros = { [Float](repeating: 0, count: $0) }
            #expect {
                _ = try RecurrentAttention(.linear, shape, isCausal: true).forward(
                    queries: zeros(counts.0), keys: zeros(counts.1), values: zeros(counts.2))
            } throws: {
                ($0 as? AttentionError)?.kind == .elementCount
            }
        }
    }
}
