// SPDX-License-Identifier: Apache-2.0
// RotaryEmbedding.swift - the angles of rotary position embeddings, and how they are scaled to longer sequences.

/// Rotary position embedding: pair j of a query or key at position p is turned by the angle `p theta[j]`.
///
///     (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin),    theta[j] = base^(-2j / r),   j = 0..<r/2
///
/// so that the product of a query at m and a key at n depends on m - n alone. r is ``dimensions``; the channels behind
/// the first r are not turned. Angles, sines and cosines are computed in Double and rounded once to Float, also at large
/// positions, with the same bits on every platform.
///
/// *Source*: Su et al., "RoFormer", arXiv 2104.09864, 2021.
public struct RotaryEmbedding: Sendable, Hashable {
    /// Which channels are a pair.
    public enum Pairing: Sendable, Hashable, CaseIterable {
        /// j and j + r/2: GPT-NeoX, Llama as published by Hugging Face, most models today.
        case halves
        /// 2j and 2j + 1: the paper, GPT-J, Llama's own weights.
        case interleaved
    }

    /// How angles are changed for sequences longer than those of training.
    public enum Scaling: Sendable, Hashable {
        /// `theta[j] = base^(-2j / r)`
        case none

        /// Position interpolation: `theta[j] / factor`.
        ///
        /// *Source*: Chen et al., arXiv 2306.15595, 2023.
        case interpolation(factor: Double)

        /// NTK-aware: `base factor^(r / (r - 2))` in place of the base. The slowest pair is interpolated by the factor, the
        /// fastest not at all.
        ///
        /// *Source*: bloc97, 2023; Su, kexue.fm/archives/9948.
        case ntk(factor: Double)

        /// Dynamic NTK: with L keys, `base (factor L / trainedLength - (factor - 1))^(r / (r - 2))` in place of the base
        /// where L is above the trained length.
        ///
        /// L is `length`, if given, and sequences must not be longer; nil: the keys of each sequence, its key length if
        /// the mask has one. A cache needs the length: its old keys keep the angles they were appended with.
        ///
        /// *Source*: the code of Zhu et al., CoCA, arXiv 2309.08646, 2023.
        case dynamicNTK(factor: Double, trainedLength: Int, length: Int? = nil)

        /// YaRN: interpolates slow pairs, leaves fast ones, mixes between them.
        ///
        ///     theta[j] (1 - ramp[j]) + theta[j] / factor ramp[j],    ramp[j] = (j - low) / (high - low) within 0...1
        ///     low, high = r/2 ln(trainedLength / (2 pi beta)) / ln(base)    with betaFast, betaSlow
        ///
        /// and multiplies queries and keys by the concentration; nil: `0.1 ln(factor) + 1`.
        ///
        /// `wholePairs`: low is rounded down, high up, both within 0...r - 1, as the authors' code does and
        /// Hugging Face by default; gpt-oss does not.
        ///
        /// *Source*: Peng et al., arXiv 2309.00071, 2023; OpenAI, gpt-oss, 2025.
        case yarn(
            factor: Double, trainedLength: Int, betaFast: Double = 32, betaSlow: Double = 1,
            concentration: Double? = nil, wholePairs: Bool = false)

        /// xPos: queries are multiplied by `zeta[j]^((p - centre) / scaleBase)`, keys divided by it, so that products
        /// carry `zeta[j]^((m - n) / scaleBase)`, `zeta[j] = (2j + 0.4 r) / (1.4 r)`.
        ///
        /// The centre cancels: it only keeps the factors small. Positions within 35 scaleBase of it are valid.
        ///
        /// *Source*: Sun et al., "A Length-Extrapolatable Transformer", arXiv 2212.10554, 2022; torchscale.
        case xPos(scaleBase: Double = 512, centre: Int = 0)
    }

    /// More than 1.
    public var base: Double
    /// r: channels that are turned, even, 2 and up; nil: all.
    public var dimensions: Int?
    public var pairing: Pairing
    public var scaling: Scaling

    public init(
        base: Double = 10_000, dimensions: Int? = nil, pairing: Pairing = .halves, scaling: Scaling = .none
    ) {
        self.base = base
        self.dimensions = dimensions
        self.pairing = pairing
        self.scaling = scaling
    }

    /// Whether angles depend on the length of each sequence.
    var dependsOnLength: Bool {
        if case .dynamicNTK(_, _, nil) = scaling { true } else { false }
    }

    /// Checks everything, and returns r.
    func checkedDimensions(headDimension: Int) throws(AttentionError) -> Int {
        let dimensions = dimensions ?? headDimension
        guard dimensions >= 2, dimensions <= headDimension, dimensions % 2 == 0 else {
            throw Self.refusal(
                "dimensions", expected: "an even number of channels from 2 to the head dimension \(headDimension)",
                found: "\(dimensions)")
        }
        guard base > 1, base <= Self.largestBase else {
            throw Self.refusal("base", expected: "more than 1, at most \(Self.largestBase)", found: "\(base)")
        }
        try checkScaling(dimensions)
        return dimensions
    }

    /// Keeps the slowest angle a normal number.
    static let largestBase = 1e300

    private func checkScaling(_ dimensions: Int) throws(AttentionError) {
        switch scaling {
        case .none: break
        case .interpolation(let factor): try Self.check(factor: factor)
        case .ntk(let factor):
            try Self.check(factor: factor)
            try Self.checkPairs(dimensions)
        case .dynamicNTK(let factor, let trainedLength, let length):
            try Self.check(factor: factor)
            try Self.checkPairs(dimensions)
            try Self.check("trainedLength", trainedLength)
            if let length { try Self.check("length", length) }
        case .yarn(let factor, let trainedLength, let betaFast, let betaSlow, let concentration, _):
            try Self.check(factor: factor)
            try Self.check("trainedLength", trainedLength)
            guard betaSlow > 0, betaSlow < betaFast, betaFast <= 1e9, betaSlow >= 1e-9 else {
                throw Self.refusal(
                    "scaling.betaFast", expected: "betaFast > betaSlow, both from 1e-9 to 1e9",
                    found: "\(betaFast) and \(betaSlow)")
            }
            if let concentration, !(concentration > 0 && concentration <= 1e9) {
                throw Self.refusal(
                    "scaling.concentration", expected: "more than 0, at most 1e9", found: "\(concentration)")
            }
        case .xPos(let scaleBase, let centre):
            guard scaleBase >= 1, scaleBase <= 1e12 else {
                throw Self.refusal("scaling.scaleBase", expected: "1 to 1e12", found: "\(scaleBase)")
            }
            guard abs(Double(centre)) <= Double(AttentionShape.longestSequence) else {
                throw Self.refusal("scaling.centre", expected: "at most 2^40 from 0", found: "\(centre)")
            }
        }
    }

    private static func check(factor: Double) throws(AttentionError) {
        guard factor >= 1, factor <= 1e9 else {
            throw refusal("scaling.factor", expected: "1 to 1e9", found: "\(factor)")
        }
    }

    private static func checkPairs(_ dimensions: Int) throws(AttentionError) {
        guard dimensions >= 4 else {
            throw refusal(
                "dimensions", expected: "4 or more for NTK scaling, whose exponent is r / (r - 2)",
                found: "\(dimensions)")
        }
    }

    private static func check(_ name: String, _ length: Int) throws(AttentionError) {
        guard length >= 1, length <= AttentionShape.longestSequence else {
            throw refusal("scaling.\(name)", expected: "1 to 2^40 positions", found: "\(length)")
        }
    }

    static func refusal(_ argument: String, expected: String, found: String) -> AttentionError {
        AttentionError(.rotaryEmbedding, "positions.\(argument)", expected: expected, found: found)
    }
}
