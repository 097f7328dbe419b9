// SPDX-License-Identifier: Apache-2.0
// EmptyWorkTests.swift - no batch, heads, queries or keys, and rows that see no key.

import QuietAttention
import Testing

@Suite struct EmptyWorkTests {
    @Test(arguments: [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)])
    func nothingToWrite(_ batch: Int, _ heads: Int, _ queries: Int, _ keys: Int) throws {
        let shape = try AttentionShape(
            batch: batch, queryHeads: heads, queries: queries, keys: keys, headDimension: 8)
        let result = try Problem(shape).run(Attention(shape, sink: .softmax1, mask: .causal, threads: 3))
        #expect(result == AttentionResult(output: [], logSumExp: [], sinkShare: []))
    }

    /// However many items or keys there would be.
    @Test(.timeLimit(.minutes(1)), arguments: [(Int.max / 8, 0, 1), (0, 1, 1 << 40)])
    func noWeights(_ batch: Int, _ heads: Int, _ keys: Int) throws {
        let shape = try AttentionShape(batch: batch, queryHeads: heads, queries: 1, keys: keys, headDimension: 1)
        #expect(try Attention(shape, sink: .softmax).weights(queries: [], keys: []).isEmpty)
    }

    /// Strides of a tensor without entries lead nowhere.
    @Test func noEntriesAtAnyStride() throws {
        let shape = try AttentionShape(queryHeads: 3, queries: 1, keys: 0, headDimension: 1)
        let (extents, far) = (BroadcastTensor<Float>.Extents(heads: 3, keys: 0), Int.max)
        let bias = try BroadcastTensor<Float>(
            [], extents: extents, strides: .init(batch: far, heads: far, queries: far, keys: far))
        let mask = try BroadcastTensor<Bool>(
            [], extents: .init(heads: 3, keys: 0), strides: .init(batch: far, heads: far, queries: far, keys: far))
        let attention = try Attention(shape, sink: .softmax1, mask: .none.allowing(mask), bias: bias)
        #expect(try Problem(shape).run(attention).sinkShare == [1, 1, 1])
    }

    @Test func noKeyValueHeadsWithoutQueryHeads() throws {
        let shape = try AttentionShape(queryHeads: 0, keyValueHeads: 0, queries: 3, keys: 4, headDimension: 8)
        #expect(try Problem(shape).run(Attention(shape, sink: .logits([]))).output.isEmpty)
        let onlyKeys = try AttentionShape(queryHeads: 0, keyValueHeads: 2, queries: 3, keys: 4, headDimension: 8)
        #expect(try Problem(onlyKeys).run(Attention(onlyKeys, sink: .softmax1)).output.isEmpty)
    }

    @Test(arguments: KernelSet.available)
    func rowsWithoutKeys(_ kernels: KernelSet) throws {
        let shape = try AttentionShape(batch: 2, queryHeads: 4, queries: 100, keys: 0, headDimension: 8)
        let sink = AttentionSink.logits([-.infinity, 0, 2.5, -300])
        let result = try Problem(shape).run(Attention(shape, sink: sink, kernels: kernels))
        #expect(bits(result.output) == [UInt32](repeating: 0, count: shape.outputCount))
        let perHead = [Float](repeating: 1, count: 100)
        let sums = [-Float.infinity, 0, 2.5, -300].flatMap { sink in perHead.map { $0 * sink } }
        #expect(result.logSumExp == sums + sums)
        let shares = [Float(0), 1, 1, 1].flatMap { share in perHead.map { $0 * share } }
        #expect(result.sinkShare == shares + shares)
    }

    @Test func keyLengthsOfZero() throws {
        let shape = try AttentionShape(batch: 3, queryHeads: 1, queries: 4, keys: 70, headDimension: 8)
        var problem = Problem(shape)
        let full = try problem.run(Attention(shape, sink: .softmaxN(2)))
        problem.keys.replaceSubrange(0..<70 * 8, with: [Float](repeating: .nan, count: 70 * 8))
        let result = try problem.run(Attention(shape, sink: .softmaxN(2), mask: .none.keyLengths([0, 70, 70])))
        #expect(result.output[..<32].allSatisfy { $0 == 0 })
        #expect(result.logSumExp[..<4].allSatisfy { abs($0 - 0.693147) < 1e-6 })
        #expect(result.sinkShare[..<4].allSatisfy { $0 == 1 })
        #expect(bits(Array(result.output[32...])) == bits(Array(full.output[32...])))
    }

    @Test func causalRowsAboveTheFirstKey() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 8, keys: 3, headDimension: 4)
        let result = try Problem(shape).run(Attention(shape, sink: .softmax, mask: .causal))
        #expect(result.output[..<20].allSatisfy { $0 == 0 })
        #expect(result.logSumExp[..<5].allSatisfy { $0 == -.infinity })
        #expect(result.sinkShare.allSatisfy { $0 == 0 })
        #expect(result.logSumExp[5...].allSatisfy { $0.isFinite })
    }

    @Test func packedSequencesWithoutQueriesOrKeys() throws {
        let shape = try AttentionShape(
            packed: [0, 0, 3, 3, 5], keyOffsets: [0, 2, 2, 2, 4], queryHeads: 2, headDimension: 4)
        let problem = Problem(shape)
        let result = try problem.run(Attention(shape, sink: .softmax1))
        #expect(result.output[..<24].allSatisfy { $0 == 0 })
        #expect(result.output[24...].allSatisfy { $0 != 0 })
        #expect(result.sinkShare[0..<3].allSatisfy { $0 == 1 } && result.sinkShare[5..<8].allSatisfy { $0 == 1 })
    }
}
