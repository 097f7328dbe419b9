// SPDX-License-Identifier: Apache-2.0
// AttentionNormaliser.swift - how scores become weights: softmax, and what is used instead.

/// How the scores x of the keys that a row sees become weights p. Keys that a row does not see are left out of every sum,
/// and a row that sees none puts out 0.
///
/// Softmax and clipped softmax have a sink (``AttentionSink``), a log-sum-exp and a sink share; the others have not.
public enum AttentionNormaliser: Sendable, Hashable {
    /// `p[j] = e^x[j] / (e^s + sum_k e^x[k])` with the sink logit s.
    case softmax
    /// `p[j] = clip((zeta - gamma) softmax(x)[j] + gamma, 0, 1)`: weights of exactly 0 and 1. gamma <= 0, zeta >= 1.
    ///
    /// A weight is clipped after it is divided, so the keys are read twice. *Source*: Bondarenko et al., "Quantizable
    /// Transformers", 2023 (arXiv 2306.12929).
    case clippedSoftmax(gamma: ClipGamma, zeta: Double = 1)
    /// `p[j] = 1 / (1 + e^-(x[j] + b))`: every key by itself.
    ///
    /// *Source*: Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", 2024 (arXiv 2409.04431).
    case sigmoid(bias: SigmoidBias = .minusLog(.visible))
    /// `p[j] = max(e^x[j] - 1, 0) / (sum_k |e^x[k] - 1| + epsilon)`: keys with scores of 0 and below weigh nothing. Numerator
    /// and sum are multiplied by `e^-max(0, max x)` before epsilon is added.
    ///
    /// *Source*: Zuhri et al., "Softpick", 2025 (arXiv 2504.20966).
    case softpick(epsilon: Double = 1e-8)
    /// `p[j] = max(x[j], 0)^2 / n`. *Source*: Hua et al., "Transformer Quality in Linear Time", 2022 (arXiv 2202.10447).
    case reluSquared(divisor: KeyCount = .visible)
    /// `p[j] = max(x[j], 0)^2 / (n0 + sum_k max(x[k], 0)^2)`; n0 = 0 normalises, n0 > 0 lets a row stay quiet.
    ///
    /// *Source*: the normalised form is Su's (kexue.fm 9019).
    case normalisedReluSquared(sink: Double = 0)

    /// The gamma of clipped softmax.
    public enum ClipGamma: Sendable, Hashable {
        /// gamma itself, 0 or less.
        case fixed(Double)
        /// `gamma = -alpha / n`, alpha >= 0.
        case overKeys(alpha: Double, KeyCount)
    }

    /// The bias of sigmoid attention.
    public enum SigmoidBias: Sendable, Hashable {
        /// b itself.
        case fixed(Double)
        /// `b = -log n`, so that a row of equal scores of 0 has weights that sum to about 1.
        case minusLog(KeyCount)
    }

    /// Whether there are a sink, a log-sum-exp and a sink share.
    public var hasSink: Bool {
        switch self {
        case .softmax, .clippedSoftmax: true
        default: false
        }
    }

    /// Whether the constant depends on the keys that a row sees.
    var countsKeys: Bool {
        switch self {
        case .clippedSoftmax(.overKeys(_, .visible), _), .sigmoid(.minusLog(.visible)), .reluSquared(.visible): true
        default: false
        }
    }

    /// Checks a buffer for log-sum-exps or sink shares.
    func checkSums(_ argument: String, _ found: Int, _ expected: Int) throws(AttentionError) {
        guard hasSink else {
            throw AttentionError(.composition, argument, expected: "none: \(name) has none", found: "\(found) elements")
        }
        guard found == expected else {
            throw AttentionError(.elementCount, argument, expected: "\(expected) elements", found: "\(found)")
        }
    }

    /// The normaliser's constant in a row that sees `keys` keys.
    func constant(keys: Int) -> Float {
        func count(_ count: KeyCount) -> Double {
            switch count {
            case .fixed(let n): n
            case .visible: Double(keys)
            }
        }
        return switch self {
        case .softmax: 0
        case .clippedSoftmax(.fixed(let gamma), _): Float(gamma)
        case .clippedSoftmax(.overKeys(let alpha, let n), _): keys == 0 ? 0 : Float(-alpha / count(n))
        case .sigmoid(.fixed(let bias)): Float(bias)
        case .sigmoid(.minusLog(let n)): keys == 0 ? 0 : Float(-ElementaryFunctions.logarithm(count(n)))
        case .softpick(let epsilon): Float(epsilon)
        case .reluSquared(let n): Float(count(n))
        case .normalisedReluSquared(let sink): Float(sink)
        }
    }

    /// The name, as errors call it.
    var name: String {
        switch self {
        case .softmax: "softmax"
        case .clippedSoftmax: "clipped softmax"
        case .sigmoid: "sigmoid"
        case .softpick: "softpick"
        case .reluSquared: "squared ReLU"
        case .normalisedReluSquared: "normalised squared ReLU"
        }
    }

    func check() throws(AttentionError) {
        func require(_ condition: Bool, _ argument: String, _ expected: String, _ found: Double) throws(AttentionError)
        {
            guard condition, Float(found).isFinite else {
                throw AttentionError(.normaliser, "normaliser.\(argument)", expected: expected, found: "\(found)")
            }
        }
        func require(_ count: KeyCount, _ argument: String) throws(AttentionError) {
            guard case .fixed(let n) = count else { return }
            try require(n > 0 && Float(1 / n).isFinite, argument, "a finite number above 0", n)
        }
        switch self {
        case .softmax: break
        case .clippedSoftmax(let gamma, let zeta):
            try require(zeta >= 1, "zeta", "a finite number, 1 or more", zeta)
            switch gamma {
            case .fixed(let gamma): try require(gamma <= 0, "gamma", "a finite number, 0 or less", gamma)
            case .overKeys(let alpha, let n):
                try require(alpha >= 0, "gamma.alpha", "a finite number, 0 or more", alpha)
                try require(n, "gamma.keys")
            }
        case .sigmoid(.fixed(let bias)): try require(bias.isFinite, "bias", "a finite number", bias)
        case .sigmoid(.minusLog(let n)): try require(n, "bias.keys")
        case .softpick(let epsilon): try require(epsilon >= 0, "epsilon", "a finite number, 0 or more", epsilon)
        case .reluSquared(let n): try require(n, "divisor")
        case .normalisedReluSquared(let sink): try require(sink >= 0, "sink", "a finite number, 0 or more", sink)
        }
    }
}
