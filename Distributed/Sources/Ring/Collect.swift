// SPDX-License-Identifier: Apache-2.0
// Collect.swift - results of all ranks at rank 0, piece by piece, in the order of the rows of one machine.

/// A tensor `[heads, rows, dimension]` whose pieces of rows belong to different ranks.
public struct SharedTensor {
    public let heads, pieces: Int
    /// The rank that has a piece, its rows, and, on that rank, where it is.
    let owner: (_ piece: Int) -> Int
    let rows: (_ piece: Int) -> Range<Int>
    let own: (_ head: Int, _ piece: Int) -> UnsafeBufferPointer<Float>
    public let dimension: Int

    /// One piece, all of it on one rank.
    public init(heads: Int, rank: Int, rows: Range<Int>, dimension: Int, _ buffer: UnsafeBufferPointer<Float>) {
        self.init(
            heads: heads, pieces: 1, owner: { _ in rank }, rows: { _ in rows },
            own: { head, _ in
                let count = rows.count * dimension
                return .init(rebasing: buffer[head * count..<(head + 1) * count])
            }, dimension: dimension)
    }

    private init(
        heads: Int, pieces: Int, owner: @escaping (Int) -> Int, rows: @escaping (Int) -> Range<Int>,
        own: @escaping (Int, Int) -> UnsafeBufferPointer<Float>, dimension: Int
    ) {
        (self.heads, self.pieces, self.dimension) = (heads, pieces, dimension)
        (self.owner, self.rows, self.own) = (owner, rows, own)
    }

    /// Of a plan's stripes: `[heads, rows of the rank, dimension]` in `buffer`, or with one entry for so many rows.
    public static func stripes(
        _ plan: RingPlan, rank: Int, heads: Int, dimension: Int, rowsOfEntry: Int = 1,
        _ buffer: UnsafeBufferPointer<Float>
    ) -> SharedTensor {
        func entries(_ stripe: Int) -> Range<Int> { plan.rows(ofStripe: stripe).entries(of: rowsOfEntry) }
        let own = plan.stripes(of: rank)
        var first: [Int: Int] = [:]
        var rows = 0
        for stripe in own {
            first[stripe] = rows
            rows += entries(stripe).count
        }
        let count = rows
        return SharedTensor(
            heads: heads, pieces: plan.stripes, owner: plan.owner, rows: entries,
            own: { head, stripe in
                let start = (head * count + first[stripe]!) * dimension
                return .init(rebasing: buffer[start..<start + entries(stripe).count * dimension])
            }, dimension: dimension)
    }

    /// Of a plan's chunks: `[heads, keys of the chunk, dimension]` each, or with one entry for so many keys.
    public static func chunks(
        _ plan: RingPlan, heads: Int, dimension: Int, rowsOfEntry: Int = 1,
        _ buffer: @escaping (_ chunk: Int) -> UnsafeBufferPointer<Float>
    ) -> SharedTensor {
        func entries(_ chunk: Int) -> Range<Int> { plan.keys(ofChunk: chunk).entries(of: rowsOfEntry) }
        return SharedTensor(
            heads: heads, pieces: plan.chunks, owner: plan.owner, rows: entries,
            own: { head, chunk in
                let count = entries(chunk).count * dimension
                return .init(rebasing: buffer(chunk)[head * count..<(head + 1) * count])
            }, dimension: dimension)
    }
}

extension Range<Int> {
    /// Entries of so many rows each, from row 0 on, that these rows make: they begin where one does.
    fileprivate func entries(of rows: Int) -> Range<Int> {
        lowerBound / rows..<(upperBound + rows - 1) / rows
    }
}

extension World {
    /// Calls `deliver` on rank 0 with all pieces: head by head, ascending. Every rank calls this at the same place.
    public func collect(
        _ tensor: SharedTensor,
        deliver: (_ head: Int, _ rows: Range<Int>, UnsafeBufferPointer<Float>) throws -> Void
    ) throws {
        let tag = 0x10000
        var sent: [Request] = []
        for head in 0..<tensor.heads {
            for piece in 0..<tensor.pieces {
                let (owner, rows) = (tensor.owner(piece), tensor.rows(piece))
                if rank == 0 {
                    if owner == 0 {
                        try deliver(head, rows, tensor.own(head, piece))
                    } else {
                        let buffer = try Buffer<Float>(rows.count * tensor.dimension, for: "results")
                        var request = try receive(buffer.bytes, from: owner, tag: tag, "results of rows \(rows)")
                        try wait(&request)
                        try deliver(head, rows, buffer.reading)
                    }
                } else if owner == rank {
                    sent.append(
                        try send(
                            UnsafeRawBufferPointer(tensor.own(head, piece)), to: 0, tag: tag, "results of rows \(rows)")
                    )
                    // A few at a time.
                    if sent.count > 8 {
                        try wait(&sent[0])
                        sent.removeFirst()
                    }
                }
            }
        }
        for index in sent.indices { try wait(&sent[index]) }
    }
}
