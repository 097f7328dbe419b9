// SPDX-License-Identifier: Apache-2.0
// QueryPlaces.swift - where queries stand, and how many keys they see in all, where keys and queries do not end together.

/// Where the queries of a call stand among the tokens of a cache, where they are not the last of them.
///
/// Everything that depends on a query's place counts from here: causal masks and windows, distances of ALiBi, the angles of
/// rotary embeddings and of collinear attention. Position p is that of token p of the cache, counted from its first token
/// on, whether or not the cache holds it: queries that read a prefix stand behind its end.
///
///     // Two requests of 3 and 2 new tokens, both behind a prefix of 4096.
///     let places = QueryPlaces(positions: [4096, 4097, 4098, 4096, 4097])
///     let shared = try attention.partial(queries: q, cache: prefix, places: places, mask: .none)
///
/// *The n of log n*. Factors, sinks and normalisers that count the keys of a row count those that it sees in the cache of the
/// call. Where that is a part of what it sees in all, `keyCounts` says how many those are.
public struct QueryPlaces: Sendable, Hashable {
    /// `[B, L]`, or `[L]` for all caches; with `queryOffsets` `[total]`. At most 2^40 from 0, in any order, and any number of
    /// queries at one position.
    public let positions: [Int]
    /// The keys that each query sees in all, in the order of `positions`, the same for all heads; nil: those that it sees in
    /// the cache of the call.
    public let keyCounts: [Int]?

    /// - Parameters:
    ///   - positions: of each query.
    ///   - keyCounts: n of each query, 0 and up; nil: the keys that it sees in the cache of the call.
    public init(positions: [Int], keyCounts: [Int]? = nil) {
        (self.positions, self.keyCounts) = (positions, keyCounts)
    }

    /// Checks numbers against those of the shape's queries.
    func check(fits shape: AttentionShape) throws(AttentionError) {
        try Self.check("positions", positions, shape, -AttentionShape.longestSequence...AttentionShape.longestSequence)
        if let keyCounts { try Self.check("keyCounts", keyCounts, shape, 0...AttentionShape.longestSequence) }
    }

    private static func check(
        _ name: String, _ numbers: [Int], _ shape: AttentionShape, _ range: ClosedRange<Int>
    ) throws(AttentionError) {
        let isShared = !shape.isPacked && numbers.count == shape.queries
        guard isShared || numbers.count == shape.totalQueries else {
            throw AttentionError(
                .positionCount, "places.\(name)",
                expected: shape.isPacked || shape.batch == 1
                    ? "\(shape.totalQueries), one per query" : "\(shape.queries) or \(shape.totalQueries)",
                found: "\(numbers.count)")
        }
        if let index = numbers.firstIndex(where: { !range.contains($0) }) {
            throw AttentionError(
                .position, "places.\(name)[\(index)]", expected: "\(range.lowerBound) to \(range.upperBound)",
                found: "\(numbers[index])")
        }
    }

    /// Those of a sequence whose first query is query `start` of all.
    func positions(start: Int, count: Int) -> ArraySlice<Int> { Self.part(positions, start, count) }

    func keyCounts(start: Int, count: Int) -> ArraySlice<Int>? { keyCounts.map { Self.part($0, start, count) } }

    private static func part(_ numbers: [Int], _ start: Int, _ count: Int) -> ArraySlice<Int> {
        start + count <= numbers.count ? numbers[start..<start + count] : numbers[..<count]
    }
}

/// The places of rows that do not follow each other, in memory that kernels read, for as long as this lives.
final class RowPlaces: @unchecked Sendable {
    let address: UnsafeMutablePointer<Int>
    private let count: Int

    /// nil where rows follow each other: their first one says where they all stand.
    init?(_ positions: ArraySlice<Int>) {
        guard let first = positions.first, !positions.elementsEqual(first..<first + positions.count) else { return nil }
        count = positions.count
        address = .allocate(capacity: count)
        for (index, position) in positions.enumerated() { (address + index).initialize(to: position) }
    }

    deinit { address.deallocate() }

    subscript(row: Int) -> Int { address[row] }

    /// The first and the last place.
    var extremes: (least: Int, most: Int) {
        (0..<count).reduce((address[0], address[0])) { (min($0.0, address[$1]), max($0.1, address[$1])) }
    }
}
