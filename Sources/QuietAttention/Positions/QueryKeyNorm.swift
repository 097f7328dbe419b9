// SPDX-License-Identifier: Apache-2.0
// QueryKeyNorm.swift - normalisation of queries and keys before their positions rotate them.

/// Normalises every query and every key of each head, before rotary embeddings.
///
///     rms:    y = x / sqrt(mean(x^2) + epsilon) * gain
///     layer:  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * gain + bias
///
/// Scores are bounded then: without gain and bias `|q.k| <= headDimension`, and under softmax_1 with n keys the sink keeps at
/// most `1 / (1 + n e^(-scale headDimension))` of a row.
///
/// *Edge cases*: a zero row stays zero under rms without bias. NaN or an infinity makes its row NaN, or 0 where it is finite;
/// rows of finite numbers come out right at every magnitude of Float.
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
    /// `[headDimension]`, or for each head `[queryHeads, headDimension]` and `[keyValueHeads, headDimension]`, as Chameleon and
    /// Command R+ have it; nil: 1.
    public var queryGain, keyGain: [Float]?
    /// Likewise, of ``Kind/layer`` alone; nil: 0.
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

    /// - Parameter queryHeads: nil: not known yet; ``check(queryHeads:headDimension:)`` follows.
    func check(queryHeads: Int?, keyValueHeads: Int, headDimension: Int) throws(AttentionError) {
        guard epsilon >= .leastNormalMagnitude, epsilon.isFinite else {
            throw Self.refusal("epsilon", expected: "a positive, finite number", found: "\(epsilon)")
        }
        if let queryHeads {
            try check(queryHeads: queryHeads, headDimension: headDimension)
        } else {
            for (name, vector) in [("queryGain", queryGain), ("queryBias", queryBias)] {
                guard let vector, vector.isEmpty || !vector.count.isMultiple(of: headDimension) else { continue }
                throw Self.refusal(
                    name, expected: "a multiple of \(headDimension) elements, one for each channel",
                    found: "\(vector.count)")
            }
        }
        for (name, vector) in [("keyGain", keyGain), ("keyBias", keyBias)] {
            try Self.check(name, vector, heads: keyValueHeads, headDimension)
        }
        if kind == .rms, queryBias != nil || keyBias != nil {
            throw Self.refusal("queryBias", expected: "none: RMSNorm has no bias", found: "one")
        }
    }

    func check(queryHeads: Int, headDimension: Int) throws(AttentionError) {
        for (name, vector) in [("queryGain", queryGain), ("queryBias", queryBias)] {
            try Self.check(name, vector, heads: queryHeads, headDimension)
        }
    }

    private static func check(
        _ name: String, _ vector: [Float]?, heads: Int, _ headDimension: Int
    ) throws(AttentionError) {
        // Heads of a cache can be more than Int counts elements of.
        guard let vector, vector.count != headDimension,
            heads.multipliedReportingOverflow(by: headDimension) != (vector.count, false)
        else { return }
        throw refusal(
            name, expected: "\(headDimension) elements, or \(heads) x \(headDimension)", found: "\(vector.count)")
    }

    private static func refusal(_ name: String, expected: String, found: String) -> AttentionError {
        AttentionError(.queryKeyNorm, "queryKeyNorm.\(name)", expected: expected, found: found)
    }
}
