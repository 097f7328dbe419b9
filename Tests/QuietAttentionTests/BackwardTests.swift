// SPDX-License-Identifier: Apache-2.0
// BackwardTests.swift - the backward pass through its Swift interface: threads, layouts, batches, sums that go on, refusals.

import QuietAttention
import SeededInputs
import Testing

/// A problem with a gradient of its output and of its log-sum-exp.
struct BackwardProblem {
    var problem: Problem
    var outputGradient, logSumExpGradient: [Float]

    init(_ shape: AttentionShape, seed: UInt64 = 1) {
        problem = Problem(shape, seed: seed)
        var generator = SeededGenerator(seed: seed, stream: 9)
        outputGradient = generator.normals(shape.outputCount)
        logSumExpGradient = generator.normals(shape.rowCount)
    }

    func run(_ attention: Attention, logSumExp: Bool = true) throws -> AttentionGradients {
        var record = ForwardRecord()
        let result = try attention.forward(
            queries: problem.queries, keys: problem.keys, values: problem.values, recording: &record)
        #expect(result.bits == (try problem.run(attention)).bits)
        return try attention.backward(
            outputGradient: outputGradient, logSumExpGradient: logSumExp ? logSumExpGradient : nil,
            queries: problem.queries, keys: problem.keys, values: problem.values, output: result.output,
            record: record)
    }
}

extension AttentionGradients {
    var bits: [UInt32] { (queries + keys + values + sinks + bias).map(\.bitPattern) }
}

@Suite struct BackwardTests {
    /// With work spread over all threads, however little it is.
    private func attention(
        _ shape: AttentionShape, mask: AttentionMask = .causal, sink: AttentionSink = .softmax1,
        bias: BroadcastTensor<Float>? = nil, products: AttentionProducts = .float32, layout: AttentionLayout? = nil,
        threads: Int = 1
    ) throws -> Attention {
        try Attention(
            shape, rules: ScoreRules(sink: sink), mask: mask, bias: bias, products: products, layout: layout,
            threads: threads, nanosecondsPerWorker: threads > 1 ? 1e-9 : 1e9)
    }

    /// One head is shared by all threads, span by span; many are taken whole.
    @Test(
        arguments: [
            (1, 1, 1, 700, 1300), (1, 4, 2, 450, 1200), (3, 6, 6, 70, 90), (1, 2, 1, 1, 2000), (2, 2, 1, 400, 0),
        ], AttentionProducts.allCases)
    func threadsChangeNoBit(
        _ size: (batch: Int, heads: Int, keyHeads: Int, queries: Int, keys: Int), _ products: AttentionProducts
    ) throws {
        let shape = try AttentionShape(
            batch: size.batch, queryHeads: size.heads, keyValueHeads: size.keyHeads, queries: size.queries,
            keys: size.keys, headDimension: 20, valueDimension: 12)
        let problem = BackwardProblem(shape)
        for mask in [AttentionMask.none, .causal, .window(before: 100, after: 30)] {
            let expected = try problem.run(attention(shape, mask: mask, products: products))
            for threads in [2, 3, 5] {
                let found = try problem.run(attention(shape, mask: mask, products: products, threads: threads))
                #expect(found.bits == expected.bits, "\(threads) threads, \(mask)")
            }
        }
    }

    @Test(arguments: AttentionProducts.allCases)
    func layoutsChangeNoBit(_ products: AttentionProducts) throws {
        let shape = try AttentionShape(
            batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 70, keys: 90, headDimension: 9, valueDimension: 17)
        var problem = BackwardProblem(shape)
        let expected = try problem.run(attention(shape, products: products))
        let inner = problem.problem
        problem.problem.queries = inner.exchanged(inner.queries, heads: 4, sequence: 70)
        problem.problem.keys = inner.exchanged(inner.keys, heads: 2, sequence: 90)
        problem.problem.values = inner.exchanged(inner.values, heads: 2, sequence: 90)
        problem.outputGradient = inner.exchanged(problem.outputGradient, heads: 4, sequence: 70)
        let found = try problem.run(attention(shape, products: products, layout: .batchSequenceHeads))
        #expect(bits(found.queries) == bits(inner.exchanged(expected.queries, heads: 4, sequence: 70)))
        #expect(bits(found.keys) == bits(inner.exchanged(expected.keys, heads: 2, sequence: 90)))
        #expect(bits(found.values) == bits(inner.exchanged(expected.values, heads: 2, sequence: 90)))
        #expect(bits(found.sinks) == bits(expected.sinks))
    }

    /// Each sequence of a packed batch has the gradients it has alone, and keys of a sequence without queries have 0.
    @Test(arguments: AttentionProducts.allCases)
    func packedSequencesAreAlone(_ products: AttentionProducts) throws {
        let (queryOffsets, keyOffsets) = ([0, 5, 5, 75], [0, 40, 47, 177])
        let packed = try AttentionShape(
            packed: queryOffsets, keyOffsets: keyOffsets, queryHeads: 2, keyValueHeads: 1, headDimension: 8)
        let problem = BackwardProblem(packed)
        let found = try problem.run(attention(packed, products: products, threads: 3), logSumExp: false)
        var sinks = [Float](repeating: 0, count: 2)
        for item in 0..<3 {
            let (rows, keys) = (queryOffsets[item]..<queryOffsets[item + 1], keyOffsets[item]..<keyOffsets[item + 1])
            let keyPart = keys.lowerBound * 8..<keys.upperBound * 8
            guard !rows.isEmpty else {
                #expect(found.keys[keyPart].allSatisfy { $0 == 0 } && found.values[keyPart].allSatisfy { $0 == 0 })
                continue
            }
            let shape = try AttentionShape(
                queryHeads: 2, keyValueHeads: 1, queries: rows.count, keys: keys.count, headDimension: 8)
            let queryPart = rows.lowerBound * 16..<rows.upperBound * 16
            var alone = BackwardProblem(shape)
            alone.problem.queries = Array(problem.problem.queries[queryPart])
            alone.problem.keys = Array(problem.problem.keys[keyPart])
            alone.problem.values = Array(problem.problem.values[keyPart])
            alone.outputGradient = Array(problem.outputGradient[queryPart])
            let expected = try alone.run(
                attention(shape, products: products, layout: .batchSequenceHeads), logSumExp: false)
            #expect(bits(Array(found.queries[queryPart])) == bits(expected.queries))
            #expect(bits(Array(found.keys[keyPart])) == bits(expected.keys))
            #expect(bits(Array(found.values[keyPart])) == bits(expected.values))
            for head in 0..<2 { sinks[head] += expected.sinks[head] }
        }
        #expect(bits(found.sinks) == bits(sinks))
    }

    /// A pass over rows cut at a multiple of 64, each part with its own record, goes on with the sums of keys and values.
    @Test(arguments: AttentionProducts.allCases, [[0..<128, 128..<200], [0..<64, 64..<128, 128..<192, 192..<200]])
    func sumsGoOn(_ products: AttentionProducts, _ cut: [Range<Int>]) throws {
        let whole = try AttentionShape(queryHeads: 1, queries: 200, keys: 200, headDimension: 16)
        let problem = BackwardProblem(whole)
        let expected = try problem.run(attention(whole, products: products), logSumExp: false)
        var gradients = AttentionGradients(
            queries: [], keys: [Float](repeating: 0, count: whole.keyCount),
            values: [Float](repeating: 0, count: whole.valueCount), sinks: [0])
        var queries: [Float] = []
        for rows in cut {
            // The keys of the first rows are a prefix of all; the mask is causal.
            let shape = try AttentionShape(
                queryHeads: 1, queries: rows.count, keys: rows.upperBound, headDimension: 16)
            let (part, keys) = (rows.lowerBound * 16..<rows.upperBound * 16, 0..<rows.upperBound * 16)
            let attention = try attention(shape, products: products)
            let (q, k, v) = (
                Array(problem.problem.queries[part]), Array(problem.problem.keys[keys]),
                Array(problem.problem.values[keys])
            )
            var record = ForwardRecord()
            let result = try attention.forward(queries: q, keys: k, values: v, recording: &record)
            var own = AttentionGradients(
                queries: [Float](repeating: 0, count: q.count), keys: Array(gradients.keys[keys]),
                values: Array(gradients.values[keys]), sinks: gradients.sinks)
            try attention.addGradients(
                outputGradient: Array(problem.outputGradient[part]), queries: q, keys: k, values: v,
                output: result.output, record: record, to: &own)
            queries += own.queries
            gradients.keys.replaceSubrange(keys, with: own.keys)
            gradients.values.replaceSubrange(keys, with: own.values)
            gradients.sinks = own.sinks
        }
        #expect(bits(queries) == bits(expected.queries))
        #expect(bits(gradients.keys) == bits(expected.keys))
        #expect(bits(gradients.values) == bits(expected.values))
        #expect(abs(gradients.sinks[0] - expected.sinks[0]) < 1e-5)
    }

    /// A -0 in a buffer that is added to counts as +0, whatever blocks are skipped, and even if the sum that is added is
    /// itself a -0: one that is too small for a subnormal number.
    @Test(arguments: AttentionProducts.allCases, [1, 0x1p-76, 0x1p-149] as [Float])
    func negativeZerosDoNotLast(_ products: AttentionProducts, _ unit: Float) throws {
        let shape = try AttentionShape(queryHeads: 2, keyValueHeads: 1, queries: 70, keys: 300, headDimension: 6)
        var problem = BackwardProblem(shape)
        for index in problem.outputGradient.indices { problem.outputGradient[index] *= unit }
        for mask in [AttentionMask.none, .window(before: 3, after: 0)] {
            let attention = try attention(shape, mask: mask, products: products, threads: 3)
            let expected = try problem.run(attention, logSumExp: false)
            var record = ForwardRecord()
            let inner = problem.problem
            let result = try attention.forward(
                queries: inner.queries, keys: inner.keys, values: inner.values, recording: &record)
            var found = AttentionGradients(
                queries: [Float](repeating: -0.0, count: shape.queryCount),
                keys: [Float](repeating: -0.0, count: shape.keyCount),
                values: [Float](repeating: -0.0, count: shape.valueCount), sinks: [0, 0])
            try attention.addGradients(
                outputGradient: problem.outputGradient, queries: inner.queries, keys: inner.keys,
                values: inner.values, output: result.output, record: record, to: &found)
            #expect(found.bits == expected.bits)
        }
    }

    /// Buffers are written whole, and sizes beyond memory are errors.
    @Test(arguments: AttentionProducts.allCases)
    func nothingAndTooMuch(_ products: AttentionProducts) throws {
        let shape = try AttentionShape(packed: [0, 3], queryHeads: 0, keyValueHeads: 2, headDimension: 4)
        let attention = try attention(shape, products: products)
        var record = ForwardRecord()
        let (keys, nothing) = ([Float](repeating: 1, count: shape.keyCount), [Float]())
        _ = try attention.forward(queries: nothing, keys: keys, values: keys, recording: &record)
        var gradient = [Float](repeating: 7, count: 2 * shape.keyCount)
        try gradient.withUnsafeMutableBufferPointer { gradient in
            try keys.withUnsafeBufferPointer { keys in
                let (dk, dv) = (gradient[..<shape.keyCount], gradient[shape.keyCount...])
                let none = UnsafeBufferPointer<Float>(start: nil, count: 0)
                try attention.backward(
                    outputGradient: none, queries: none, keys: keys, values: keys, output: none, record: record,
                    into: AttentionGradientBuffers(
                        queries: UnsafeMutableBufferPointer<Float>(start: nil, count: 0),
                        keys: UnsafeMutableBufferPointer(rebasing: dk),
                        values: UnsafeMutableBufferPointer(rebasing: dv)))
            }
        }
        #expect(gradient.allSatisfy { $0 == 0 })
        let large = try Attention(
            AttentionShape(queryHeads: 1, queries: 1 << 36, keys: 1 << 36, headDimension: 64), sink: .softmax,
            products: products)
        expectRefusal(.elementCount, "queries") {
            _ = try large.backward(
                outputGradient: [], queries: [], keys: [], values: [], output: [], record: ForwardRecord())
        }
    }

    /// The published slopes are no parameters; given ones are. Where scales are asked for, queries are summed apart and then
    /// added; an s of 0 can have no gradient by a division.
    @Test(arguments: AttentionProducts.allCases)
    func slopesAndScales(_ products: AttentionProducts) throws {
        let shape = try AttentionShape(
            batch: 2, queryHeads: 2, keyValueHeads: 1, queries: 70, keys: 90, headDimension: 6)
        let problem = BackwardProblem(shape)
        func attention(_ alibi: ALiBi?, _ scaling: ScoreScaling = .constant) throws -> Attention {
            try Attention(shape, sink: .softmax1, mask: .causal, scaling: scaling, alibi: alibi, products: products)
        }
        #expect(try problem.run(attention(.standard)).slopes.isEmpty)
        let given = try attention(.slopes(ALiBi.slopes(queryHeads: 2)), .scalableSoftmax([0.5, -0.25]))
        let expected = try problem.run(given)
        #expect(expected.slopes.count == 2 && expected.scalableSoftmax.count == 2)
        func add(_ attention: Attention, _ gradients: inout AttentionGradients) throws {
            var record = ForwardRecord()
            let inner = problem.problem
            let result = try attention.forward(
                queries: inner.queries, keys: inner.keys, values: inner.values, recording: &record)
            try attention.addGradients(
                outputGradient: problem.outputGradient, logSumExpGradient: problem.logSumExpGradient,
                queries: inner.queries, keys: inner.keys, values: inner.values, output: result.output, record: record,
                to: &gradients)
        }
        var sums = expected
        sums.logScales = [0, 0]
        try add(given, &sums)
        #expect(bits(sums.queries) == bits(expected.queries.map { $0 + $0 }))
        #expect(bits(sums.slopes) == bits(expected.slopes.map { $0 + $0 }))
        #expect(bits(sums.scalableSoftmax) == bits(expected.scalableSoftmax.map { $0 + $0 }))
        #expect(bits(zip(sums.logScales, [0.5, -0.25]).map { $0 / $1 }) == bits(expected.scalableSoftmax))

        let zero = try attention(nil, .scalableSoftmax([0.5, 0]))
        expectRefusal(.scaling, "scaling.scalableSoftmax[1]") { _ = try problem.run(zero) }
        sums.slopes = []
        sums.scalableSoftmax = []
        try add(zero, &sums)
        sums.scalableSoftmax = [0, 0]
        expectRefusal(.composition, "gradients.scalableSoftmax") { try add(attention(nil), &sums) }
        (sums.slopes, sums.scalableSoftmax) = ([0, 0], [])
        expectRefusal(.composition, "gradients.slopes") { try add(attention(nil), &sums) }
        (sums.slopes, sums.logScales) = ([], [0])
        expectRefusal(.elementCount, "gradients.logScales") { try add(attention(nil), &sums) }
    }

    /// Spans give what arrays give, log-sum-exp and sums that go on included, and refuse sinks where there are none.
    @Test(arguments: AttentionProducts.allCases)
    func spans(_ products: AttentionProducts) throws {
        let shape = try AttentionShape(queryHeads: 4, keyValueHeads: 2, queries: 20, keys: 70, headDimension: 6)
        let problem = BackwardProblem(shape)
        let (q, k, v) = (problem.problem.queries, problem.problem.keys, problem.problem.values)
        func run(
            _ attention: Attention, sinks: Int, logSumExp: Int? = nil, accumulating: Bool = false
        ) throws -> (bits: [UInt32], logSumExp: [Float]) {
            var output = [Float](repeating: 0, count: shape.outputCount)
            var sums = [Float](repeating: 0, count: logSumExp ?? 0)
            var record = ForwardRecord()
            var span = output.mutableSpan
            if logSumExp == nil {
                try attention.forward(queries: q.span, keys: k.span, values: v.span, into: &span, recording: &record)
            } else {
                var sumSpan = sums.mutableSpan
                try attention.forward(
                    queries: q.span, keys: k.span, values: v.span, into: &span, logSumExp: &sumSpan, recording: &record)
            }
            let first: Float = accumulating ? 0 : 7
            var (dq, dk, dv) = (q.map { _ in first }, k.map { _ in first }, v.map { _ in first })
            var ds = [Float](repeating: first, count: sinks)
            for _ in 0..<(accumulating ? 2 : 1) {
                var dqSpan = dq.mutableSpan
                var dkSpan = dk.mutableSpan
                var dvSpan = dv.mutableSpan
                var dsSpan = ds.mutableSpan
                try attention.backward(
                    outputGradient: problem.outputGradient.span, queries: q.span, keys: k.span, values: v.span,
                    output: output.span, record: record, queryGradients: &dqSpan, keyGradients: &dkSpan,
                    valueGradients: &dvSpan, sinkGradients: &dsSpan, accumulating: accumulating)
            }
            return (bits(dq + dk + dv + ds), sums)
        }
        let attention = try attention(shape, sink: .logits([0, 1, -1, 3]), products: products)
        let expected = try problem.run(attention, logSumExp: false)
        let found = try run(attention, sinks: 4, logSumExp: shape.rowCount)
        #expect(found.bits == expected.bits)
        #expect(try bits(found.logSumExp) == bits(problem.problem.run(attention).logSumExp))
        // Twice the sinks' exactly; of queries a second pass goes on with the sums of the first.
        let twice = try run(attention, sinks: 4, accumulating: true)
        #expect(twice.bits.suffix(4) == bits(expected.sinks.map { $0 + $0 })[...])
        expectRefusal(.elementCount, "gradients.sinks") { _ = try run(attention, sinks: 3) }
        expectRefusal(.elementCount, "logSumExp") { _ = try run(attention, sinks: 4, logSumExp: 1) }
        let sigmoid = try Attention(
            shape, sink: .softmax, normaliser: .sigmoid(bias: .fixed(0)), products: products)
        #expect(try run(sigmoid, sinks: 0).bits == problem.run(sigmoid, logSumExp: false).bits)
        expectRefusal(.composition, "gradients.sinks") { _ = try run(sigmoid, sinks: 4) }
        expectRefusal(.composition, "logSumExp") { _ = try run(sigmoid, sinks: 0, logSumExp: shape.rowCount) }
    }

    /// Another sink in a problem that is ready gives what a problem of its own would give, and refuses alike.
    @Test(arguments: AttentionProducts.allCases)
    func anotherSink(_ products: AttentionProducts) throws {
        let shape = try AttentionShape(queryHeads: 2, queries: 9, keys: 70, headDimension: 6)
        let problem = BackwardProblem(shape)
        func own(_ sink: AttentionSink, _ normaliser: AttentionNormaliser = .softmax) throws -> Attention {
            try Attention(
                shape, sink: sink, mask: .causal, scaling: .logKeys(base: 20), normaliser: normaliser,
                positions: .rotary(), queryKeyNorm: .rms(), products: products)
        }
        let sinks: [AttentionSink] = [
            .softmax, .softmax1, .softmaxN(3), .logits([1, -.infinity]), .logKeys(offset: 1),
        ]
        for first in sinks {
            let attention = try own(first)
            for sink in sinks {
                let other = try attention.with(sink: sink)
                #expect(other.sink == sink)
                #expect(try problem.run(other).bits == problem.run(own(sink)).bits, "\(first) to \(sink)")
            }
        }
        expectRefusal(.sinkCount, "sink.logits") { _ = try own(.softmax).with(sink: .logits([1])) }
        expectRefusal(.sink, "sink.logits[1]") { _ = try own(.softmax).with(sink: .logits([1, .nan])) }
        expectRefusal(.composition, "sink") {
            _ = try own(.softmax, .sigmoid(bias: .fixed(0))).with(sink: .softmax1)
        }
    }

    @Test func aRecordOfAnotherShapeIsRefused() throws {
        let shape = try AttentionShape(queryHeads: 2, queries: 3, keys: 4, headDimension: 5)
        let problem = BackwardProblem(shape)
        let attention = try attention(shape)
        func backward(
            _ record: ForwardRecord, dout: [Float]? = nil, dlse: [Float]? = nil, queries: [Float]? = nil
        ) throws {
            _ = try attention.backward(
                outputGradient: dout ?? problem.outputGradient, logSumExpGradient: dlse,
                queries: queries ?? problem.problem.queries, keys: problem.problem.keys,
                values: problem.problem.values, output: [Float](repeating: 0, count: shape.outputCount),
                record: record)
        }
        expectRefusal(.record, "record") { try backward(ForwardRecord()) }
        var record = ForwardRecord()
        _ = try attention.forward(
            queries: problem.problem.queries, keys: problem.problem.keys, values: problem.problem.values,
            recording: &record)
        #expect(record.byteCount == 12 * shape.rowCount)
        expectRefusal(.elementCount, "outputGradient") { try backward(record, dout: [1]) }
        expectRefusal(.elementCount, "logSumExpGradient") { try backward(record, dlse: [1]) }
        expectRefusal(.elementCount, "queries") { try backward(record, queries: [1]) }
        try backward(record)
    }
}
