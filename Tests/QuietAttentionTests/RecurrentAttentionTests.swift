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

    /// The gradients of the formulas over all pairs, rounded to Float.
    @Test(arguments: RecurrentAttention.Kind.allCases, problems)
    func gradientsAreThoseOfThePairs(kind: RecurrentAttention.Kind, problem: Problem) throws {
        let shape = try AttentionShape(
            batch: problem.batch, queryHeads: problem.heads, keyValueHeads: problem.keyValueHeads,
            queries: problem.queries, keys: problem.keys, headDimension: 5, valueDimension: 3)
        let tensors = QuietAttentionTests.Problem(shape, seed: 5)
        var generator = SeededGenerator(seed: 6)
        var outputGradient = generator.normals(shape.outputCount)
        // A row without a gradient.
        for e in outputGradient.indices.prefix(3) { outputGradient[e] = 0 }
        func arranged(_ tensor: [Float], _ heads: Int, _ sequence: Int) -> [Float] {
            problem.layout == .batchHeadsSequence
                ? tensor : tensors.exchanged(tensor, heads: heads, sequence: sequence)
        }
        for isCausal in [true, false] {
            let reference = ReferenceProblem(
                batch: problem.batch, queryHeads: problem.heads, keyValueHeads: problem.keyValueHeads,
                queries: problem.queries, keys: problem.keys, headDimension: 5, valueDimension: 3,
                sinks: [Float](repeating: 0, count: problem.heads))
            let expected = (isCausal ? reference.causal : reference).oracleGradients(
                kind == .linear ? .linear : .retention, queries: tensors.queries, keys: tensors.keys,
                values: tensors.values, outputGradient: outputGradient)
            let found = try RecurrentAttention(kind, shape, isCausal: isCausal, layout: problem.layout).backward(
                outputGradient: arranged(outputGradient, shape.queryHeads, shape.queries),
                queries: arranged(tensors.queries, shape.queryHeads, shape.queries),
                keys: arranged(tensors.keys, shape.keyValueHeads, shape.keys),
                values: arranged(tensors.values, shape.keyValueHeads, shape.keys))
            for (name, gradients, expected, heads, sequence) in [
                ("dq", found.queries, expected.queries, shape.queryHeads, shape.queries),
                ("dk", found.keys, expected.keys, shape.keyValueHeads, shape.keys),
                ("dv", found.values, expected.values, shape.keyValueHeads, shape.keys),
            ] {
                // What exchanges heads and rows, there being as many rows as there were heads, exchanges them back.
                let gradients =
                    problem.layout == .batchHeadsSequence
                    ? gradients : tensors.exchanged(gradients, heads: sequence, sequence: heads)
                // Half a unit of Float's last place, beside the error of sums in Double whose terms cancel.
                try requireClose(
                    name, gradients, expected, tolerance: { abs($0) * 0x1.01p-24 + 1e-13 },
                    "\(kind), causal \(isCausal), \(problem)")
                #expect(gradients.allSatisfy { $0 != 0 || $0.sign == .plus })
            }
            #expect(found.sinks.isEmpty)
        }
    }

    /// NaN does no harm in queries whose output has no gradient, in keys that nobody sees, and behind a causal row.
    @Test(arguments: RecurrentAttention.Kind.allCases)
    func hiddenPlaces(kind: RecurrentAttention.Kind) throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 6, keys: 4, headDimension: 2)
        var problem = QuietAttentionTests.Problem(shape, seed: 3)
        var generator = SeededGenerator(seed: 4)
        var outputGradient = generator.normals(12)
        // Rows 0 and 1 see no key; row 5 sees all of them, row 4 all but the last.
        for index in 10..<12 { outputGradient[index] = 0 }
        let attention = RecurrentAttention(kind, shape, isCausal: true)
        func gradients() throws -> AttentionGradients {
            try attention.backward(
                outputGradient: outputGradient, queries: problem.queries, keys: problem.keys, values: problem.values)
        }
        let expected = try gradients()
        #expect((expected.queries[..<4] + expected.queries[10...]).allSatisfy { $0.bitPattern == 0 })
        #expect((expected.keys[6...] + expected.values[6...]).allSatisfy { $0.bitPattern == 0 })
        for index in [0, 1, 2, 3, 10, 11] { problem.queries[index] = .nan }
        for index in 0..<4 { outputGradient[index] = .nan }
        #expect(try gradients().bits == expected.bits)
        for index in 6..<8 { (problem.keys[index], problem.values[index]) = (.nan, .nan) }
        let found = try gradients()
        #expect(found.queries.map(\.bitPattern) == expected.queries.map(\.bitPattern))
        #expect(found.keys[..<6].map(\.bitPattern) == expected.keys[..<6].map(\.bitPattern))
        #expect(found.values[..<6].map(\.bitPattern) == expected.values[..<6].map(\.bitPattern))
    }

    /// Sequences of a packed batch have the gradients they have alone; sums go on where they stand, -0 counting as +0; buffers
    /// are written whole.
    @Test(arguments: RecurrentAttention.Kind.allCases, [true, false])
    func gradientsOfPackedSequences(kind: RecurrentAttention.Kind, isCausal: Bool) throws {
        var generator = SeededGenerator(seed: 8)
        let packed = try AttentionShape(packed: [0, 3, 3, 8], queryHeads: 2, headDimension: 4)
        let (q, k) = (generator.normals(packed.queryCount), generator.normals(packed.keyCount))
        let (v, dout) = (generator.normals(packed.valueCount), generator.normals(packed.outputCount))
        let attention = RecurrentAttention(kind, packed, isCausal: isCausal)
        let found = try attention.backward(outputGradient: dout, queries: q, keys: k, values: v)
        for range in [0..<3, 3..<8] {
            let shape = try AttentionShape(queryHeads: 2, queries: range.count, keys: range.count, headDimension: 4)
            func part(_ tensor: [Float]) -> [Float] { tensor.rows(range.lowerBound, range.count, 8) }
            let alone = try RecurrentAttention(kind, shape, isCausal: isCausal, layout: .batchSequenceHeads).backward(
                outputGradient: part(dout), queries: part(q), keys: part(k), values: part(v))
            try requireSameBits("dq", part(found.queries), alone.queries, "\(kind) \(range)")
            try requireSameBits("dk", part(found.keys), alone.keys, "\(kind) \(range)")
            try requireSameBits("dv", part(found.values), alone.values, "\(kind) \(range)")
        }
        func filled(_ value: Float) -> AttentionGradients {
            func all(_ array: [Float]) -> [Float] { [Float](repeating: value, count: array.count) }
            return AttentionGradients(queries: all(q), keys: all(k), values: all(v), sinks: [])
        }
        var sums = filled(-0.0)
        try attention.addGradients(outputGradient: dout, queries: q, keys: k, values: v, to: &sums)
        #expect(sums.bits == found.bits)
        try attention.addGradients(outputGradient: dout, queries: q, keys: k, values: v, to: &sums)
        #expect(sums.bits == (found.queries + found.keys + found.values).map { ($0 + $0).bitPattern })
        sums = filled(7)
        try sums.queries.withUnsafeMutableBufferPointer { dq in
            try sums.keys.withUnsafeMutableBufferPointer { dk in
                try sums.values.withUnsafeMutableBufferPointer { dv in
                    try dout.withUnsafeBufferPointer { dout in
                        try q.withUnsafeBufferPointer { q in
                            try k.withUnsafeBufferPointer { k in
                                try v.withUnsafeBufferPointer { v in
                                    try attention.backward(
                                        outputGradient: dout, queries: q, keys: k, values: v,
                                        into: AttentionGradientBuffers(queries: dq, keys: dk, values: dv))
                                }
                            }
                        }
                    }
                }
            }
        }
        #expect(sums.bits == found.bits)
    }

    @Test func gradientErrors() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 2)
        let attention = RecurrentAttention(.linear, shape, isCausal: true)
        let two: [Float] = [1, 2]
        for (argument, counts) in [
            ("queries", [2, 3, 2, 2]), ("keys", [2, 2, 1, 2]), ("values", [2, 2, 2, 4]),
            ("outputGradient", [1, 2, 2, 2]),
        ] {
            let tensors = counts.map { [Float](repeating: 0, count: $0) }
            expectRefusal(.elementCount, argument) {
                _ = try attention.backward(
                    outputGradient: tensors[0], queries: tensors[1], keys: tensors[2], values: tensors[3])
            }
        }
        for (argument, kind, change) in [
            ("gradients.queries", .elementCount, { $0.queries = [] }),
            ("gradients.keys", .elementCount, { $0.keys = [1] }),
            ("gradients.values", .elementCount, { $0.values = [1, 2, 3] }),
            ("gradients.sinks", .composition, { $0.sinks = [0] }),
            ("gradients.logScales", .composition, { $0.logScales = [0] }),
        ] as [(String, AttentionError.Kind, (inout AttentionGradients) -> Void)] {
            var gradients = AttentionGradients(queries: two, keys: two, values: two, sinks: [])
            change(&gradients)
            let before = gradients
            expectRefusal(kind, argument) {
                try attention.addGradients(outputGradient: two, queries: two, keys: two, values: two, to: &gradients)
            }
            #expect(gradients == before)
        }
    }

    /// The same bits on every platform.
    @Test func bitsOfGradientsAreFixed() throws {
        let shape = try AttentionShape(
            batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 9, keys: 12, headDimension: 5, valueDimension: 3)
        let problem = QuietAttentionTests.Problem(shape, seed: 5)
        var generator = SeededGenerator(seed: 9)
        let outputGradient = generator.normals(shape.outputCount)
        var digest = BitDigest()
        for kind in RecurrentAttention.Kind.allCases {
            for isCausal in [true, false] {
                let attention = RecurrentAttention(kind, shape, isCausal: isCausal)
                digest.add(
                    try attention.forward(queries: problem.queries, keys: problem.keys, values: problem.values))
                let gradients = try attention.backward(
                    outputGradient: outputGradient, queries: problem.queries, keys: problem.keys,
                    values: problem.values)
                digest.add(gradients.queries + gradients.keys + gradients.values)
            }
        }
        #expect(digest.hexadecimal == "9edf96814f498fbf")
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
