// SPDX-License-Identifier: Apache-2.0
// QueryKeyNorm.swift - normalisation of queries and keys before their positions turn them.

/// Normalises every query and every key of each head, before rotary embeddings.
///
///     rms:    y = x / sqrt(mean(x^2) + epsilon) * gain
///     layer:  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gain + bias
///
/// Scores are bounded then: without gain and bias `|q.k| <= headDimension`, and under softmax_1 with n keys the sink keeps at
/// most `1 / (1 + n e^(-scale headDimension))` of a row.
///
/// *Edge cases*: a zero row stays zero under rms without bias. Rows with elements beyond 1e19, whose squares overflow, come
/// out as 0, or NaN where they are infinite.
///
/// *Source*: Henry et al., "Query-Key Normalization for Transformers", arXiv 2010.04245, 2020; RMSNorm: Zhang and Sennrich,
/// arXiv 1910.07467, 2019.
public struct QueryKeyNorm: Sendable, Hashable {
    /// What a row is divided by.
    public enum Kind: Sendable, Hashable, CaseIterable {
        /// The root of the mean square.
        case rms
        /// The standard deviation, the mean subtracted before.
        case layer
    }

    public var kind: Kind
    /// Positive.
    public var epsilon: Float
    /// `[headDimension]`; nil: 1.
    public var queryGain, keyGain: [Float]?
    /// `[headDimension]`, of ``Kind/layer`` alone; nil: 0.
    public var queryBias, keyBias: [Float]?

    /// RMSNorm, as in Qwen3, Gemma 3 and OLMo 2.
    public static func rms(
        epsilon: Float = 1e-6, queryGain: [Float]? = nil, keyGain: [Float]? = nil
    ) -> QueryKeyNorm {
        QueryKeyNorm(kind: .rms, epsilon: epsilon, queryGain: queryGain, keyGain: keyGain)
    }

    /// LayerNorm, as in vision transformers of 22 billion parameters.
    public static func layer(
        epsilon: Float = 1e-5, queryGain: [Float]? = nil, queryBias: [Float]? = nil, keyGain: [Float]? = nil,
        keyBias: [Float]? = nil
    ) -> QueryKeyNorm {
        QueryKeyNorm(
            kind: .layer, epsilon: epsilon, queryGain: queryGain, keyGain: keyGain, queryBias: queryBias,
            keyBias: keyBias)
    }

    func check(headDimension: Int) throws(AttentionError) {
        guard epsilon >= .leastNormalMagnitude, epsilon.isFinite else {
            throw Self.refusal("epsilon", expected: "a positive, finite number", found: "\(epsilon)")
        }
        let vectors = [
            ("queryGain", queryGain), ("keyGain", keyGain), ("queryBias", queryBias), ("keyBias", keyBias),
        ]
        for (name, vector) in vectors {
            if let vector, vector.count != headDimension {
                throw Self.refusal(name, expected: "\(headDimension) elements", found: "\(vector.count)")
            }
        }
        if kind == .rms, queryBias != nil || keyBias != nil {
            throw Self.refusal("queryBias", expected: "none: RMSNorm has no bias", found: "one")
        }
    }

    private static func refusal(_ name: String, expected: String, found: String) -> AttentionError {
        AttentionError(.queryKeyNorm, "queryKeyNorm.\(name)", expected: expected, found: found)
    }
}
