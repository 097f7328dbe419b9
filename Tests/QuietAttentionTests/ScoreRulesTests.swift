// SPDX-License-Identifier: Apache-2.0
// ScoreRulesTests.swift - one value of rules says the same to whoever takes it.

import QuietAttention
import SeededInputs
import Testing

@Suite struct ScoreRulesTests {
    private static let shape = (heads: 2, queries: 5, keys: 9, dimension: 8)

    private static func attention(_ rules: ScoreRules) throws -> Attention {
        try Attention(
            AttentionShape(
                queryHeads: shape.heads, queries: shape.queries, keys: shape.keys, headDimension: shape.dimension),
            rules: rules, mask: .causal, threads: 1)
    }

    private static var rules: [ScoreRules] {
        [
            ScoreRules(sink: .softmax1), ScoreRules(sink: .softmax, scale: 0.7, softcap: 3),
            ScoreRules(sink: .logits([0.5, -1]), scaling: .logKeys(), alibi: .standard),
            ScoreRules(sink: .softmax, normaliser: .sigmoid()),
        ]
    }

    private static func inputs() -> (queries: [Float], keys: [Float], values: [Float]) {
        var generator = SeededGenerator(seed: 3)
        let row = shape.heads * shape.dimension
        let queries = generator.normals(shape.queries * row)
        return (queries, generator.normals(shape.keys * row), generator.normals(shape.keys * row))
    }

    @Test func membersOneByOneAreTheSame() throws {
        let (queries, keys, values) = Self.inputs()
        for rules in Self.rules {
            let whole = try Self.attention(rules)
            let single = try Attention(
                whole.shape, sink: rules.sink, mask: .causal, scale: rules.scale, scaling: rules.scaling,
                softcap: rules.softcap, alibi: rules.alibi, normaliser: rules.normaliser, threads: 1)
            #expect(whole.scale == rules.scale ?? 1 / Double(Self.shape.dimension).squareRoot())
            #expect(
                try whole.forward(queries: queries, keys: keys, values: values).output
                    == single.forward(queries: queries, keys: keys, values: values).output)
        }
    }

    @Test func cachesFollowTheSameRules() throws {
        let (queries, keys, values) = Self.inputs()
        for rules in Self.rules {
            let whole = try Self.attention(rules).forward(queries: queries, keys: keys, values: values)
            let cached = try CachedAttention(queryHeads: Self.shape.heads, rules: rules, threads: 1)
            var cache = try KeyValueCache(keyValueHeads: Self.shape.heads, headDimension: Self.shape.dimension)
            try cache.append(keys: keys, values: values)
            #expect(try cached.attend(queries: queries, cache: cache).output == whole.output)
        }
    }

    @Test func whatMakesNoSenseIsRefusedByWhoeverTakesIt() throws {
        var rules = ScoreRules(sink: .softmax1, normaliser: .sigmoid())
        #expect(throws: AttentionError.self) { try Self.attention(rules) }
        #expect(throws: AttentionError.self) { try CachedAttention(queryHeads: 2, rules: rules) }
        rules.sink = .softmax
        _ = try Self.attention(rules)
        rules.scale = .nan
        #expect(throws: AttentionError.self) { try Self.attention(rules) }
        #expect(throws: AttentionError.self) { try CachedAttention(queryHeads: 2, rules: rules) }
    }
}
