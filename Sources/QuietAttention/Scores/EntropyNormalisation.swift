// SPDX-License-Identifier: Apache-2.0
// EntropyNormalisation.swift - the power of a distribution that has a given entropy.

/// A distribution sharpened or flattened to a given entropy, in nats:
///
///     r[j] = p[j]^gamma / sum_k p[k]^gamma,    -sum r ln r = H*
///
/// which for p = softmax(x) is softmax(gamma x): a temperature of 1 / gamma. Entropy falls as gamma grows, from the
/// logarithm of the number of positive p at gamma = 0 to that of the number of largest ones. For a row with a sink, give
/// the weights of its keys: what they sum to does not matter.
///
/// Newton's method on gamma, dH/dgamma = -gamma Var(ln p) under r, four steps or so; a step that leaves the interval known
/// to hold the solution halves it instead. Same bits on every platform.
///
/// *Source*: Su, "Another way of attention scaling: entropy normalization", 2021 (kexue.fm 8829); the guards are ours.
public struct EntropyNormalisation: Sendable, Hashable {
    /// gamma.
    public let exponent: Double
    /// r, which sums to 1.
    public let probabilities: [Double]

    /// - Parameters:
    ///   - probabilities: p, 0 and up, at least one positive. They need not sum to 1; zeros, and what is below
    ///     2^-1022 of the largest, become 0.
    ///   - entropy: H*, above the logarithm of the number of largest p and below that of the number of positive ones;
    ///     equal to both where all positive p are equal, for then every gamma has it.
    /// - Throws: ``AttentionError`` of kind `probabilities` or `entropy`.
    public init(_ probabilities: [Double], entropy: Double) throws(AttentionError) {
        self = try inFloatMode { () throws(AttentionError) in try Self(of: probabilities, entropy: entropy) }
    }

    private init(of probabilities: [Double], entropy: Double) throws(AttentionError) {
        for (index, p) in probabilities.enumerated() where !(p >= 0 && p < .infinity) {
            throw AttentionError(
                .probabilities, "probabilities[\(index)]", expected: "a finite number, 0 or more", found: "\(p)")
        }
        guard let largest = probabilities.max(), largest > 0 else {
            throw AttentionError(.probabilities, "probabilities", expected: "a positive one", found: "none")
        }
        // Relative to the largest, so that the largest power is 1 whatever gamma.
        let logarithms = probabilities.map { p in
            p / largest < .leastNormalMagnitude ? -.infinity : ElementaryFunctions.logarithm(p / largest)
        }
        let positive = ElementaryFunctions.logarithm(Double(logarithms.count { $0 > -.infinity }))
        let ties = ElementaryFunctions.logarithm(Double(logarithms.count { $0 == 0 }))
        let isUniform = positive == ties && abs(entropy - positive) <= Self.tolerance
        guard isUniform || (entropy > ties && entropy < positive) else {
            throw AttentionError(
                .entropy, "entropy", expected: positive == ties ? "\(positive)" : "between \(ties) and \(positive)",
                found: "\(entropy)")
        }
        exponent = isUniform ? 1 : Self.exponent(logarithms, entropy: entropy)
        self.probabilities = Moments(logarithms, exponent: exponent).distribution
    }

    /// Of the entropy found.
    private static let tolerance = 1e-13

    /// The entropy at the upper end is at most H*, and that at the lower end at least H*.
    private static func exponent(_ logarithms: [Double], entropy: Double) -> Double {
        var (lower, upper, gamma) = (0.0, Double.infinity, 1.0)
        // Halving an interval of exponents 2^0 ... 2^60 ends at neighbours after some 120 steps at worst.
        for _ in 0..<200 {
            let moments = Moments(logarithms, exponent: gamma)
            let excess = moments.entropy - entropy
            if abs(excess) <= tolerance { break }
            if excess > 0 { lower = gamma } else { upper = gamma }
            var next = gamma + excess / (gamma * moments.variance)
            if !(next > lower && next < upper) { next = upper == .infinity ? 2 * gamma : (lower + upper) / 2 }
            // At most doubled: far from the solution the slope says little.
            next = min(next, 2 * gamma)
            if next == gamma { break }
            gamma = next
        }
        return gamma
    }

    /// A distribution r[j] proportional to e^(gamma l[j]), its entropy and the variance of l under it.
    private struct Moments {
        let distribution: [Double]
        let entropy, variance: Double

        init(_ logarithms: [Double], exponent gamma: Double) {
            let count = logarithms.count
            let powers = logarithms.map { $0 == 0 ? 1 : ElementaryFunctions.exponential(gamma * $0) }
            let total = orderedSum(count) { powers[$0] }
            // A power of 0 counts for nothing, though its logarithm may be -inf.
            let mean = orderedSum(count) { powers[$0] == 0 ? 0 : powers[$0] / total * logarithms[$0] }
            variance = orderedSum(count) { index in
                let distance = logarithms[index] - mean
                return powers[index] == 0 ? 0 : powers[index] / total * distance * distance
            }
            entropy = ElementaryFunctions.logarithm(total) - gamma * mean
            distribution = powers.map { $0 / total }
        }
    }
}
