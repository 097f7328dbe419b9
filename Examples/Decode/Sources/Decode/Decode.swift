// SPDX-License-Identifier: Apache-2.0
// Decode.swift - one attention layer reads a prompt, forks its cache, and decodes two continuations token by token.
//
// The layer is a stand-in for a model: its queries, keys and values are made from the number of a token and its position.

import QuietAttention

let (queryHeads, keyValueHeads, dimension) = (8, 2, 64)

@main
struct Decode {
    static func main() throws {
        let attention = try CachedAttention(queryHeads: queryHeads, sink: .softmax1)

        // The prompt, in two parts: each attends to all before it.
        var prompt = try KeyValueCache(
            keyValueHeads: keyValueHeads, headDimension: dimension, storage: .bfloat16, maximumTokens: 4096,
            layout: .batchSequenceHeads)
        for part in [0..<700, 700..<1000] {
            let tokens = part.map { layer(token: $0 % 97, position: $0) }
            try prompt.append(keys: tokens.flatMap(\.keys), values: tokens.flatMap(\.values))
            let result = try attention.attend(queries: tokens.flatMap(\.queries), cache: prompt)
            print("prompt, tokens \(part): mean sink share \(mean(result.sinkShare))")
        }
        print("the prompt's cache holds \(prompt.count) tokens in \(prompt.byteCount) bytes")

        // Two continuations share its pages, and decode in one call per step.
        var branches = [prompt, prompt]
        for step in 0..<50 {
            let tokens = branches.indices.map { layer(token: 31 * $0 + step, position: branches[$0].count) }
            for (index, token) in tokens.enumerated() {
                try branches[index].append(keys: token.keys, values: token.values)
            }
            let result = try attention.attend(queries: tokens.flatMap(\.queries), caches: branches)
            if step % 25 == 24 {
                print("step \(step): mean sink shares \(branches.indices.map { mean(result.sinkShare, part: $0) })")
            }
        }

        print("prompt and branches together take \(KeyValueCache.byteCount(branches + [prompt])) bytes")

        // A draft of four tokens is verified at once, and two of them are taken back.
        var draft = branches[0]
        let tokens = (0..<4).map { layer(token: 5 + $0, position: draft.count + $0) }
        try draft.append(keys: tokens.flatMap(\.keys), values: tokens.flatMap(\.values))
        let verified = try attention.attend(queries: tokens.flatMap(\.queries), cache: draft)
        try draft.truncate(to: draft.count - 2)

        // The same tokens one by one: the same bits.
        var stepByStep = branches[0]
        var output: [Float] = []
        for token in tokens {
            try stepByStep.append(keys: token.keys, values: token.values)
            output += try attention.attend(queries: token.queries, cache: stepByStep).output
        }
        print(
            "the draft has \(output == verified.output ? "the bits of" : "other bits than") the same tokens one by one")
        print("prompt \(prompt.count), branches \(branches.map(\.count)), draft \(draft.count) tokens")
    }

    /// Numbers that look random and are the same everywhere, between -1 and 1.
    static func numbers(_ count: Int, seed: Int) -> [Float] {
        var state = UInt64(truncatingIfNeeded: seed) &* 0x9e37_79b9_7f4a_7c15 | 1
        return (0..<count).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Float(Int32(truncatingIfNeeded: state >> 32)) * 0x1p-31
        }
    }

    /// `[heads][dimension]` of one token. A model would rotate queries and keys by the position.
    static func layer(token: Int, position: Int) -> (queries: [Float], keys: [Float], values: [Float]) {
        let shift = Float(position % 64) / 64
        return (
            numbers(queryHeads * dimension, seed: 3 * token).map { 4 * $0 },
            numbers(keyValueHeads * dimension, seed: 3 * token + 1).map { $0 - shift },
            numbers(keyValueHeads * dimension, seed: 3 * token + 2)
        )
    }

    static func mean(_ values: [Float], part: Int? = nil) -> Float {
        let values = part.map { values[$0 * queryHeads..<($0 + 1) * queryHeads] } ?? values[...]
        return values.reduce(0, +) / Float(values.count)
    }
}
