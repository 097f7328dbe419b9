// SPDX-License-Identifier: Apache-2.0
// Golden.swift - loads Tests/Golden/golden.json: values to 50 digits, and what known wrong formulas give.

import Foundation

/// The part of the file that the passes are compared with. All inputs are exact in Float.
public struct Golden: Decodable, Sendable {
    public let rows: [Row]
    public let attention: [Attention]
    public let zeroTailPadding: ZeroTailPadding
    public let otherNormalisers: [Normaliser]
    public let positions: Positions
    public let diagnostics: Diagnostics

    /// One row of scores `x`, its sink, and what normalising it gives.
    public struct Row: Decodable, Sendable, CustomStringConvertible {
        public let name: String
        public let x: [GoldenNumber]
        public let sinkLogit: GoldenNumber
        public let weights: [GoldenNumber]
        public let sinkShare: GoldenNumber
        public let logSumExp: GoldenNumber
        /// -sum_j p[j] ln p[j] over the keys alone, whose weights sum to less than 1, and with the sink's share.
        public let rawEntropy, entropyWithSink: GoldenNumber
        /// Of a loss sum_j dp[j] p[j] + dL lse, with regard to the scores and the sink; where there is `dp`.
        public let weightGradients, scoreGradients: [GoldenNumber]?
        public let logSumExpGradient, sinkGradient: GoldenNumber?
        /// The weights that four known bugs give, by the bug's name.
        public let traps: [String: [GoldenNumber]]?
        public var description: String { name }

        enum CodingKeys: String, CodingKey {
            case name, x
            case sinkLogit = "sink_logit_f64"
            case weights = "p_f64"
            case sinkShare = "p_sink_f64"
            case logSumExp = "lse_f64"
            case rawEntropy = "entropy_raw_f64"
            case entropyWithSink = "entropy_with_sink_f64"
            case weightGradients = "dp"
            case scoreGradients = "dx_f64"
            case logSumExpGradient = "dlse"
            case sinkGradient = "dsink_f64"
            case traps = "traps_f64"
        }
    }

    /// One head of attention. Matrices are rows of numbers.
    public struct Attention: Decodable, Sendable, CustomStringConvertible {
        public let name: String
        public let queryCount, keyCount, headDimension, valueDimension: Int
        public let sink: GoldenNumber
        /// `none`, `causal_bottom_right` or `causal_window_2`.
        public let mask: String
        /// `1/sqrt(d)`, `log512(n)/sqrt(d)` or `max(1,log_4(n))/sqrt(d)`, n being the row's visible keys.
        public let scale: String
        /// `-(i-j)/4` or `+j/4 (column only)`.
        public let bias: String?
        public let queries, keys, values: [[GoldenNumber]]
        public let visibleKeys: [Int]
        public let output: [[GoldenNumber]]
        public let logSumExp, sinkShare: [GoldenNumber]
        /// Of a loss sum dO O + sum dL lse.
        public let outputGradient: [[GoldenNumber]]
        public let logSumExpGradient: [GoldenNumber]?
        public let queryGradient, keyGradient, valueGradient: [[GoldenNumber]]?
        public let sinkGradient: GoldenNumber?
        public var description: String { name }

        enum CodingKeys: String, CodingKey {
            case name, sink, mask, scale, bias
            case queryCount = "Lq"
            case keyCount = "Lk"
            case headDimension = "d"
            case valueDimension = "dv"
            case queries = "Q"
            case keys = "K"
            case values = "V"
            case visibleKeys = "visible_keys"
            case output = "O_f64"
            case logSumExp = "LSE_f64"
            case sinkShare = "P_sink_f64"
            case outputGradient = "dO"
            case logSumExpGradient = "dLSE"
            case queryGradient = "dQ_f64"
            case keyGradient = "dK_f64"
            case valueGradient = "dV_f64"
            case sinkGradient = "dsink_f64"
        }
    }

    /// What softmax_1 over 5 keys gives, and what it gives when they are padded to 8 with zeros that are not masked.
    public struct ZeroTailPadding: Decodable, Sendable {
        public let queries, keys, values, output, trap: [[GoldenNumber]]

        enum CodingKeys: String, CodingKey {
            case queries = "Q"
            case keys = "K"
            case values = "V"
            case output = "O_f64"
            case trap = "O_TRAP_if_zero_padding_is_not_masked_f64"
        }
    }

    /// One row of scores `x` and its weights by a normaliser beside softmax.
    public struct Normaliser: Decodable, Sendable, CustomStringConvertible {
        public let name: String
        public let x, weights: [GoldenNumber]
        /// Of a loss sum_j dp[j] p[j].
        public let weightGradients, scoreGradients: [GoldenNumber]
        public let gamma, zeta: Double?
        public var description: String { name }

        enum CodingKeys: String, CodingKey {
            case name, x, gamma, zeta
            case weights = "p_f64"
            case weightGradients = "dp"
            case scoreGradients = "dx_f64"
        }
    }

    /// Scores, slopes and angles of position encodings.
    public struct Positions: Decodable, Sendable {
        /// By the number of heads.
        public let alibiSlopes: [String: [Double]]
        /// log_512 n, by n.
        public let log512: [String: GoldenNumber]

        public let coca: CoCA
        public let dynamicNTK: [DynamicNTK]
        /// By name.
        public let checkpoints: [String: Checkpoint]

        /// One query at m, one key at n, pairs in halves.
        public struct CoCA: Decodable, Sendable {
            public let base: Double
            public let query, lengths: [GoldenNumber]
            public let m, n: Int
            public let strict, slack: GoldenNumber

            enum CodingKeys: String, CodingKey {
                case base, m, n
                case query = "q"
                case lengths = "t_after_relu_length_d_half"
                case strict = "score_strict_unscaled_f64"
                case slack = "score_slack_unscaled_f64"
            }
        }

        public struct DynamicNTK: Decodable, Sendable {
            public let base, factor: Double
            public let dimensions, trainedLength, length: Int
            public let scaledBase: Double

            enum CodingKeys: String, CodingKey {
                case base, factor
                case dimensions = "d"
                case trainedLength = "L_train"
                case length = "seq_len"
                case scaledBase = "new_base_f64"
            }
        }

        enum CodingKeys: String, CodingKey {
            case coca, log512, checkpoints
            case alibiSlopes = "alibi_slopes"
            case dynamicNTK = "dynamic_ntk_base"
        }
    }

    enum CodingKeys: String, CodingKey {
        case rows, attention, positions, diagnostics
        case otherNormalisers = "other_normalisers"
        case zeroTailPadding = "zero_tail_padding_trap"
    }

    /// The file of this package's sources.
    public static let shared: Golden = {
        let file = testsDirectory.appendingPathComponent("Golden/golden.json")
        do {
            return try JSONDecoder().decode(Golden.self, from: Data(contentsOf: file))
        } catch {
            fatalError("cannot load \(file.path): \(error)")
        }
    }()
}

/// A number, or one of the strings "inf" and "-inf".
public struct GoldenNumber: Decodable, Sendable {
    public let value: Double
    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let number = try? container.decode(Double.self) {
            value = number
        } else {
            value = Double(try container.decode(String.self)) ?? .nan
        }
    }
}

extension Sequence where Element == GoldenNumber {
    public var doubles: [Double] { map(\.value) }
    public var floats: [Float] { map { Float($0.value) } }
}

extension Sequence where Element == [GoldenNumber] {
    public var doubles: [Double] { flatMap(\.doubles) }
    public var floats: [Float] { flatMap(\.floats) }
}

/// The package's `Tests` directory.
public let testsDirectory = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent()
