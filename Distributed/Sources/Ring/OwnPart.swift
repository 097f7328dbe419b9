// SPDX-License-Identifier: Apache-2.0
// OwnPart.swift - what a rank holds of a sequence: its rows of the queries, its chunks of keys and values.

import QuietAttention

/// Heads and dimensions of a sequence.
public struct RingShape: Sendable {
    public let queryHeads, keyValueHeads, headDimension, valueDimension: Int

    public init(_ shape: AttentionShape) {
        (queryHeads, keyValueHeads) = (shape.queryHeads, shape.keyValueHeads)
        (headDimension, valueDimension) = (shape.headDimension, shape.valueDimension)
    }

    public var groupHeads: Int { queryHeads / max(keyValueHeads, 1) }
}

/// Keys `[G, n, D]` and behind them values `[G, n, E]` of one chunk, in one piece of memory: a message.
public struct ChunkTensors<Element: AttentionScalar> {
    public let keys, values: UnsafeMutableBufferPointer<Element>
    public let range: Range<Int>

    init(_ buffer: UnsafeMutableBufferPointer<Element>, _ shape: RingShape, _ range: Range<Int>) {
        let keyCount = shape.keyValueHeads * range.count * shape.headDimension
        let count = keyCount + shape.keyValueHeads * range.count * shape.valueDimension
        keys = .init(rebasing: buffer[..<keyCount])
        values = .init(rebasing: buffer[keyCount..<count])
        self.range = range
    }

    static func count(_ shape: RingShape, keys: Int) -> Int {
        shape.keyValueHeads * keys * (shape.headDimension + shape.valueDimension)
    }

    func read(_ shape: RingShape, item: Int, _ source: some RowSource<Element>) throws {
        for (tensor, buffer, dimension) in [
            (RowTensor.keys, keys, shape.headDimension), (.values, values, shape.valueDimension),
        ] {
            for head in 0..<shape.keyValueHeads {
                let start = head * range.count * dimension
                try source.read(
                    tensor, item: item, head: head, rows: range,
                    into: .init(rebasing: buffer[start..<start + range.count * dimension]))
            }
        }
    }

    /// Both, as they travel.
    var bytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(
            start: keys.baseAddress, count: (keys.count + values.count) * MemoryLayout<Element>.stride)
    }
}

/// What a rank holds of one sequence.
public final class OwnPart<Element: AttentionScalar> {
    public let plan: RingPlan
    public let shape: RingShape
    /// The rows, in ascending order, and `[H, rows, D]` of them.
    public let rows: [Int]
    public let queries: Buffer<Element>
    /// By chunk.
    public let chunks: [Int: ChunkTensors<Element>]
    private let memory: Buffer<Element>
    private let firstRows: [Int: Int]

    /// Where the rank's rows of one of its stripes begin.
    func firstRow(ofStripe stripe: Int) -> Int { firstRows[stripe]! }

    /// Reads this rank's part, and nothing else.
    public init(
        _ plan: RingPlan, _ shape: RingShape, rank: Int, item: Int, _ source: some RowSource<Element>
    ) throws {
        (self.plan, self.shape) = (plan, shape)
        rows = plan.rows(of: rank)
        var firstRows: [Int: Int] = [:]
        for (index, row) in rows.enumerated() where row % plan.stripeRows == 0 {
            firstRows[row / plan.stripeRows] = index
        }
        self.firstRows = firstRows
        queries = try Buffer(shape.queryHeads * rows.count * shape.headDimension, for: "the queries of rank \(rank)")
        let own = plan.chunks(of: rank)
        let counts = own.map { ChunkTensors<Element>.count(shape, keys: plan.keys(ofChunk: $0).count) }
        memory = try Buffer(counts.reduce(0, +), for: "the keys and values of rank \(rank)")
        var chunks: [Int: ChunkTensors<Element>] = [:]
        var first = 0
        for (chunk, count) in zip(own, counts) {
            let range = plan.keys(ofChunk: chunk)
            let tensors = ChunkTensors(.init(rebasing: memory.elements[first..<first + count]), shape, range)
            first += count
            try tensors.read(shape, item: item, source)
            chunks[chunk] = tensors
        }
        self.chunks = chunks
        try Self.readRows(
            .queries, into: queries.elements, plan, shape.headDimension, heads: shape.queryHeads, rank: rank,
            item: item, source)
    }

    /// Reads `[H, rows, dimension]` of a rank's rows from wherever `read` takes adjacent rows of a head.
    public static func readRows<Scalar>(
        into buffer: UnsafeMutableBufferPointer<Scalar>, _ plan: RingPlan, _ dimension: Int, heads: Int, rank: Int,
        _ read: (_ head: Int, _ rows: Range<Int>, UnsafeMutableBufferPointer<Scalar>) throws -> Void
    ) throws {
        var first = 0
        for head in 0..<heads {
            for stripe in plan.stripes(of: rank) {
                let range = plan.rows(ofStripe: stripe)
                try read(head, range, .init(rebasing: buffer[first..<first + range.count * dimension]))
                first += range.count * dimension
            }
        }
    }

    /// Reads `[H, rows, dimension]` of a rank's rows.
    static func readRows<Scalar>(
        _ tensor: RowTensor, into buffer: UnsafeMutableBufferPointer<Scalar>, _ plan: RingPlan, _ dimension: Int,
        heads: Int, rank: Int, item: Int, _ source: some RowSource<Scalar>
    ) throws {
        try readRows(into: buffer, plan, dimension, heads: heads, rank: rank) { head, rows, part in
            try source.read(tensor, item: item, head: head, rows: rows, into: part)
        }
    }
}
