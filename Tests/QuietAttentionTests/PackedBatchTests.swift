// SPDX-License-Identifier: Apache-2.0
// PackedBatchTests.swift - a packed batch equals its sequences one by one.

import Testing

@testable import QuietAttention

@Suite struct PackedBatchTests {
    private static let queryOffsets = [0, 5, 5, 75, 76, 180]
    private static let keyOffsets = [0, 70, 75, 140, 140, 345]

    @Test(arguments: AttentionLayout.allCases, [1, 3])
    func equalsItsSequences(_ layout: AttentionLayout, _ threads: Int) throws {
        let shape = try AttentionShape(
            packed: Self.queryOffsets, keyOffsets: Self.keyOffsets, queryHeads: 4, keyValueHeads: 2, headDimension: 5,
            valueDimension: 3)
        let problem = Problem(shape)
        let lengths = [70, 0, 60, 0, 205]
        let sink = AttentionSink.logits([0, -1, 3, -.infinity])
        let bias = try BroadcastTensor(
            (0..<4 * 205).map { Float($0 % 13) / 4 }, heads: 4, keys: 205)
        let whole = try problem.run(
            Attention(
                shape, sink: sink, mask: .causal.keyLengths(lengths), bias: bias, layout: layout, threads: threads,
                spread: true))

        for item in 0..<5 {
            let queries = Self.queryOffsets[item]..<Self.queryOffsets[item + 1]
            let keys = Self.keyOffsets[item]..<Self.keyOffsets[item + 1]
            let single = try AttentionShape(
                queryHeads: 4, keyValueHeads: 2, queries: queries.count, keys: keys.count, headDimension: 5,
                valueDimension: 3)
            let cut = try BroadcastTensor(
                bias.values, extents: .init(heads: 4, keys: keys.count),
                strides: .init(batch: 0, heads: 205, queries: 0, keys: 1))
            let attention = try Attention(
                single, sink: sink, mask: .causal.keyLengths([lengths[item]]), bias: cut, layout: layout)
            let result = try attention.forward(
                queries: rows(problem.queries, queries, of: 180, heads: 4, layout),
                keys: rows(problem.keys, keys, of: 345, heads: 2, layout),
                values: rows(problem.values, keys, of: 345, heads: 2, layout))
            #expect(bits(result.output) == bits(rows(whole.output, queries, of: 180, heads: 4, layout)))
            let sums = { (all: [Float]) in rows(all, queries, of: 180, heads: 4, .batchHeadsSequence) }
            #expect(bits(result.logSumExp) == bits(sums(whole.logSumExp)))
            #expect(bits(result.sinkShare) == bits(sums(whole.sinkShare)))
        }
    }

    @Test func theDefaultLayoutIsTotalFirst() throws {
        let shape = try AttentionShape(packed: [0, 2], queryHeads: 2, headDimension: 1)
        #expect(try Attention(shape, sink: .softmax1).layout == .batchSequenceHeads)
    }

    /// Rows of one sequence of a packed tensor of so many rows.
    private func rows(
        _ tensor: [Float], _ range: Range<Int>, of total: Int, heads: Int, _ layout: AttentionLayout
    ) -> [Float] {
        let dimension = tensor.count / (total * heads)
        guard layout == .batchHeadsSequence else {
            return Array(tensor[range.lowerBound * heads * dimension..<range.upperBound * heads * dimension])
        }
        return (0..<heads).flatMap { head in
            tensor[(head * total + range.lowerBound) * dimension..<(head * total + range.upperBound) * dimension]
        }
    }
}
