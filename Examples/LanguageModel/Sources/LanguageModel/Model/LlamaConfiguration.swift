// SPDX-License-Identifier: Apache-2.0
// LlamaConfiguration.swift - the sizes of a model, as its file states them.

/// The sizes of a model of the Llama architecture.
public struct LlamaConfiguration: Sendable, Equatable {
    public let layers: Int
    public let queryHeads, keyValueHeads, headDimension: Int
    /// Elements of the residual stream.
    public let width: Int
    /// Elements within the feed-forward network.
    public let feedForwardWidth: Int
    public let vocabulary: Int
    /// The tokens that the model was trained on at once.
    public let contextLength: Int
    /// The base of the rotary embedding.
    public let rotaryBase: Double
    /// What RMSNorm adds to a mean square.
    public let normEpsilon: Float

    public init(_ file: GGUFFile) throws(GGUFError) {
        let architecture = try file.string("general.architecture")
        guard architecture == "llama" else {
            throw .invalidValue(key: "general.architecture", found: architecture, expected: "llama")
        }
        let most = 1 << 20
        layers = try file.integer("llama.block_count", in: 1...4096)
        width = try file.integer("llama.embedding_length", in: 1...most)
        feedForwardWidth = try file.integer("llama.feed_forward_length", in: 1...most)
        queryHeads = try file.integer("llama.attention.head_count", in: 1...65536)
        keyValueHeads = try file.integer("llama.attention.head_count_kv", in: 1...65536, fallback: queryHeads)
        headDimension = try file.integer("llama.attention.key_length", in: 1...1024, fallback: width / queryHeads)
        contextLength = try file.integer("llama.context_length", in: 1...1 << 40)
        rotaryBase = try file.positiveNumber("llama.rope.freq_base", fallback: 10_000)
        normEpsilon = Float(try file.positiveNumber("llama.attention.layer_norm_rms_epsilon"))
        vocabulary = try file.strings("tokenizer.ggml.tokens").count
        try check(file)
    }

    private func check(_ file: GGUFFile) throws(GGUFError) {
        func refuse(_ key: String, _ found: Int, _ expected: String) throws(GGUFError) -> Never {
            throw .invalidValue(key: key, found: "\(found)", expected: expected)
        }
        if queryHeads % keyValueHeads != 0 {
            try refuse("llama.attention.head_count", queryHeads, "a multiple of the \(keyValueHeads) key/value heads")
        }
        for (key, size) in [
            ("llama.embedding_length", width), ("llama.feed_forward_length", feedForwardWidth),
            ("heads times their dimension", queryHeads * headDimension),
        ] where size % 32 != 0 {
            try refuse(key, size, "a multiple of 32, the block of quantised weights")
        }
        if keyValueHeads * headDimension % 16 != 0 {
            try refuse("key/value heads times their dimension", keyValueHeads * headDimension, "a multiple of 16")
        }
        let rotated = try file.integer("llama.rope.dimension_count", in: 1...1024, fallback: headDimension)
        if rotated != headDimension || rotated % 2 != 0 {
            try refuse("llama.rope.dimension_count", rotated, "the head dimension \(headDimension), and even")
        }
        if case .string(let scaling) = file.metadata["llama.rope.scaling.type"], scaling != "none" {
            throw .invalidValue(key: "llama.rope.scaling.type", found: scaling, expected: "none")
        }
    }
}
