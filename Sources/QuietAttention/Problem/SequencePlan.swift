// SPDX-License-Identifier: Apache-2.0
// SequencePlan.swift - what the rows of one sequence see, and which blocks of keys that makes worth packing.

import CKernels

/// One sequence of the batch: where its rows are, and the keys that they see between them.
///
/// Keys are counted from `keyOrigin`, the chunk of the first key that some row sees: bits depend on a key's place within
/// its chunk and on the order of chunks, and leading chunks that no row sees do nothing to any row.
struct SequencePlan: Sendable {
    /// Index in the batch, for masks and biases.
    var item: Int
    /// First query row and first key of the sequence, counted over all sequences.
    var queryStart, keyStart: Int
    var queries: Int
    /// Row i stands at key i + diagonal of the sequence, or at `places[i]`; diagonal is 0 then.
    let diagonal: Int
    let places: RowPlaces?
    /// The keys that each row sees in all; nil: those that it sees here.
    let keyCounts: [Int]?
    /// A multiple of the chunk, counted from the sequence's first key.
    let keyOrigin: Int
    /// Keys from the origin up to the last one that some row sees; 0 when none is seen.
    let keys: Int
    /// As the kernels want them, counted from the origin: row i sees keys from i, or `places[i]`, and this on.
    let firstKeyOffset, lastKeyOffset: Int
    /// The blocks with a key that some row sees, counted from the origin.
    let blocks: Range<Int>
    /// Pairs of query and key that are seen before any boolean mask.
    let visiblePairs: Double

    /// - Parameters:
    ///   - keys: of the sequence, padding included.
    ///   - positions: at which the queries stand; nil: they end with the keys.
    ///   - keyCounts: that the queries see in all; nil: those that they see here.
    init(
        item: Int, queryStart: Int, keyStart: Int, queries: Int, keys: Int, positions: ArraySlice<Int>? = nil,
        keyCounts: ArraySlice<Int>? = nil, mask: AttentionMask
    ) {
        self.item = item
        self.queryStart = queryStart
        self.keyStart = keyStart
        self.queries = queries
        self.keyCounts = keyCounts.map(Array.init)
        places = positions.flatMap(RowPlaces.init)
        diagonal = places == nil ? positions?.first ?? mask.diagonal(item: item, queries: queries, keys: keys) : 0
        let (first, last) = (diagonal + mask.offsets.first, diagonal + mask.offsets.last)
        let (least, most) = places?.extremes ?? (0, queries - 1)
        // The first row by its place sees the first key of all, the last one the last key.
        let begin = max(0, least + first)
        let end = min(mask.keyLength(item: item, keys: keys), most + last)
        guard queries > 0, begin < end else {
            (keyOrigin, self.keys, firstKeyOffset, lastKeyOffset, blocks, visiblePairs) = (0, 0, 0, 0, 0..<0, 0)
            return
        }
        keyOrigin = begin / Self.chunk * Self.chunk
        self.keys = end - keyOrigin
        firstKeyOffset = first - keyOrigin
        lastKeyOffset = last - keyOrigin
        blocks = (begin - keyOrigin) / Self.block..<Self.blocks(of: self.keys)
        if let places {
            let seen = self.keys
            visiblePairs = (0..<queries).reduce(0.0) { [keyOrigin] pairs, row in
                let below = { (offset: Int) in min(max(places[row] + offset - keyOrigin, 0), seen) }
                return pairs + Double(below(last) - below(first))
            }
        } else {
            visiblePairs =
                Self.keysBelow(last - keyOrigin, rows: queries, keys: self.keys)
                - Self.keysBelow(first - keyOrigin, rows: queries, keys: self.keys)
        }
    }

    /// What offsets of a row's keys count from.
    func place(_ row: Int) -> Int { places?[row] ?? row }

    /// The keys at which rows stand.
    var positions: [Int] { (0..<queries).map { diagonal + place($0) } }

    static let block = QATTN_KEY_BLOCK
    static let chunk = QATTN_KEY_CHUNK

    static func blocks(of keys: Int) -> Int { (keys + block - 1) / block }

    /// The sum over rows i of the keys below i + offset: `clamp(i + offset, 0, keys)`.
    private static func keysBelow(_ offset: Int, rows: Int, keys: Int) -> Double {
        let rising = min(max(-offset, 0), rows)..<max(min(max(-offset, 0), rows), min(max(keys - offset, 0), rows))
        let ramp = Double(rising.count) * (Double(rising.lowerBound + offset) + Double(rising.count - 1) / 2)
        return ramp + Double(rows - rising.upperBound) * Double(keys)
    }
}
