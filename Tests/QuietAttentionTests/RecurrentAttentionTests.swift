// SPDX-License-Identifier: Apache-2.0
// RecurrentAttentionTests.swift - linear attention and retention: the recurrence against all pairs, in Double.

import AttentionReference
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

    @Test(arguments: RecurrentAttention.Kind.allCases, problems)
    func recurrenceIsTheSumOverPairs(kind: RecurrentAttention.Kind, problem: Problem) throws {
        let shape = try AttentionShape(
            batch: problem.batch, queryHeads: problem.heads, keyValueHeads: problem.keyValueHeads,
            queries: problem.queries, keys: problem.keys, headDimension: 5, valueDimension: 3)
        let tensors = QuietAttentionTests.Problem(shape, seed: 5)
        func arranged(_ tensor: [Float], _ heads: Int, _ sequence: Int) -> [Float] {
            problem.layout == .batchHeadsSequence
                ? tensor : tensors.exchanged(tensor, heads: heads, sequence: sequence)
        }
        for isCausal in [true, false] {
            var output = try RecurrentAttention(kind, shape, isCausal: isCausal, layout: problem.layout).forward(
                queries: arranged(tensors.queries, shape.queryHeads, shape.queries),
                keys: arranged(tensors.keys, shape.keyValueHeads, shape.keys),
                values: arranged(tensors.values, shape.keyValueHeads, shape.keys))
            // What exchanges heads and rows, there being as many rows as there were heads, exchanges them back.
            if problem.layout == .batchSequenceHeads {
                output = tensors.exchanged(output, heads: shape.queries, sequence: shape.queryHeads)
            }
            let reference = ReferenceProblem(
                batch: problem.batch, queryHeads: problem.heads, keyValueHeads: problem.keyValueHeads,
                queries: problem.queries, keys: problem.keys, headDimension: 5, valueDimension: 3,
                sinks: [Float](repeating: 0, count: problem.heads))
            let expected = (isCausal ? reference.causal : reference).oracle(
                kind == .linear ? .linear : .retention, queries: tensors.queries, keys: tensors.keys,
                values: tensors.values)
            try requireClose(
                "out", output, expected, tolerance: { 1e-6 * max(1, abs($0)) },
                "\(kind), causal \(isCausal), \(problem)")
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
        for (argument, counts) in [("queries", (1, 2, 2)), ("keys", (2, 3, 2)), ("values", (2, 2, 0))] {
            let zeros = { [Float](repeating: 0, count: $0) }
            expectRefusal(.elementCount, argument) {
                _ = try RecurrentAttention(.linear, shape, isCausal: true).forward(
                    queries: zeros(counts.0), keys: zeros(counts.1), values: zeros(counts.2))
            }
        }
    }
}
