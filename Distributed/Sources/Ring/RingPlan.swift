// SPDX-License-Identifier: Apache-2.0
// RingPlan.swift - who has which rows and keys of a sequence, and which keys go where.

import QuietAttention

/// How the queries and keys of one sequence are shared among ranks.
///
/// Keys fall into chunks of 1024 by their index, the contract's own: their states merge in a fixed order whoever computes
/// them. Queries fall into stripes of a multiple of 64 rows. Both are dealt out to and fro,
///
///     chunk or stripe   0 1 2 ... N-1 | N ... 2N-1 | 2N ...
///     rank              0 1 2 ... N-1 | N-1 ... 0  | 0 ...
///
/// so that under a causal mask, where work grows with the index, every two runs of N give all ranks the same.
public struct RingPlan: Sendable {
    public let ranks: Int
    public let queries, keys: Int
    /// The key at which query 0 stands.
    public let diagonal: Int
    public let mask: AttentionMask
    /// Rows of a stripe; the last one may have fewer.
    public let stripeRows: Int

    public static let chunkKeys = PartialAttention.chunkTokens

    /// - Parameters:
    ///   - keys: of the sequence, padding aside.
    ///   - diagonal: the key at which query 0 stands.
    public init(ranks: Int, queries: Int, keys: Int, diagonal: Int, mask: AttentionMask) {
        (self.ranks, self.queries, self.keys) = (ranks, queries, keys)
        (self.diagonal, self.mask) = (diagonal, mask)
        // Four stripes for each rank or more, where rows are enough: so that their work is even.
        let share = queries / (4 * ranks)
        stripeRows = min(512, max(64, share / 64 * 64))
    }

    // MARK: - Chunks and stripes

    public var chunks: Int { (keys + Self.chunkKeys - 1) / Self.chunkKeys }
    public var stripes: Int { (queries + stripeRows - 1) / stripeRows }

    public func keys(ofChunk chunk: Int) -> Range<Int> {
        chunk * Self.chunkKeys..<min((chunk + 1) * Self.chunkKeys, keys)
    }

    public func rows(ofStripe stripe: Int) -> Range<Int> {
        stripe * stripeRows..<min((stripe + 1) * stripeRows, queries)
    }

    /// The rank that has a chunk, or a stripe.
    public func owner(of index: Int) -> Int {
        let place = index % (2 * ranks)
        return place < ranks ? place : 2 * ranks - 1 - place
    }

    public func chunks(of rank: Int) -> [Int] { (0..<chunks).filter { owner(of: $0) == rank } }
    public func stripes(of rank: Int) -> [Int] { (0..<stripes).filter { owner(of: $0) == rank } }

    /// The rows of a rank, in ascending order.
    public func rows(of rank: Int) -> [Int] { stripes(of: rank).flatMap { rows(ofStripe: $0) } }

    // MARK: - Who needs what

    /// The chunks of which a stripe may see a key.
    public func chunksSeen(byStripe stripe: Int) -> Range<Int> {
        let rows = rows(ofStripe: stripe)
        let seen = mask.visibleKeys(ofRowsAt: rows.lowerBound + diagonal..<rows.upperBound + diagonal, keys: keys)
        return seen.isEmpty
            ? 0..<0 : seen.lowerBound / Self.chunkKeys..<(seen.upperBound + Self.chunkKeys - 1) / Self.chunkKeys
    }

    /// How far round the ring each chunk travels: to the last rank that needs it, counted from its owner; 0: it stays.
    /// And whether `rank` needs it.
    public func travels(for rank: Int) -> [(hops: Int, isNeeded: Bool)] {
        var travels = [(hops: Int, isNeeded: Bool)](repeating: (0, false), count: chunks)
        for stripe in 0..<stripes {
            let reader = owner(of: stripe)
            for chunk in chunksSeen(byStripe: stripe) {
                let hops = (reader + ranks - owner(of: chunk)) % ranks
                travels[chunk].hops = max(travels[chunk].hops, hops)
                if reader == rank { travels[chunk].isNeeded = true }
            }
        }
        return travels
    }
}
