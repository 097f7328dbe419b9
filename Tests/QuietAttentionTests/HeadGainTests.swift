// SPDX-License-Identifier: Apache-2.0
// HeadGainTests.swift - norms of queries and keys with gains and biases for each head.

import SeededInputs
import Testing

@testable import QuietAttention

@Suite struct HeadGainTests {
    /// Four query heads over two of the keys, more rows than a call of the kernels takes.
    private static let (rows, keys, dimension) = (150, 160, 10)
    private let shape: AttentionShape
    private let problem: Problem
    private let norm: QueryKeyNorm

    init() throws {
        shape = try AttentionShape(
            batch: 2, queryHeads: 4, keyValueHeads: 2, queries: Self.rows, keys: Self.keys,
            headDimension: Self.dimension)
        problem = Problem(shape)
        var generator = SeededGenerator(seed: 31)
        norm = .layer(
            queryGain: generator.normals(40), queryBias: generator.normals(40), keyGain: generator.normals(20),
            keyBias: generator.normals(20))
    }

    private func part(_ tensor: [Float]?, _ index: Int, _ size: Int) -> [Float] {
        Array(tensor![index * size..<(index + 1) * size])
    }

    /// The norm that a query head has by itself.
    private func norm(ofHead head: Int) -> QueryKeyNorm {
        .layer(
            queryGain: part(norm.queryGain, head, 10), queryBias: part(norm.queryBias, head, 10),
            keyGain: part(norm.keyGain, head / 2, 10), keyBias: part(norm.keyBias, head / 2, 10))
    }

    private func alone(item: Int, head: Int) throws -> [Float] {
        let single = try AttentionShape(
            queryHeads: 1, queries: Self.rows, keys: Self.keys, headDimension: Self.dimension)
        return try Attention(
            single, sink: .softmax1, mask: .causal, positions: .rotary(), queryKeyNorm: norm(ofHead: head)
        ).forward(
            queries: part(problem.queries, item * 4 + head, Self.rows * 10),
            keys: part(problem.keys, item * 2 + head / 2, Self.keys * 10),
            values: part(problem.values, item * 2 + head / 2, Self.keys * 10)
        ).output
    }

    @Test("each head has its own", arguments: [1, 3])
    func eachHead(threads: Int) throws {
        let output = try Attention(
            shape, sink: .softmax1, mask: .causal, positions: .rotary(), queryKeyNorm: norm, threads: threads
        ).forward(queries: problem.queries, keys: problem.keys, values: problem.values).output
        for item in 0..<2 {
            for head in 0..<4 {
                let rows = part(output, item * 4 + head, Self.rows * 10)
                #expect(try rows == alone(item: item, head: head), "item \(item), head \(head)")
            }
        }
    }

    @Test func caches() throws {
        var cache = try KeyValueCache(
            keyValueHeads: 2, headDimension: Self.dimension, positions: .rotary(), queryKeyNorm: norm)
        try cache.append(keys: part(problem.keys, 0, 2 * 1600), values: part(problem.values, 0, 2 * 1600))
        let output = try CachedAttention(queryHeads: 4, sink: .softmax1)
            .attend(queries: part(problem.queries, 0, 4 * 1500), cache: cache, mask: .causal).output
        for head in 0..<4 { #expect(try part(output, head, 1500) == alone(item: 0, head: head)) }
        // So many gains belong to four query heads.
        let error = #expect(throws: AttentionError.self) {
            try CachedAttention(queryHeads: 2, sink: .softmax1)
                .attend(queries: part(problem.queries, 0, 2 * 1500), cache: cache)
        }
        #expect(error?.kind == .queryKeyNorm && error?.argument == "queryKeyNorm.queryGain")
    }

    @Test func whatDoesNotFit() throws {
        for count in [0, 11, 20, 80] {
            let error = #expect(throws: AttentionError.self) {
                try Attention(
                    shape, sink: .softmax1, queryKeyNorm: .rms(queryGain: [Float](repeating: 1, count: count)))
            }
            #expect(error?.description.contains("10 elements, or 4 x 10") == true)
        }
        for count in [0, 15, 40] {
            let error = #expect(throws: AttentionError.self) {
                try KeyValueCache(
                    keyValueHeads: 2, headDimension: 10,
                    queryKeyNorm: .rms(keyGain: [Float](repeating: 1, count: count)))
            }
            #expect(error?.argument == "queryKeyNorm.keyGain")
        }
        let error = #expect(throws: AttentionError.self) {
            try KeyValueCache(keyValueHeads: 2, headDimension: 10, queryKeyNorm: .rms(queryGain: [1, 2, 3]))
        }
        #expect(error?.argument == "queryKeyNorm.queryGain")
    }

    @Test func moreHeadsThanIntCountsElementsOf() {
        expectRefusal(.queryKeyNorm, "queryKeyNorm.keyGain") {
            _ = try KeyValueCache(keyValueHeads: 1 << 62, headDimension: 8, queryKeyNorm: .rms(keyGain: [1]))
        }
    }
}
