// SPDX-License-Identifier: Apache-2.0
// PositionTables.swift - the tables of all positions of an attention problem, and which rows stand where.

/// Cosines and sines for the queries and keys of every batch item. They serve all heads, and batch items with the same
/// positions share them.
struct PositionTables: Sendable {
    /// Where the tables of one item's rows are.
    private struct Item {
        let queries, keys: RotaryTable
        /// Places of row 0 in them.
        let firstQuery, firstKey: Int
    }

    /// One for each item, or a single one for all.
    private let items: [Item]
    private let rowFloats: Int

    /// nil where no rows are rotated.
    init?(
        _ preparation: RowPreparation, _ positions: AttentionPositions, _ shape: AttentionShape, _ mask: AttentionMask
    ) throws(AttentionError) {
        guard let embedding = preparation.embedding else { return nil }
        // No positions beyond Int, whatever the embedding.
        if let identifiers = positions.identifiers { try Self.check(identifiers, shape) }
        let sequences = Self.sequences(shape, embedding.scaling, positions, mask)
        for length in Set(sequences.map(\.length)) { _ = try preparation.angles(length: length) }
        guard shape.rowCount > 0, let first = try preparation.angles(length: sequences.first?.length ?? 0) else {
            return nil
        }
        rowFloats = first.rowFloats
        if let identifiers = positions.identifiers {
            items = try Self.items(sequences, preparation, identifiers, positions.offset, shape)
        } else {
            items = try Self.items(sequences, preparation, offset: positions.offset)
        }
    }

    /// The table of a query's position, and that of a key's.
    func queries(item: Int, row: Int) -> UnsafePointer<Float> {
        let item = items.count == 1 ? items[0] : items[item]
        return UnsafePointer(item.queries.address + (item.firstQuery + row) * rowFloats)
    }

    func keys(item: Int, row: Int) -> UnsafePointer<Float> {
        let item = items.count == 1 ? items[0] : items[item]
        return UnsafePointer(item.keys.address + (item.firstKey + row) * rowFloats)
    }

    // MARK: - Rows in order

    /// One batch item, or all of a uniform batch.
    private struct Sequence {
        let queries, keys: Int
        /// The largest position + 1, where angles go by it; 0 where they do not.
        let length: Int
        /// Position of the first query.
        let diagonal: Int
        /// From the first position to behind the last one.
        var positions: Range<Int> { min(0, diagonal)..<keys }
    }

    private static func sequences(
        _ shape: AttentionShape, _ scaling: RotaryEmbedding.Scaling, _ positions: AttentionPositions,
        _ mask: AttentionMask
    ) -> [Sequence] {
        let names = positions.identifiers
        // Lengths move queries that have no names, and change angles; names of each item change angles, too.
        let shareNames = names.map { $0.queries.count == shape.queries && $0.keys.count == shape.keys } ?? true
        let isUniform =
            !shape.isPacked && (mask.lengths == nil || (names != nil && !scaling.countsPositions))
            && (shareNames || !scaling.countsPositions)
        return (0..<(isUniform ? min(shape.batch, 1) : shape.batch)).map { item in
            let queries = shape.queryOffsets.map { $0[item + 1] - $0[item] } ?? shape.queries
            let keys = shape.keys(ofSequence: item)
            let real = mask.keyLength(item: item, keys: keys)
            let diagonal = mask.diagonal(item: item, queries: queries, keys: keys)
            let realQueries = min(max(0, real - diagonal), queries)
            let last =
                names?.last(item: item, shape, queries: (queries, realQueries), keys: (keys, real)) ?? real - 1
            let length = scaling.countsPositions ? last + 1 + positions.offset : 0
            return Sequence(queries: queries, keys: keys, length: length, diagonal: diagonal)
        }
    }

    /// Items whose angles are the same share one table from their first position to their last.
    private static func items(
        _ sequences: [Sequence], _ preparation: RowPreparation, offset: Int
    ) throws(AttentionError) -> [Item] {
        var ranges: [Int: Range<Int>] = [:]
        for sequence in sequences {
            let (range, other) = (sequence.positions, ranges[sequence.length] ?? sequence.positions)
            ranges[sequence.length] =
                min(range.lowerBound, other.lowerBound)..<max(range.upperBound, other.upperBound)
        }
        var tables: [Int: (queries: RotaryTable, keys: RotaryTable)] = [:]
        for (length, range) in ranges {
            guard let angles = try preparation.angles(length: length) else { continue }
            let positions = range.lowerBound + offset..<range.upperBound + offset
            if !positions.isEmpty { try angles.check(positions.lowerBound...positions.upperBound - 1) }
            let keys = try RotaryTable(angles, positions: positions, .keys)
            let queries = angles.growth.isEmpty ? keys : try RotaryTable(angles, positions: positions, .queries)
            tables[length] = (queries, keys)
        }
        return sequences.map { sequence in
            let first = ranges[sequence.length]!.lowerBound
            let (queries, keys) = tables[sequence.length]!
            return Item(queries: queries, keys: keys, firstQuery: sequence.diagonal - first, firstKey: -first)
        }
    }

    // MARK: - Rows with names

    private static func items(
        _ sequences: [Sequence], _ preparation: RowPreparation, _ identifiers: AttentionPositions.Identifiers,
        _ offset: Int, _ shape: AttentionShape
    ) throws(AttentionError) -> [Item] {
        let isShared =
            !shape.isPacked && identifiers.queries.count == shape.queries && identifiers.keys.count == shape.keys
        // Rows of items with angles of their own cannot share a table either.
        let count = isShared && sequences.count == 1 ? 1 : shape.batch
        var items: [Item] = []
        for index in 0..<count {
            let sequence = sequences[min(index, sequences.count - 1)]
            guard let angles = try preparation.angles(length: sequence.length) else { continue }
            func table(_ names: ArraySlice<Int>, _ side: RotaryAngles.Side) throws(AttentionError) -> RotaryTable {
                let positions = names.map { $0 + offset }
                if let least = positions.min(), let most = positions.max() { try angles.check(least...most) }
                return try RotaryTable(angles, positions: positions, side)
            }
            let queries = identifiers.queries(item: index, shape, rows: sequence.queries)
            let keys = identifiers.keys(item: index, shape, rows: sequence.keys)
            items.append(
                Item(
                    queries: try table(queries, .queries), keys: try table(keys, .keys), firstQuery: 0, firstKey: 0))
        }
        return items
    }

    private static func check(
        _ identifiers: AttentionPositions.Identifiers, _ shape: AttentionShape
    ) throws(AttentionError) {
        let sides = [
            ("queries", identifiers.queries, shape.queries, shape.totalQueries),
            ("keys", identifiers.keys, shape.keys, shape.totalKeys),
        ]
        for (name, positions, rows, total) in sides {
            guard positions.count == total || (!shape.isPacked && positions.count == rows) else {
                throw AttentionError(
                    .positionCount, "positions.identifiers.\(name)",
                    expected: shape.isPacked || rows == total ? "\(total) positions" : "\(rows) or \(total) positions",
                    found: "\(positions.count)")
            }
            let most = AttentionShape.longestSequence
            if let index = positions.firstIndex(where: { !(-most...most).contains($0) }) {
                throw AttentionError(
                    .position, "positions.identifiers.\(name)[\(index)]", expected: "at most 2^40 from 0",
                    found: "\(positions[index])")
            }
        }
    }
}

extension AttentionPositions.Identifiers {
    /// The positions of one item's queries, `rows` of them.
    fileprivate func queries(item: Int, _ shape: AttentionShape, rows: Int) -> ArraySlice<Int> {
        Self.rows(of: queries, from: shape.queryOffsets?[item] ?? item * rows, rows)
    }

    /// The positions of one item's keys.
    fileprivate func keys(item: Int, _ shape: AttentionShape, rows: Int) -> ArraySlice<Int> {
        Self.rows(of: keys, from: shape.keyOffsets?[item] ?? item * rows, rows)
    }

    /// The largest position of an item's queries and keys that are no padding, the first `real` of each; nil without any.
    fileprivate func last(
        item: Int, _ shape: AttentionShape, queries: (all: Int, real: Int), keys: (all: Int, real: Int)
    ) -> Int? {
        let names = [
            self.queries(item: item, shape, rows: queries.all).prefix(queries.real).max(),
            self.keys(item: item, shape, rows: keys.all).prefix(keys.real).max(),
        ]
        return names.compactMap(\.self).max()
    }

    /// A list as long as the rows serves all items.
    private static func rows(of all: [Int], from start: Int, _ rows: Int) -> ArraySlice<Int> {
        all.count == rows ? all[...] : all[start..<start + rows]
    }
}
