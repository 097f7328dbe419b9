// SPDX-License-Identifier: Apache-2.0
// BroadcastTensor.swift - a boolean mask or an additive bias that may be shared by batch items, heads and rows.

/// A tensor `[batch or 1, heads or 1, queries or 1, keys]`: a boolean mask (``AttentionMask/allowing(_:)``) or an
/// additive bias.
///
/// A dimension of extent 1 is shared: every batch item, head or row reads the same entries. For a packed batch, row and
/// key count from the start of each sequence, and the extents are those of the longest one.
public struct BroadcastTensor<Element: Sendable>: Sendable {
    /// Entries per dimension.
    public struct Extents: Sendable, Hashable {
        public var batch, heads, queries, keys: Int

        public init(batch: Int = 1, heads: Int = 1, queries: Int = 1, keys: Int) {
            self.batch = batch
            self.heads = heads
            self.queries = queries
            self.keys = keys
        }
    }

    /// Elements from one entry to the next, per dimension; 0 and up.
    public struct Strides: Sendable, Hashable {
        public var batch, heads, queries, keys: Int

        public init(batch: Int, heads: Int, queries: Int, keys: Int) {
            self.batch = batch
            self.heads = heads
            self.queries = queries
            self.keys = keys
        }
    }

    /// The entries.
    public let values: [Element]
    /// Entries per dimension.
    public let extents: Extents
    /// Elements from one entry to the next; 0 where the extent is 1, and where there are no entries.
    public let strides: Strides

    /// Adjacent values, keys fastest.
    ///
    /// - Throws: ``AttentionError`` of kind `dimension` (negative extent), `overflow` or `elementCount`.
    public init(
        _ values: [Element], batch: Int = 1, heads: Int = 1, queries: Int = 1, keys: Int
    ) throws(AttentionError) {
        let extents = Extents(batch: batch, heads: heads, queries: queries, keys: keys)
        let count = try Self.count(extents)
        guard values.count == count else {
            throw AttentionError(.elementCount, "values", expected: "\(count) elements", found: "\(values.count)")
        }
        self.values = values
        self.extents = extents
        // The count fits into Int; if it is 0, products of extents may not, and count for nothing.
        let strides = Strides(
            batch: heads &* queries &* keys, heads: queries &* keys, queries: keys, keys: 1)
        self.strides = Self.shared(strides, extents, count: count)
    }

    /// Values at explicit strides: entry (b, h, i, j) is `values[b * strides.batch + h * strides.heads + ...]`.
    ///
    /// - Throws: ``AttentionError`` of kind `dimension` (negative extent), `overflow`, or `broadcastStride` (negative, or
    ///   the last entry lies outside the values).
    public init(_ values: [Element], extents: Extents, strides: Strides) throws(AttentionError) {
        let count = try Self.count(extents)
        try Self.checkNotNegative(strides)
        let last = Self.lastIndex(extents, strides)
        guard count == 0 || (last ?? Int.max) < values.count else {
            throw AttentionError(
                .broadcastStride, "strides", expected: "entries within \(values.count) values",
                found: last.map { "a last entry at \($0)" } ?? "a last entry beyond Int")
        }
        self.values = values
        self.extents = extents
        self.strides = Self.shared(strides, extents, count: count)
    }

    private static func shared(_ strides: Strides, _ extents: Extents, count: Int) -> Strides {
        if count == 0 { return Strides(batch: 0, heads: 0, queries: 0, keys: 0) }
        return Strides(
            batch: extents.batch == 1 ? 0 : strides.batch, heads: extents.heads == 1 ? 0 : strides.heads,
            queries: extents.queries == 1 ? 0 : strides.queries, keys: extents.keys == 1 ? 0 : strides.keys)
    }

    private static func count(_ extents: Extents) throws(AttentionError) -> Int {
        var bound = 1
        var count = 1
        for (name, extent) in extents.named {
            guard extent >= 0 else {
                throw AttentionError(.dimension, name, expected: "0 or more", found: "\(extent)")
            }
            let (partial, overflow) = bound.multipliedReportingOverflow(by: max(extent, 1))
            guard !overflow else {
                throw AttentionError(
                    .overflow, name, expected: "at most \(Int.max) entries",
                    found: extents.named.map { "\($0.1)" }.joined(separator: " x "))
            }
            bound = partial
            count *= extent
        }
        return count
    }

    private static func checkNotNegative(_ strides: Strides) throws(AttentionError) {
        let named = [
            ("batch", strides.batch), ("heads", strides.heads), ("queries", strides.queries), ("keys", strides.keys),
        ]
        for (name, stride) in named where stride < 0 {
            throw AttentionError(.broadcastStride, "strides.\(name)", expected: "0 or more", found: "\(stride)")
        }
    }

    /// Index of the last entry, nil when it does not fit into Int.
    private static func lastIndex(_ extents: Extents, _ strides: Strides) -> Int? {
        var last = 0
        let steps = [
            (extents.batch, strides.batch), (extents.heads, strides.heads), (extents.queries, strides.queries),
            (extents.keys, strides.keys),
        ]
        for (extent, stride) in steps {
            let (distance, tooFar) = max(extent - 1, 0).multipliedReportingOverflow(by: stride)
            let (sum, overflow) = last.addingReportingOverflow(distance)
            if tooFar || overflow { return nil }
            last = sum
        }
        return last
    }

    /// Checks the extents against those of a shape.
    ///
    /// - Parameter keys: nil: as many as the shape has.
    func check(_ argument: String, fits shape: AttentionShape, keys: Int? = nil) throws(AttentionError) {
        let wanted = [shape.batch, shape.queryHeads, shape.queries]
        for ((name, extent), dimension) in zip(extents.named, wanted) where extent != 1 && extent != dimension {
            throw AttentionError(
                .broadcastExtent, "\(argument).\(name)", expected: dimension == 1 ? "1" : "1 or \(dimension)",
                found: "\(extent)")
        }
        guard extents.keys == keys ?? shape.keys else {
            throw AttentionError(
                .broadcastExtent, "\(argument).keys", expected: "\(keys ?? shape.keys)", found: "\(extents.keys)")
        }
    }
}

extension BroadcastTensor.Extents {
    /// Entries in all; only of extents that were checked.
    var count: Int { batch * heads * queries * keys }

    var named: [(String, Int)] { [("batch", batch), ("heads", heads), ("queries", queries), ("keys", keys)] }
}
