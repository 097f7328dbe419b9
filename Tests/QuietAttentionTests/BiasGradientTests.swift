// SPDX-License-Identifier: Apache-2.0
// BiasGradientTests.swift - gradients of the additive bias through the Swift interface: packed batches, sums that go on,
// strides, refusals. Bits are held to the reference by PropertyTests.

import QuietAttention
import SeededInputs
import Testing

@Suite struct BiasGradientTests {
    private func attention(
        _ shape: AttentionShape, _ bias: BroadcastTensor<Float>?, products: AttentionProducts = .float32,
        threads: Int = 1
    ) throws -> Attention {
        try Attention(
            shape, rules: ScoreRules(sink: .softmax1), mask: .causal, bias: bias, products: products,
            layout: .batchSequenceHeads, threads: threads, nanosecondsPerWorker: 1e-9)
    }

    private func numbers(_ count: Int, seed: UInt64) -> [Float] {
        var generator = SeededGenerator(seed: seed)
        return generator.normals(count)
    }

    /// Where in a tensor `[items, heads, queries, keys]` the elements are that a sequence of so many rows and keys reads.
    private func part(
        _ extents: BroadcastTensor<Float>.Extents, item: Int, queries: Int, keys: Int
    ) -> [Int] {
        let first = extents.batch == 1 ? 0 : item
        return (0..<extents.heads).flatMap { head in
            (0..<min(extents.queries, queries)).flatMap { row in
                (0..<keys).map { ((first * extents.heads + head) * extents.queries + row) * extents.keys + $0 }
            }
        }
    }

    /// Rows and keys count from the start of each sequence; a bias that sequences share has the sum over them in order.
    @Test(arguments: [(1, 1), (1, 2), (3, 1), (3, 2)], AttentionProducts.allCases)
    func packedSequences(_ sharing: (items: Int, heads: Int), _ products: AttentionProducts) throws {
        let (items, heads) = sharing
        let (queryOffsets, keyOffsets) = ([0, 5, 5, 75], [0, 40, 47, 177])
        let packed = try AttentionShape(
            packed: queryOffsets, keyOffsets: keyOffsets, queryHeads: 2, keyValueHeads: 1, headDimension: 8)
        let extents = BroadcastTensor<Float>.Extents(batch: items, heads: heads, queries: 70, keys: 130)
        let bias = numbers(items * heads * 70 * 130, seed: 3)
        let problem = BackwardProblem(packed)
        let tensor = try BroadcastTensor(bias, batch: items, heads: heads, queries: 70, keys: 130)
        let found = try problem.run(
            attention(packed, tensor, products: products, threads: 3), logSumExp: false)
        var sums = [Float](repeating: 0, count: bias.count)
        for item in [0, 2] {
            let (rows, keys) = (queryOffsets[item]..<queryOffsets[item + 1], keyOffsets[item]..<keyOffsets[item + 1])
            let shape = try AttentionShape(
                queryHeads: 2, keyValueHeads: 1, queries: rows.count, keys: keys.count, headDimension: 8)
            let places = part(extents, item: item, queries: rows.count, keys: keys.count)
            let own = try BroadcastTensor(
                places.map { bias[$0] }, heads: heads, queries: rows.count, keys: keys.count)
            let (q, k, v) = (
                Array(problem.problem.queries[rows.lowerBound * 16..<rows.upperBound * 16]),
                Array(problem.problem.keys[keys.lowerBound * 8..<keys.upperBound * 8]),
                Array(problem.problem.values[keys.lowerBound * 8..<keys.upperBound * 8])
            )
            let attention = try attention(shape, own, products: products)
            var record = ForwardRecord()
            let result = try attention.forward(queries: q, keys: k, values: v, recording: &record)
            var gradients = AttentionGradients(
                queries: [Float](repeating: 0, count: q.count), keys: [Float](repeating: 0, count: k.count),
                values: [Float](repeating: 0, count: v.count), sinks: [0, 0])
            gradients.bias = places.map { sums[$0] }
            try attention.addGradients(
                outputGradient: Array(problem.outputGradient[rows.lowerBound * 16..<rows.upperBound * 16]),
                queries: q, keys: k, values: v, output: result.output, record: record, to: &gradients)
            for (place, sum) in zip(places, gradients.bias) { sums[place] = sum }
        }
        #expect(sums.contains { $0 != 0 })
        #expect(bits(found.bias) == bits(sums))
    }

    /// Whatever the strides of the bias, its gradient is adjacent; a -0 that is added to counts as +0.
    @Test func stridesAndNegativeZeros() throws {
        let shape = try AttentionShape(batch: 2, queryHeads: 2, queries: 3, keys: 70, headDimension: 4)
        let problem = BackwardProblem(shape)
        let values = numbers(3 * 70, seed: 5)
        let expected = try problem.run(attention(shape, BroadcastTensor(values, queries: 3, keys: 70))).bias
        var apart = [Float](repeating: .nan, count: 3 * 150)
        for row in 0..<3 { for key in 0..<70 { apart[row * 150 + 2 * key] = values[row * 70 + key] } }
        let strided = try BroadcastTensor(
            apart, extents: .init(queries: 3, keys: 70), strides: .init(batch: 0, heads: 0, queries: 150, keys: 2))
        let attention = try attention(shape, strided, threads: 2)
        #expect(try bits(problem.run(attention).bias) == bits(expected))

        var record = ForwardRecord()
        let (q, k, v) = (problem.problem.queries, problem.problem.keys, problem.problem.values)
        let result = try attention.forward(queries: q, keys: k, values: v, recording: &record)
        var gradients = AttentionGradients(queries: q, keys: k, values: v, sinks: [0, 0])
        gradients.bias = [Float](repeating: -0.0, count: 210)
        try attention.addGradients(
            outputGradient: problem.outputGradient, logSumExpGradient: problem.logSumExpGradient, queries: q, keys: k,
            values: v, output: result.output, record: record, to: &gradients)
        #expect(bits(gradients.bias) == bits(expected))
        // An empty array is not asked for.
        gradients.bias = []
        let before = gradients.queries
        try attention.addGradients(
            outputGradient: problem.outputGradient, logSumExpGradient: problem.logSumExpGradient, queries: q, keys: k,
            values: v, output: result.output, record: record, to: &gradients)
        #expect(gradients.bias.isEmpty && gradients.queries != before)
        gradients.bias = [1]
        expectRefusal(.elementCount, "gradients.bias") {
            try attention.addGradients(
                outputGradient: problem.outputGradient, queries: q, keys: k, values: v, output: result.output,
                record: record, to: &gradients)
        }
        #expect(gradients.bias == [1])
    }

    @Test func noBiasHasNoGradient() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 2, keys: 3, headDimension: 4)
        let problem = BackwardProblem(shape)
        let attention = try attention(shape, nil)
        #expect(try problem.run(attention).bias.isEmpty)
        var record = ForwardRecord()
        let (q, k, v) = (problem.problem.queries, problem.problem.keys, problem.problem.values)
        let result = try attention.forward(queries: q, keys: k, values: v, recording: &record)
        var gradients = AttentionGradients(queries: q, keys: k, values: v, sinks: [0])
        gradients.bias = [0, 0, 0, 0, 0, 0]
        expectRefusal(.composition, "gradients.bias") {
            try attention.addGradients(
                outputGradient: problem.outputGradient, queries: q, keys: k, values: v, output: result.output,
                record: record, to: &gradients)
        }
    }
}
