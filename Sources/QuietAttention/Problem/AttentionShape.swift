// SPDX-License-Identifier: Apache-2.0
// AttentionShape.swift - the dimensions of one attention problem.

/// The dimensions of one attention problem: a batch of equal sequences, or a packed batch of sequences of any lengths.
///
/// | letter | property | meaning |
/// |---|---|---|
/// | B | ``batch`` | sequences |
/// | H | ``queryHeads`` | heads of queries and output |
/// | G | ``keyValueHeads`` | heads of keys and values; query head h reads key/value head h / (H / G) |
/// | L | ``queries`` | rows per sequence |
/// | S | ``keys`` | keys per sequence |
/// | D | ``headDimension`` | length of a query and of a key |
/// | E | ``valueDimension`` | length of a value and of an output row |
///
/// G = H is multi-head attention, G = 1 multi-query attention, anything between grouped-query attention.
///
/// *Edge cases*: B, H, G, L and S may be 0: the work is empty and valid. D and E are 1...1024, L and S at most 2^40.
public struct AttentionShape: Sendable, Hashable {
    /// Sequences.
    public let batch: Int
    /// Heads of the queries and of the output.
    public let queryHeads: Int
    /// Heads of the keys and values.
    public let keyValueHeads: Int
    /// Query rows per sequence; of a packed batch, of its longest sequence.
    public let queries: Int
    /// Keys per sequence; of a packed batch, of its longest sequence.
    public let keys: Int
    /// Length of a query and of a key.
    public let headDimension: Int
    /// Length of a value and of an output row.
    public let valueDimension: Int
    /// Query rows of all sequences together.
    public let totalQueries: Int
    /// Keys of all sequences together.
    public let totalKeys: Int
    /// Where each sequence's queries start, and where the last one's end; nil unless the batch is packed.
    public let queryOffsets: [Int]?
    /// Where each sequence's keys start, and where the last one's end; nil unless the batch is packed.
    public let keyOffsets: [Int]?

    /// A batch of sequences of equal length.
    ///
    /// - Parameters:
    ///   - batch: B, 0 and up.
    ///   - queryHeads: H, 0...2^20.
    ///   - keyValueHeads: G, a divisor of H; nil: as many as query heads.
    ///   - queries: L, 0 and up.
    ///   - keys: S, 0 and up.
    ///   - headDimension: D, 1...1024.
    ///   - valueDimension: E, 1...1024; nil: as long as the head dimension.
    /// - Throws: ``AttentionError`` of kind `dimension`, `headGroups`, or `overflow` when the bytes of a tensor, each
    ///   0 dimension counted as 1, do not fit into `Int`.
    public init(
        batch: Int = 1, queryHeads: Int, keyValueHeads: Int? = nil, queries: Int, keys: Int, headDimension: Int,
        valueDimension: Int? = nil
    ) throws(AttentionError) {
        try Self.check("batch", batch, in: 0...Int.max)
        self.batch = batch
        self.queryHeads = queryHeads
        self.keyValueHeads = keyValueHeads ?? queryHeads
        self.queries = queries
        self.keys = keys
        self.headDimension = headDimension
        self.valueDimension = valueDimension ?? headDimension
        queryOffsets = nil
        keyOffsets = nil
        try Self.check("queries", queries, in: 0...Self.longestSequence)
        try Self.check("keys", keys, in: 0...Self.longestSequence)
        totalQueries = try Self.product("queries", batch, queries)
        totalKeys = try Self.product("keys", batch, keys)
        try checkHeadsAndCounts()
    }

    /// A packed batch: sequences of any lengths, one after another without padding.
    ///
    /// Sequence b owns the query rows `queryOffsets[b]..<queryOffsets[b + 1]` and the keys
    /// `keyOffsets[b]..<keyOffsets[b + 1]`, and is a problem of its own: row 0 of a mask is its first query, and causal
    /// masks align its last query with its last key. Tensors are `[total, heads, dimension]` unless another
    /// ``AttentionLayout`` is asked for.
    ///
    /// - Parameters:
    ///   - queryOffsets: cumulative, from 0 upwards, one more than there are sequences.
    ///   - keyOffsets: the same for the keys; nil: as for the queries.
    ///   - queryHeads: H, 0...2^20.
    ///   - keyValueHeads: G, a divisor of H; nil: as many as query heads.
    ///   - headDimension: D, 1...1024.
    ///   - valueDimension: E, 1...1024; nil: as long as the head dimension.
    /// - Throws: ``AttentionError`` of kind `offsets`, `dimension`, `headGroups` or `overflow`.
    public init(
        packed queryOffsets: [Int], keyOffsets: [Int]? = nil, queryHeads: Int, keyValueHeads: Int? = nil,
        headDimension: Int, valueDimension: Int? = nil
    ) throws(AttentionError) {
        let keyOffsets = keyOffsets ?? queryOffsets
        queries = try Self.longest("queryOffsets", queryOffsets)
        keys = try Self.longest("keyOffsets", keyOffsets)
        guard keyOffsets.count == queryOffsets.count else {
            throw AttentionError(
                .offsets, "keyOffsets", expected: "\(queryOffsets.count) offsets, as many as queryOffsets",
                found: "\(keyOffsets.count)")
        }
        batch = queryOffsets.count - 1
        self.queryHeads = queryHeads
        self.keyValueHeads = keyValueHeads ?? queryHeads
        self.headDimension = headDimension
        self.valueDimension = valueDimension ?? headDimension
        self.queryOffsets = queryOffsets
        self.keyOffsets = keyOffsets
        totalQueries = queryOffsets[batch]
        totalKeys = keyOffsets[batch]
        try checkHeadsAndCounts()
    }

    // MARK: - Element counts

    /// Elements of the queries: B H L D.
    public var queryCount: Int { totalQueries * queryHeads * headDimension }
    /// Elements of the keys: B G S D.
    public var keyCount: Int { totalKeys * keyValueHeads * headDimension }
    /// Elements of the values: B G S E.
    public var valueCount: Int { totalKeys * keyValueHeads * valueDimension }
    /// Elements of the output: B H L E.
    public var outputCount: Int { totalQueries * queryHeads * valueDimension }
    /// Rows, the elements of the log-sum-exp and of the sink share: B H L.
    public var rowCount: Int { totalQueries * queryHeads }

    /// Whether the batch is packed.
    public var isPacked: Bool { queryOffsets != nil }

    // MARK: - Checks

    /// Longest sequence. Sums of a few positions and windows stay far from overflow below it.
    static let longestSequence = 1 << 40
    /// Most heads. Slopes, sinks and means are tables of one number per head, also where there are no rows.
    static let mostHeads = 1 << 20
    /// Longest key, and longest value.
    static let longestDimension = 1024

    /// Of one sequence, padding and keys that no row sees included.
    func keys(ofSequence item: Int) -> Int { keyOffsets.map { $0[item + 1] - $0[item] } ?? keys }

    static func check(queryHeads: Int) throws(AttentionError) {
        try check("queryHeads", queryHeads, in: 0...mostHeads)
    }

    private static func check(_ name: String, _ value: Int, in range: ClosedRange<Int>) throws(AttentionError) {
        guard !range.contains(value) else { return }
        let expected =
            range.upperBound == Int.max
            ? "\(range.lowerBound) or more" : "\(range.lowerBound) to \(range.upperBound)"
        throw AttentionError(.dimension, name, expected: expected, found: "\(value)")
    }

    /// The product of the factors; 0 counts as 1 in the check for overflow, so that partial products fit as well.
    @discardableResult
    private static func product(_ name: String, _ factors: Int...) throws(AttentionError) -> Int {
        var bound = MemoryLayout<Float>.size
        for factor in factors {
            let (partial, overflow) = bound.multipliedReportingOverflow(by: max(factor, 1))
            guard !overflow else {
                throw AttentionError(
                    .overflow, name, expected: "a tensor of at most \(Int.max) bytes",
                    found: "dimensions \(factors.map(String.init).joined(separator: " x "))")
            }
            bound = partial
        }
        return factors.reduce(1, *)
    }

    private static func longest(_ name: String, _ offsets: [Int]) throws(AttentionError) -> Int {
        guard offsets.first == 0 else {
            throw AttentionError(
                .offsets, name, expected: "offsets that start with 0",
                found: offsets.first.map { "\($0) first" } ?? "none")
        }
        var longest = 0
        for index in offsets.indices.dropFirst() {
            guard offsets[index] >= offsets[index - 1] else {
                throw AttentionError(
                    .offsets, "\(name)[\(index)]", expected: "\(offsets[index - 1]) or more, as offsets ascend",
                    found: "\(offsets[index])")
            }
            longest = max(longest, offsets[index] - offsets[index - 1])
        }
        try check("\(name): longest sequence", longest, in: 0...longestSequence)
        return longest
    }

    private func checkHeadsAndCounts() throws(AttentionError) {
        try Self.check(queryHeads: queryHeads)
        try Self.check("keyValueHeads", keyValueHeads, in: 0...Self.mostHeads)
        try Self.check("headDimension", headDimension, in: 1...Self.longestDimension)
        try Self.check("valueDimension", valueDimension, in: 1...Self.longestDimension)
        guard queryHeads == 0 || (keyValueHeads > 0 && queryHeads % keyValueHeads == 0) else {
            throw AttentionError(
                .headGroups, "keyValueHeads", expected: "a divisor of the \(queryHeads) query heads",
                found: "\(keyValueHeads)")
        }
        try Self.product("queries", totalQueries, queryHeads, headDimension)
        try Self.product("keys", totalKeys, keyValueHeads, headDimension)
        try Self.product("values", totalKeys, keyValueHeads, valueDimension)
        try Self.product("output", totalQueries, queryHeads, valueDimension)
    }
}
