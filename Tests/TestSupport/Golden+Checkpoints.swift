// SPDX-License-Identifier: Apache-2.0
// Golden+Checkpoints.swift - rotary embeddings of checkpoints: what a config.json says, key by key, and the angles that follow.

import AttentionReference
import QuietAttention

extension Golden.Positions {
    public struct Checkpoint: Decodable, Sendable {
        public let dimensions: Int
        public let thetas: [Double]
        public let attentionFactor: Double
        public let parameters: RopeParameters

        /// For the library.
        public var embedding: RotaryEmbedding? {
            parameters.scaling.map { RotaryEmbedding(base: parameters.base, scaling: $0) }
        }

        /// For the reference.
        public var reference: ReferencePositions? {
            embedding.map { ReferencePositions($0, headDimension: dimensions, length: 0) }
        }

        enum CodingKeys: String, CodingKey {
            case dimensions = "d"
            case thetas = "thetas_f64"
            case attentionFactor = "attention_factor_f64"
            case parameters = "rope_parameters"
        }
    }

    /// `rope_parameters`; `length` is the largest position + 1.
    public struct RopeParameters: Decodable, Sendable {
        let base: Double
        let type: String
        let factor, betaFast, betaSlow, attentionFactor, mscale, mscaleAllDim, lowFreqFactor, highFreqFactor: Double?
        let shortFactor, longFactor: [Double]?
        let trainedLength, length: Int?
        let truncate: Bool?

        enum CodingKeys: String, CodingKey {
            case factor, mscale, length, truncate
            case base = "rope_theta"
            case type = "rope_type"
            case trainedLength = "original_max_position_embeddings"
            case betaFast = "beta_fast"
            case betaSlow = "beta_slow"
            case attentionFactor = "attention_factor"
            case mscaleAllDim = "mscale_all_dim"
            case lowFreqFactor = "low_freq_factor"
            case highFreqFactor = "high_freq_factor"
            case shortFactor = "short_factor"
            case longFactor = "long_factor"
        }

        var scaling: RotaryEmbedding.Scaling? {
            guard let factor else { return type == "default" ? RotaryEmbedding.Scaling.none : nil }
            let trained = trainedLength ?? 0
            switch type {
            case "linear": return .linear(factor: factor)
            case "dynamic": return .dynamic(factor: factor, trainedLength: trained, length: length)
            case "yarn":
                return .yarn(
                    factor: factor, trainedLength: trained, betaFast: betaFast ?? 32, betaSlow: betaSlow ?? 1,
                    attentionFactor: attentionFactor, mscale: mscale, mscaleAllDim: mscaleAllDim,
                    truncate: truncate ?? true)
            case "longrope":
                return .longrope(
                    shortFactor: shortFactor ?? [], longFactor: longFactor ?? [], factor: factor,
                    trainedLength: trained, attentionFactor: attentionFactor, length: length)
            case "llama3":
                return .llama3(
                    factor: factor, lowFreqFactor: lowFreqFactor ?? 0, highFreqFactor: highFreqFactor ?? 0,
                    trainedLength: trained)
            default: return nil
            }
        }
    }
}
