// SPDX-License-Identifier: Apache-2.0
// KeyLengthTests.swift - where rows stand under key lengths: a batch gives what its items give, each with its own keys.

import Testing

@testable import QuietAttention

@Suite struct KeyLengthTests {
    struct Rules: Sendable, CustomTestStringConvertible {
        var testDescription: String
        var mask = AttentionMask.causal
        var scaling = ScoreScaling.constant
        var sink = AttentionSink.softmax1
        var alibi: ALiBi?
        var positions = AttentionPositions.none
        var norm: QueryKeyNorm?
        var normaliser = AttentionNormaliser.softmax
    }

    /// Everything that depends on where a row stands, or on how many keys it sees.
    static let rules = [
        Rules(testDescription: "causal"),
        Rules(testDescription: "window", mask: .window(3)),
        Rules(testDescription: "both sides", mask: .window(before: 4, after: 1)),
        Rules(testDescription: "ALiBi", alibi: .standard),
        Rules(testDescription: "ALiBi, all keys", mask: .none, alibi: .standard),
        Rules(testDescription: "log n", scaling: .logKeys(base: 8), sink: .logKeys()),
        Rules(testDescription: "n of weights", sink: .softmax, normaliser: .sigmoid(bias: .minusLog(.visible))),
        Rules(testDescription: "rotary", mask: .none, positions: .rotary(), norm: .rms()),
        Rules(
            testDescription: "rotary in a window", mask: .window(5),
            positions: .rotary(RotaryEmbedding(pairing: .interleaved)).offset(by: 3)),
        Rules(
            testDescription: "dynamic NTK",
            positions: .rotary(RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 6)))),
        Rules(
            testDescription: "xPos", positions: .rotary(RotaryEmbedding(scaling: .xPos(scaleBase: 64, centre: 9)))),
        Rules(testDescription: "CoCA", positions: .collinear(.slack)),
    ]

    private static let lengths = [1090, 24, 9, 2, 0]

    private func attention(_ shape: AttentionShape, _ rules: Rules, _ mask: AttentionMask) throws -> Attention {
        try Attention(
            shape, sink: rules.sink, mask: mask, scaling: rules.scaling, alibi: rules.alibi,
            normaliser: rules.normaliser, positions: rules.positions, queryKeyNorm: rules.norm, threads: 2)
    }

    /// L queries at the end of a static cache: also with fewer keys than queries, whose first rows see nothing.
    @Test(arguments: rules)
    func itemsStandAtTheirLastKey(_ rules: Rules) throws {
        let (queries, keys) = (5, 1090)
        let shape = try AttentionShape(
            batch: Self.lengths.count, queryHeads: 4, keyValueHeads: 2, queries: queries, keys: keys, headDimension: 6)
        let problem = Problem(shape)
        let batch = try problem.run(attention(shape, rules, rules.mask.keyLengths(Self.lengths)))
        for (item, length) in Self.lengths.enumerated() {
            let single = try AttentionShape(
                queryHeads: 4, keyValueHeads: 2, queries: queries, keys: length, headDimension: 6)
            func rows(_ tensor: [Float], of count: Int, first: Int, heads: Int) -> [Float] {
                (0..<heads).flatMap { head -> ArraySlice<Float> in
                    let start = (item * heads + head) * count
                    return tensor[start * 6..<(start + first) * 6]
                }
            }
            let alone = try attention(single, rules, rules.mask).forward(
                queries: rows(problem.queries, of: queries, first: queries, heads: 4),
                keys: rows(problem.keys, of: keys, first: length, heads: 2),
                values: rows(problem.values, of: keys, first: length, heads: 2))
            let part = item * 4 * queries..<(item + 1) * 4 * queries
            #expect(
                bits(alone.output) == bits(Array(batch.output[part.lowerBound * 6..<part.upperBound * 6])),
                "item \(item)")
            if rules.normaliser.hasSink {
                #expect(bits(alone.logSumExp) == bits(Array(batch.logSumExp[part])), "item \(item)")
            }
        }
    }

    /// Queries padded as keys are: rows of an item that are no padding have what the item has alone.
    @Test(arguments: rules)
    func paddedQueriesStayWhereTheyAre(_ rules: Rules) throws {
        let (rowCount, length) = (70, 40)
        let shape = try AttentionShape(
            batch: 2, queryHeads: 2, queries: rowCount, keys: rowCount, headDimension: 6)
        let problem = Problem(shape)
        let mask = rules.mask.keyLengths([rowCount, length], padding: .queriesAndKeys)
        let batch = try problem.run(attention(shape, rules, mask))
        let single = try AttentionShape(queryHeads: 2, queries: length, keys: length, headDimension: 6)
        func rows(_ tensor: [Float]) -> [Float] {
            (2..<4).flatMap { tensor[$0 * rowCount * 6..<($0 * rowCount + length) * 6] }
        }
        let alone = try attention(single, rules, rules.mask).forward(
            queries: rows(problem.queries), keys: rows(problem.keys), values: rows(problem.values))
        #expect(bits(alone.output) == bits(rows(batch.output)))
    }

    /// A cache under a key length is the cache with so many tokens.
    @Test func lengthsOfCaches() throws {
        let problem = CacheProblem(tokens: 1090) { $0.headDimension = 6 }
        for positions in [AttentionPositions.none, .rotary()] {
            for length in [1090, 1030, 9, 5] {
                var cache = try KeyValueCache(
                    keyValueHeads: 2, headDimension: 6, valueDimension: 18, positions: positions)
                try problem.append(0..<1090, to: &cache)
                let attention = try problem.attention(
                    rules: .init(scaling: .logKeys(base: 8), alibi: .standard), threads: 2)
                let queries = problem.queries(0..<5)
                let padded = try attention.attend(
                    queries: queries, cache: cache, mask: .window(40).keyLengths([length]))
                try cache.truncate(to: length)
                let expected = try attention.attend(queries: queries, cache: cache, mask: .window(40))
                #expect(padded.bits == expected.bits, "\(length) tokens")
            }
        }
    }
}
