// SPDX-License-Identifier: Apache-2.0
// AttentionMask.swift - which keys a query row sees.

/// Which keys a query row sees: a band around the diagonal, cut by key lengths and by a boolean mask.
///
///     let training = AttentionMask.causal.keyLengths([512, 300], padding: .queriesAndKeys)  // whole texts, padded
///     let decoding = AttentionMask.causal.keyLengths([512, 300])  // the last query stands at each item's last key
///
/// The diagonal is aligned bottom right: row i stands at key `i + keys - queries`, so the last query stands at the last
/// key whatever their numbers. Under key lengths the last query of batch item b stands at that item's last key,
/// `lengths[b] - 1`: a batch gives what its items give one by one, each with its own keys. See ``Padding`` for batches
/// whose queries are padded as well.
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

    /// What key lengths tell of a batch.
    public enum Padding: Sendable, Hashable {
        /// Keys alone are padded: row i of batch item b stands at key `i + lengths[b] - queries`, and rows that stand
        /// before key 0 see what the mask lets them see from there: under a causal one nothing. Caches of a fixed size of
        /// which each item fills a part.
        case keys
        /// Queries are padded as keys are: row i stands at key `i + keys - queries` whatever the lengths, and rows from
        /// `lengths[b]` on are padding. Batches of whole texts, as encoders read them.
        case queriesAndKeys
    }

    private let band: Band
    private(set) var lengths: [Int]?
    private var padding = Padding.keys
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
    /// Masks, distances of ALiBi and positions of queries count from where ``Padding`` says that rows stand.
    ///
    /// - Parameters:
    ///   - lengths: one per batch item, 0...keys.
    ///   - padding: what is padded.
    public func keyLengths(_ lengths: [Int], padding: Padding = .keys) -> AttentionMask {
        var mask = self
        (mask.lengths, mask.padding) = (lengths, padding)
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
        (mask.lengths, mask.padding, mask.allowed) = (lengths, padding, allowed)
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
            let keys = shape.keys(ofSequence: item)
            guard (0...keys).contains(length) else {
                throw AttentionError(
                    .keyLength, "mask.keyLengths[\(item)]", expected: "0 to \(keys)", found: "\(length)")
            }
        }
    }

    /// Keys of a batch item that are no padding, of `keys` that there are.
    func keyLength(item: Int, keys: Int) -> Int { min(lengths?[item] ?? keys, keys) }

    /// The key at which row 0 of a batch item stands.
    func diagonal(item: Int, queries: Int, keys: Int) -> Int {
        (padding == .keys ? keyLength(item: item, keys: keys) : keys) - queries
    }

    /// Rows stand within 2^41 of 0, and keys end at 2^40: so far from a row is no bound, and sums are within Int.
    private static let unbounded = AttentionShape.longestSequence * 4

    private static func within(_ reach: Int, _ place: Int) -> Int { min(max(place, -reach), reach) }

    /// Whether which keys a row sees depends on where it stands.
    var isBand: Bool { offsets != (-Self.unbounded, Self.unbounded) }

    /// The keys that rows may see between them, boolean masks and key lengths aside.
    ///
    /// - Parameters:
    ///   - places: the keys at which they stand, from the first to behind the last; they may lie outside the keys.
    ///   - keys: of the sequence.
    /// - Returns: an empty range where they see none.
    public func visibleKeys(ofRowsAt places: Range<Int>, keys: Int) -> Range<Int> {
        guard let last = places.last else { return 0..<0 }
        let reach = 2 * Self.unbounded
        let begin = max(0, Self.within(reach, places.lowerBound) + offsets.first)
        let end = min(keys, Self.within(reach, last) + offsets.last)
        return begin < end ? begin..<end : 0..<0
    }

    /// A row that stands at key p sees the keys `max(0, p + first) ..< min(keys, p + last)`.
    var offsets: (first: Int, last: Int) {
        switch band {
        case .last(let width): (1 - Self.within(Self.unbounded, width), 1)
        case .around(let before, let after):
            (
                -Self.within(Self.unbounded, before ?? Int.max),
                min(Self.within(Self.unbounded, after ?? Int.max), Self.unbounded - 1) + 1
            )
        }
    }
}
