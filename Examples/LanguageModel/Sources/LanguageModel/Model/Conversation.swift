// SPDX-License-Identifier: Apache-2.0
// Conversation.swift - the tokens so far, as one cache of keys and values per layer.

import QuietAttention

/// What a model remembers of a text. A value: a copy goes on by itself, and shares the pages of what came before.
public struct Conversation: Sendable {
    var caches: [KeyValueCache]

    /// Tokens read so far.
    public var count: Int { caches[0].count }
    /// Bytes of all caches, shared pages counted in full.
    public var byteCount: Int { caches.reduce(0) { $0 + $1.byteCount } }

    /// Takes back the tokens from `count` on.
    public mutating func truncate(to count: Int) throws {
        for layer in caches.indices { try caches[layer].truncate(to: count) }
    }
}

extension LlamaModel {
    /// A conversation without tokens.
    public func conversation() throws -> Conversation {
        let rotation = RotaryEmbedding(
            base: configuration.rotaryBase, pairing: .halves, scaling: options.rotaryScaling)
        let cache = try KeyValueCache(
            keyValueHeads: configuration.keyValueHeads, headDimension: configuration.headDimension,
            storage: options.cache, layout: .batchSequenceHeads, positions: .rotary(rotation), kernels: options.kernels)
        return Conversation(caches: Array(repeating: cache, count: configuration.layers))
    }

    /// Bytes of keys and values that attention reads for the next token of a conversation of so many.
    public func cacheBytes(tokens: Int) -> Int {
        let elements = 2 * configuration.keyValueHeads * configuration.headDimension
        let bytes =
            switch options.cache {
            case .float32: 4 * elements
            case .float16, .bfloat16: 2 * elements
            case .int8: elements + 8 * configuration.keyValueHeads
            }
        return bytes * configuration.layers * tokens
    }
}
