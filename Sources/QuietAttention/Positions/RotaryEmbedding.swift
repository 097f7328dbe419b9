// SPDX-License-Identifier: Apache-2.0
// RotaryEmbedding.swift - the angles of rotary position embeddings, and which channels they rotate.

/// Rotary position embedding: pair j of a query or key at position p is rotated by the angle `p theta[j]`.
///
///     (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin),    theta[j] = base^(-2j / r),   j = 0..<r/2
///
/// so that the product of a query at m and a key at n depends on m - n alone. r is ``dimensions``; the channels behind
/// the first r are not rotated. Angles, sines and cosines are computed in Double and rounded once to Float, also at large
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

    /// More than 1.
    public var base: Double
    /// r: channels that are rotated, even, 2 and up; nil: all, or two for each of ``Scaling/thetas(_:attentionFactor:)``.
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

    /// Checks everything, and returns r.
    func checkedDimensions(headDimension: Int) throws(AttentionError) -> Int {
        let dimensions = dimensions ?? scaling.dimensions ?? headDimension
        guard dimensions >= 2, dimensions <= headDimension, dimensions % 2 == 0 else {
            throw Self.refusal(
                "dimensions", expected: "an even number of channels from 2 to the head dimension \(headDimension)",
                found: "\(dimensions)")
        }
        guard base > 1, base <= Self.largestBase else {
            throw Self.refusal("base", expected: "more than 1, at most \(Self.largestBase)", found: "\(base)")
        }
        try scaling.check(dimensions: dimensions)
        return dimensions
    }

    /// Keeps the slowest angle a normal number.
    static let largestBase = 1e300

    static func refusal(_ argument: String, expected: String, found: String) -> AttentionError {
        AttentionError(.rotaryEmbedding, "positions.\(argument)", expected: expected, found: found)
    }
}
