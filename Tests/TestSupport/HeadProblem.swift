// SPDX-License-Identifier: Apache-2.0
// HeadProblem.swift - one query head of a case against its key/value head: what a kernel call sees.

import AttentionReference

/// One query head: tensors [rows][dimension], masks [queries][keys] without broadcasting.
public struct HeadProblem: Sendable {
    public var queryCount, keyCount, headDimension, valueDimension: Int
    public var queries, keys, values: [Float]
    public var sink: Float
    public var scale: Double
    /// Row i sees keys `max(0, i + firstKeyOffset) ..< min(keyLength, i + lastKeyOffset)`.
    public var firstKeyOffset, lastKeyOffset: Int
    /// Keys behind it are padding, which moves no offset.
    public var keyLength: Int
    public var allowed: [Bool]?
    public var bias: [Float]?
    /// One per row.
    public var rowFactors: [Double]?
    public var softcap: Double?
    public var alibiSlope: Float?
    public var normaliser = ReferenceNormaliser.softmax
    /// Of the normaliser, for every row.
    public var constant: Float = 0
    /// What keys and values are packed in.
    public var packedStorage = ReferenceStorage.float32
    /// Which numbers are multiplied; packed as they are multiplied.
    public var products = ReferenceProducts.float32

    /// Without tensors and masks, and with no bound on what rows see.
    public init(
        queryCount: Int, keyCount: Int, headDimension: Int, valueDimension: Int, sink: Float, scale: Double
    ) {
        self.queryCount = queryCount
        self.keyCount = keyCount
        self.headDimension = headDimension
        self.valueDimension = valueDimension
        (queries, keys, values) = ([], [], [])
        self.sink = sink
        self.scale = scale
        (firstKeyOffset, lastKeyOffset) = (-queryCount, keyCount)
        keyLength = keyCount
    }

    /// The keys that row `i` sees, ascending.
    public func visibleKeys(_ row: Int) -> [Int] {
        let first = max(0, row + firstKeyOffset)
        let last = min(keyLength, row + lastKeyOffset)
        guard first < last else { return [] }
        return (first..<last).filter { key in
            (allowed?[row * keyCount + key] ?? true) && bias?[row * keyCount + key] != -.infinity
        }
    }
}

extension AttentionCase {
    /// Offsets of the first and behind the last key that row 0 sees; row i's are i further. Bottom-right alignment: the
    /// last row's own key is the last one.
    public var keyOffsets: (first: Int, last: Int) {
        let own = keys - queries
        return switch geometry {
        case .none: (-queries, 2 * keys)
        case .causal: (-queries, own + 1)
        case .window(let width): (own + 1 - width, own + 1)
        case .around(let before, let after):
            (before.map { own - $0 } ?? -queries, after.map { own + $0 + 1 } ?? 2 * keys)
        }
    }

    /// Query head `head` of batch item `item`.
    public func headProblem(_ inputs: AttentionInputs, item: Int, head: Int) -> HeadProblem {
        let queryRow = (item * queryHeads + head) * queries
        let keyRow = (item * keyValueHeads + head / group) * keys
        var problem = HeadProblem(
            queryCount: queries, keyCount: keys, headDimension: headDimension, valueDimension: valueDimension,
            sink: inputs.sinks[head], scale: inputs.scale)
        problem.queries = inputs.queries.rows(queryRow, queries, headDimension)
        problem.keys = inputs.keys.rows(keyRow, keys, headDimension)
        problem.values = inputs.values.rows(keyRow, keys, valueDimension)
        problem.keyLength = inputs.keyLengths?[item] ?? keys
        // Rows stand at the end of the item's keys.
        let moved = padsQueries ? 0 : problem.keyLength - keys
        (problem.firstKeyOffset, problem.lastKeyOffset) = (keyOffsets.first + moved, keyOffsets.last + moved)
        problem.allowed = inputs.allowed.map { plane($0.values, $0.extents, item, head) }
        problem.bias = inputs.bias.map { plane($0.values, $0.extents, item, head) }
        problem.products = products
        return problem
    }

    /// [queries][keys] of a tensor of four axes, some of extent 1.
    private func plane<Element>(_ tensor: [Element], _ extents: [Int], _ item: Int, _ head: Int) -> [Element] {
        let outer = (item % extents[0]) * extents[1] + head % extents[1]
        return (0..<queries).flatMap { row in
            tensor.rows(outer * extents[2] + row % extents[2], 1, keys)
        }
    }
}

extension Array {
    /// `count` rows of `width` elements from row `first` on.
    public func rows(_ first: Int, _ count: Int, _ width: Int) -> [Element] {
        Array(self[first * width..<(first + count) * width])
    }
}
