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

    /// nil where no rows are turned.
    init?(
        _ preparation: RowPreparation, _ positions: AttentionPositions, _ shape: AttentionShape, _ mask: AttentionMask
    ) throws(AttentionError) {
        guard let embedding = preparation.embedding else { return nil }
        // No positions beyond Int, whatever the embedding.
        if let identifiers = positions.identifiers { try Self.check(identifiers, shape) }
        let sequences = Self.sequences(shape, embedding, mask, areNamed: positions.identifiers != nil)
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
        /// Keys that dynamic NTK scaling counts; the same for all where angles do not depend on it.
        let length: Int
        /// Position of the first query.
        let diagonal: Int
        /// From the first position to behind the last one.
        var positions: Range<Int> { min(0, diagonal)..<keys }
    }

    private static func sequences(
        _ shape: AttentionShape, _ embedding: RotaryEmbedding, _ mask: AttentionMask, areNamed: Bool
    ) -> [Sequence] {
        // Lengths move queries that have no names, and change angles.
        let isUniform = !shape.isPacked && (mask.lengths == nil || (areNamed && !embedding.dependsOnLength))
        return (0..<(isUniform ? min(shape.batch, 1) : shape.batch)).map { item in
            let queries = shape.queryOffsets.map { $0[item + 1] - $0[item] } ?? shape.queries
            let keys = shape.keyOffsets.map { $0[item + 1] - $0[item] } ?? shape.keys
            return Sequence(
                queries: queries, keys: keys,
                length: embedding.dependsOnLength ? mask.keyLength(item: item, keys: keys) : shape.keys,
                diagonal: mask.diagonal(item: item, queries: queries, keys: keys))
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
            func table(_ all: [Int], _ start: Int, _ rows: Int, _ side: RotaryAngles.Side) throws(AttentionError)
                -> RotaryTable
            {
                let first = all.count == rows ? 0 : start
                let positions = all[first..<first + rows].map { $0 + offset }
                if let least = positions.min(), let most = positions.max() { try angles.check(least...most) }
                return try RotaryTable(angles, positions: positions, side)
            }
            let queryStart = shape.queryOffsets?[index] ?? index * sequence.queries
            let keyStart = shape.keyOffsets?[index] ?? index * sequence.keys
            items.append(
                Item(
                    queries: try table(identifiers.queries, queryStart, sequence.queries, .queries),
                    keys: try table(identifiers.keys, keyStart, sequence.keys, .keys), firstQuery: 0, firstKey: 0))
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
