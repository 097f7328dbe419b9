// SPDX-License-Identifier: Apache-2.0
// ShapeTests.swift - dimensions, element counts, and the errors of shapes.

import QuietAttention
import Testing

@Suite struct ShapeTests {
    @Test func defaultsAndCounts() throws {
        let shape = try AttentionShape(queryHeads: 6, keyValueHeads: 2, queries: 5, keys: 7, headDimension: 3)
        #expect(shape.batch == 1 && shape.valueDimension == 3 && !shape.isPacked)
        #expect(try AttentionShape(queryHeads: 6, queries: 5, keys: 7, headDimension: 3).keyValueHeads == 6)
        let batch = try AttentionShape(
            batch: 2, queryHeads: 6, keyValueHeads: 2, queries: 5, keys: 7, headDimension: 3, valueDimension: 4)
        #expect(batch.queryCount == 2 * 6 * 5 * 3)
        #expect(batch.keyCount == 2 * 2 * 7 * 3)
        #expect(batch.valueCount == 2 * 2 * 7 * 4)
        #expect(batch.outputCount == 2 * 6 * 5 * 4)
        #expect(batch.rowCount == 2 * 6 * 5)
    }

    @Test func packedCounts() throws {
        let shape = try AttentionShape(
            packed: [0, 3, 3, 8], keyOffsets: [0, 2, 6, 7], queryHeads: 4, keyValueHeads: 2, headDimension: 8)
        #expect(shape.isPacked && shape.batch == 3)
        #expect(shape.queries == 5 && shape.keys == 4)
        #expect(shape.totalQueries == 8 && shape.totalKeys == 7)
        #expect(shape.queryCount == 8 * 4 * 8 && shape.keyCount == 7 * 2 * 8 && shape.rowCount == 8 * 4)
        #expect(try AttentionShape(packed: [0, 3], queryHeads: 1, headDimension: 1).keyOffsets == [0, 3])
    }

    /// One dimension replaced in a shape that is right otherwise.
    private func shape(
        batch: Int = 2, queryHeads: Int = 4, keyValueHeads: Int = 2, queries: Int = 3, keys: Int = 3,
        headDimension: Int = 8, valueDimension: Int = 8
    ) throws -> AttentionShape {
        try AttentionShape(
            batch: batch, queryHeads: queryHeads, keyValueHeads: keyValueHeads, queries: queries, keys: keys,
            headDimension: headDimension, valueDimension: valueDimension)
    }

    @Test(arguments: [-1, Int.min])
    func negativeDimensions(_ value: Int) {
        expectRefusal(.dimension, "batch") { _ = try shape(batch: value) }
        expectRefusal(.dimension, "queryHeads") { _ = try shape(queryHeads: value) }
        expectRefusal(.dimension, "keyValueHeads") { _ = try shape(keyValueHeads: value) }
        expectRefusal(.dimension, "queries") { _ = try shape(queries: value) }
        expectRefusal(.dimension, "keys") { _ = try shape(keys: value) }
    }

    @Test(arguments: [0, -1, 1025, Int.max, Int.min])
    func headAndValueDimensionsOutOfRange(_ value: Int) {
        expectRefusal(.dimension, "headDimension") { _ = try shape(headDimension: value) }
        expectRefusal(.dimension, "valueDimension") { _ = try shape(valueDimension: value) }
    }

    @Test func errorsReadWell() {
        let error = expectRefusal(.dimension, "headDimension") { _ = try shape(headDimension: 1025) }
        #expect(error?.description == "headDimension: expected 1 to 1024, got 1025")
    }

    @Test func sequencesBeyondTheLongest() {
        expectRefusal(.dimension, "queries") { _ = try shape(queries: (1 << 40) + 1) }
        expectRefusal(.dimension, "keys") { _ = try shape(keys: Int.max) }
    }

    @Test(arguments: [(1 << 20) + 1, 1 << 40, Int.max])
    func moreHeadsThanTablesHold(_ heads: Int) {
        expectRefusal(.dimension, "queryHeads") { _ = try shape(queryHeads: heads, queries: 0) }
        expectRefusal(.dimension, "keyValueHeads") { _ = try shape(queryHeads: 0, keyValueHeads: heads) }
    }

    @Test func queryHeadsThatDoNotDivide() {
        expectRefusal(.headGroups, "keyValueHeads") { _ = try shape(queryHeads: 4, keyValueHeads: 3) }
        expectRefusal(.headGroups, "keyValueHeads") { _ = try shape(queryHeads: 2, keyValueHeads: 4) }
        expectRefusal(.headGroups, "keyValueHeads") { _ = try shape(queryHeads: 2, keyValueHeads: 0) }
    }

    @Test func productsBeyondInt() {
        expectRefusal(.overflow, "queries") { _ = try shape(batch: Int.max) }
        expectRefusal(.overflow, "keys") {
            _ = try shape(batch: 1 << 20, queryHeads: 2, queries: 1, keys: 1 << 39, headDimension: 8)
        }
        expectRefusal(.overflow, "values") {
            _ = try shape(batch: 1 << 12, queries: 1, keys: 1 << 39, headDimension: 1, valueDimension: 1024)
        }
        expectRefusal(.overflow, "output") {
            _ = try shape(batch: 1 << 11, queries: 1 << 39, keys: 1, headDimension: 1, valueDimension: 1024)
        }
    }

    @Test func dimensionsOfAllSizesNeverTrap() {
        let sizes = [Int.min, -1, 0, 1, 2, 1024, 1 << 31, 1 << 40, 1 << 62, Int.max]
        for a in sizes {
            for b in sizes {
                for c in sizes {
                    let shapes = [
                        try? shape(batch: a, queryHeads: b, keyValueHeads: b, queries: c, keys: 1),
                        try? shape(batch: a, queryHeads: 1, keyValueHeads: 1, queries: b, keys: c),
                        try? shape(batch: 1, queryHeads: a, keyValueHeads: 1, queries: b, keys: c, headDimension: 1024),
                    ]
                    for case let shape? in shapes {
                        // Memory for it may not exist; to prepare it must work or throw.
                        _ = try? Attention(shape, sink: .softmax1, mask: .window(64), threads: Int.max)
                        _ = try? Attention(
                            shape, sink: .softmax1, mask: .window(before: Int.max, after: Int.max), alibi: .standard)
                    }
                }
            }
        }
    }

    @Test func packedOffsets() {
        func packed(_ queries: [Int], _ keys: [Int]? = nil) throws {
            _ = try AttentionShape(packed: queries, keyOffsets: keys, queryHeads: 1, headDimension: 1)
        }
        expectRefusal(.offsets, "queryOffsets") { try packed([]) }
        expectRefusal(.offsets, "queryOffsets") { try packed([1, 2]) }
        expectRefusal(.offsets, "queryOffsets[2]") { try packed([0, 4, 3]) }
        expectRefusal(.offsets, "queryOffsets[1]") { try packed([0, Int.min]) }
        expectRefusal(.offsets, "keyOffsets") { try packed([0, 1], [0, 1, 2]) }
        expectRefusal(.offsets, "keyOffsets[1]") { try packed([0, 1], [0, -1]) }
        expectRefusal(.dimension, "queryOffsets: longest sequence") { try packed([0, Int.max]) }
        expectRefusal(.overflow, "keys") {
            _ = try AttentionShape(
                packed: [0] + Array(repeating: 1, count: 1 << 12),
                keyOffsets: (0...(1 << 12)).map { $0 << 40 }, queryHeads: 1, headDimension: 1024)
        }
    }
}
