// SPDX-License-Identifier: Apache-2.0
// AttentionMask.swift - which keys a query row sees.

/// Which keys a query row sees: a band around the diagonal, cut by key lengths and by a boolean mask.
///
///     let mask = AttentionMask.causal.keyLengths([512, 300])
///
/// The diagonal is aligned bottom right: row i stands at key `i + keys - queries`, so the last query stands at the last
/// key whatever their numbers. Key lengths are padding: they cut what is seen and do not move the diagonal.
///
/// A key that a row does not see is never read into that row: NaN there does no harm. Blocks of keys that no row sees
/// cost nothing.
public struct AttentionMask: Sendable {
    private enum Band {
        /// Keys seen before and after the diagonal; nil: all.
        case around(before: Int?, after: Int?)
        /// The keys that end with the diagonal.
        case last(Int)
    }

    private let band: Band
    private(set) var lengths: [Int]?
    private(set) var allowed: BroadcastTensor<Bool>?

    /// Every row sees every key.
    public static let none = AttentionMask(band: .around(before: nil, after: nil))

    /// Row i sees the keys up to and including the diagonal: `j <= i + keys - queries`.
    ///
    /// *Edge case*: with more queries than keys the first rows see no key.
    public static let causal = AttentionMask(band: .around(before: nil, after: 0))

    /// A causal sliding window: row i sees the last `keys` keys that end with the diagonal, itself included.
    ///
    /// - Parameter keys: width, 1 and up; ``Attention`` refuses less with kind `window`.
    public static func window(_ keys: Int) -> AttentionMask {
        AttentionMask(band: .last(keys))
    }

    /// A sliding window: row i sees the diagonal, `before` keys to its left and `after` keys to its right.
    ///
    /// - Parameters:
    ///   - before: 0 and up; nil: all to the left.
    ///   - after: 0 and up; nil: all to the right. ``Attention`` refuses negative numbers with kind `window`.
    public static func window(before: Int?, after: Int?) -> AttentionMask {
        AttentionMask(band: .around(before: before, after: after))
    }

    /// The same mask, where batch item b has only its first `lengths[b]` keys; the rest is padding.
    ///
    /// - Parameter lengths: one per batch item, 0...keys.
    public func keyLengths(_ lengths: [Int]) -> AttentionMask {
        var mask = self
        mask.lengths = lengths
        return mask
    }

    /// The same mask, where a row also needs `true` at a key to see it.
    public func allowing(_ allowed: BroadcastTensor<Bool>) -> AttentionMask {
        var mask = self
        mask.allowed = allowed
        return mask
    }

    private init(band: Band) { self.band = band }

    /// The same mask, where a row sees no key more than `window` - 1 before the diagonal; nil: no such bound.
    func within(window: Int?) -> AttentionMask {
        guard let window else { return self }
        let narrower: Band =
            switch band {
            case .last(let keys): .last(min(keys, window))
            case .around(let before, let after): .around(before: min(before ?? Int.max, window - 1), after: after)
            }
        var mask = AttentionMask(band: narrower)
        (mask.lengths, mask.allowed) = (lengths, allowed)
        return mask
    }

    /// Checks windows, lengths and extents against the shape.
    func check(fits shape: AttentionShape) throws(AttentionError) {
        switch band {
        case .last(let keys):
            guard keys >= 1 else {
                throw AttentionError(.window, "mask.window", expected: "1 key or more", found: "\(keys)")
            }
        case .around(let before, let after):
            for (name, keys) in [("before", before ?? 0), ("after", after ?? 0)] where keys < 0 {
                throw AttentionError(.window, "mask.window.\(name)", expected: "0 keys or more", found: "\(keys)")
            }
        }
        if let lengths { try check(lengths, shape) }
        try allowed?.check("mask.allowing", fits: shape)
    }

    private func check(_ lengths: [Int], _ shape: AttentionShape) throws(AttentionError) {
        guard lengths.count == shape.batch else {
            throw AttentionError(
                .keyLengthCount, "mask.keyLengths", expected: "\(shape.batch) lengths, one per batch item",
                found: "\(lengths.count)")
        }
        for (item, length) in lengths.enumerated() {
            let keys = shape.keyOffsets.map { $0[item + 1] - $0[item] } ?? shape.keys
            guard (0...keys).contains(length) else {
                throw AttentionError(
                    .keyLength, "mask.keyLengths[\(item)]", expected: "0 to \(keys)", found: "\(length)")
            }
        }
    }

    /// Beyond every sequence, and far enough from the ends of Int for sums.
    private static let unbounded = AttentionShape.longestSequence

    /// Row i of a sequence sees the keys `max(0, i + first) ..< min(keys, i + last)`.
    ///
    /// Sequences have at most 2^40 rows and keys, so an offset of 2^40 or more is no bound, and neither is one below
    /// -2^40: cutting there changes nothing and keeps every sum within Int.
    func offsets(queries: Int, keys: Int) -> (first: Int, last: Int) {
        let diagonal = keys - queries
        var (first, last) = (-Self.unbounded, Self.unbounded)
        switch band {
        case .last(let width):
            last = diagonal + 1
            first = last - min(width, Self.unbounded)
        case .around(let before, let after):
            if let before { first = diagonal - min(before, Self.unbounded) }
            if let after { last = diagonal + min(after, Self.unbounded) + 1 }
        }
        return (max(first, -Self.unbounded), min(last, Self.unbounded))
    }
}
