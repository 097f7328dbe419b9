// SPDX-License-Identifier: Apache-2.0
// AttentionPositions.swift - how scores learn of positions, and where queries and keys stand.

/// How queries and keys are rotated by their positions, before the scores.
///
///     try Attention(shape, sink: .softmax1, mask: .causal, positions: .rotary(RotaryEmbedding(base: 500_000)))
///
/// No rotated copy of a tensor is made: rows are rotated a few at a time, just before they are multiplied.
///
/// Key j stands at position j, and query i at `i + keys - queries`, where the diagonal of masks is, which key lengths move
/// (``AttentionMask/Padding``); of a packed batch, counted within each sequence. ``offset(by:)`` moves all of them, ``identifiers(queries:keys:)`` names each.
///
/// Positions rotate queries and keys; a sink, which has no key, has no position: its logit stays as it is.
public struct AttentionPositions: Sendable, Hashable {
    /// The two forms of collinear constrained attention, with t = max(0, (k1 + k2) / 2) of each pair (k1, k2) of what is
    /// given as keys, so that query and key are collinear in the plane of each pair.
    ///
    /// *Source*: Zhu et al., "CoCA", arXiv 2309.08646, 2023.
    public enum CollinearForm: Sendable, Hashable, CaseIterable {
        /// `sum_j t[j] |q[j]|^2 cos((m - n) theta[j])`: relative. The score of a query with the key at its own position is
        /// 0 or more, so that under softmax_1 a causal row keeps at least half of its weight for keys.
        case strict
        /// `(q o R(m) q) . R(n) (t, t)`, o the product by channels, R the rotation: what the authors compute. Not relative;
        /// the constraint that makes it equal the strict form is dropped.
        case slack
    }

    enum Encoding: Sendable, Hashable {
        case none
        case rotary(RotaryEmbedding)
        case collinear(CollinearForm, RotaryEmbedding)
    }

    struct Identifiers: Sendable, Hashable {
        let queries, keys: [Int]
    }

    let encoding: Encoding
    private(set) var offset = 0
    private(set) var identifiers: Identifiers?

    /// `x[i][j] = scale q[i].k[j]`: scores know nothing of positions.
    public static let none = AttentionPositions(encoding: .none)

    /// `x[i][j] = scale (R(m) q[i]).(R(n) k[j])`, m and n the positions of query and key: rotary position embedding.
    public static func rotary(_ embedding: RotaryEmbedding = RotaryEmbedding()) -> AttentionPositions {
        AttentionPositions(encoding: .rotary(embedding))
    }

    /// Collinear constrained attention: keys carry the non-negative lengths t instead of vectors of their own.
    ///
    /// - Parameters:
    ///   - form: which of the two.
    ///   - embedding: rotates all channels of a head: ``Attention`` refuses fewer.
    public static func collinear(
        _ form: CollinearForm, _ embedding: RotaryEmbedding = RotaryEmbedding()
    ) -> AttentionPositions {
        AttentionPositions(encoding: .collinear(form, embedding))
    }

    private init(encoding: Encoding) { self.encoding = encoding }

    /// The same, with all positions so much larger: for a sequence that continues another.
    ///
    /// - Parameter distance: at most 2^40 from 0.
    public func offset(by distance: Int) -> AttentionPositions {
        var positions = self
        positions.offset = distance
        return positions
    }

    /// The same, with named positions.
    ///
    /// - Parameters:
    ///   - queries: `[B, L]`, or `[L]` for all batch items; of a packed batch `[total]`. At most 2^40 from 0.
    ///   - keys: `[B, S]`, or `[S]`; of a packed batch `[total]`.
    public func identifiers(queries: [Int], keys: [Int]) -> AttentionPositions {
        var positions = self
        positions.identifiers = Identifiers(queries: queries, keys: keys)
        return positions
    }

    /// The embedding; nil without one.
    var embedding: RotaryEmbedding? {
        switch encoding {
        case .none: nil
        case .rotary(let embedding), .collinear(_, let embedding): embedding
        }
    }

    /// r, after all checks that need no shape; 0 without an embedding.
    func checkedDimensions(headDimension: Int) throws(AttentionError) -> Int {
        guard abs(Double(offset)) <= Double(AttentionShape.longestSequence) else {
            throw AttentionError(.position, "positions.offset", expected: "at most 2^40 from 0", found: "\(offset)")
        }
        guard let embedding else { return 0 }
        let dimensions = try embedding.checkedDimensions(headDimension: headDimension)
        if case .collinear = encoding, dimensions != headDimension {
            throw RotaryEmbedding.refusal(
                "dimensions", expected: "all \(headDimension) channels: collinear pairs are what replaces keys",
                found: "\(dimensions)")
        }
        return dimensions
    }

    /// Checks that positions can count from the first token of a cache, and that none changes with what comes later.
    func checkFitsCache() throws(AttentionError) {
        guard identifiers == nil else {
            throw AttentionError(
                .position, "positions.identifiers", expected: "none: the tokens of a cache have positions from 0 on",
                found: "identifiers")
        }
        guard embedding?.scaling.dependsOnLength != true else {
            throw RotaryEmbedding.refusal(
                "scaling.length", expected: "the longest sequence to come: keys keep the angles they are appended with",
                found: "none")
        }
    }
}
