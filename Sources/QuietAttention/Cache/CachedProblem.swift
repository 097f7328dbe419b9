// SPDX-License-Identifier: Apache-2.0
// CachedProblem.swift - one call of attention over caches: its dimensions, and what the rows of each sequence see.

/// Queries, caches and masks of one call that fit together.
struct CachedProblem {
    /// Keys of the longest cache; of its tensors only those with rows exist.
    let shape: AttentionShape
    var rows: TensorRows
    let scores: KernelScores
    let caches: [KeyValueCache]
    /// One per cache that has queries.
    let sequences: [SequencePlan]
    let allowed: BroadcastTensor<Bool>?
    let bias: BroadcastTensor<Float>?
    /// Of each cache's queries; nil where they are not rotated.
    let queryTables: [RotaryTable?]

    /// Query heads per key/value head.
    var groupHeads: Int { shape.queryHeads / max(shape.keyValueHeads, 1) }

    /// - Parameters:
    ///   - queryCount: elements of the queries of all sequences.
    ///   - places: of the queries; nil: they are the last tokens of their caches.
    ///   - mask: which keys a row sees, apart from those that each cache's window has left behind.
    init(
        _ attention: CachedAttention, queryCount: Int, caches: [KeyValueCache], queryOffsets: [Int]?,
        places: QueryPlaces? = nil, mask: AttentionMask, bias: BroadcastTensor<Float>?
    ) throws(AttentionError) {
        shape = try Self.shape(attention, queryCount, caches, queryOffsets)
        guard queryCount == shape.queryCount else {
            let row = attention.queryHeads * shape.headDimension
            throw AttentionError(
                .elementCount, "queries",
                expected: queryOffsets == nil && !caches.isEmpty
                    ? "a multiple of \(caches.count) x \(row) elements" : "\(shape.queryCount) elements",
                found: "\(queryCount)")
        }
        try places?.check(fits: shape)
        for cache in caches {
            try cache.queryKeyNorm?.check(queryHeads: shape.queryHeads, headDimension: shape.headDimension)
        }
        try mask.check(fits: shape)
        try bias?.check("bias", fits: shape)
        rows = try TensorRows(shape, Self.layout(attention, shape, caches))
        self.caches = caches
        allowed = mask.allowed
        self.bias = bias
        sequences = shape.rowCount == 0 ? [] : try Self.sequences(attention, shape, caches, queryOffsets, places, mask)
        scores = try CheckedScores(attention.rules, headDimension: shape.headDimension).kernelScores(
            shape, plans: sequences, isUniform: false, mask: mask, bias: bias)
        queryTables = try Self.queryTables(caches, sequences)
    }

    private static func shape(
        _ attention: CachedAttention, _ queryCount: Int, _ caches: [KeyValueCache], _ queryOffsets: [Int]?
    ) throws(AttentionError) -> AttentionShape {
        guard let first = caches.first else {
            // Nothing, checked as if there were heads of dimension 1.
            if let queryOffsets {
                return try AttentionShape(packed: queryOffsets, keyOffsets: [0], queryHeads: 0, headDimension: 1)
            }
            return try AttentionShape(batch: 0, queryHeads: 0, queries: 0, keys: 0, headDimension: 1)
        }
        for (index, cache) in caches.enumerated() where !cache.hasHeads(of: first) {
            throw AttentionError(
                .cacheShape, "caches[\(index)]", expected: first.headDescription, found: cache.headDescription)
        }
        for (index, cache) in caches.enumerated() where cache.products != attention.products {
            throw AttentionError(
                .composition, "caches[\(index)]", expected: "one made for products of \(attention.products.rawValue)",
                found: "one for products of \(cache.products.rawValue)")
        }
        if let queryOffsets {
            var keyOffsets = [0]
            for cache in caches { keyOffsets.append(keyOffsets[keyOffsets.count - 1] + cache.count) }
            return try AttentionShape(
                packed: queryOffsets, keyOffsets: keyOffsets, queryHeads: attention.queryHeads,
                keyValueHeads: first.keyValueHeads, headDimension: first.headDimension,
                valueDimension: first.valueDimension)
        }
        let rows = queryCount / first.headDimension / caches.count
        return try AttentionShape(
            batch: caches.count, queryHeads: attention.queryHeads, keyValueHeads: first.keyValueHeads,
            queries: attention.queryHeads == 0 ? 0 : rows / attention.queryHeads,
            keys: caches.reduce(0) { max($0, $1.count) }, headDimension: first.headDimension,
            valueDimension: first.valueDimension)
    }

    /// The attention's own; or, where sequences are not packed, that of the caches.
    private static func layout(
        _ attention: CachedAttention, _ shape: AttentionShape, _ caches: [KeyValueCache]
    ) throws(AttentionError) -> AttentionLayout {
        if let layout = attention.layout { return layout }
        guard !shape.isPacked, let first = caches.first else { return .batchSequenceHeads }
        for (index, cache) in caches.enumerated() where cache.layout != first.layout {
            throw AttentionError(
                .cacheShape, "caches[\(index)]",
                expected: "the layout \(first.layout) of the others, or one of the call",
                found: "\(cache.layout)")
        }
        return first.layout
    }

    private static func sequences(
        _ attention: CachedAttention, _ shape: AttentionShape, _ caches: [KeyValueCache], _ queryOffsets: [Int]?,
        _ places: QueryPlaces?, _ mask: AttentionMask
    ) throws(AttentionError) -> [SequencePlan] {
        var sequences: [SequencePlan] = []
        for (item, cache) in caches.enumerated() {
            let start = queryOffsets?[item] ?? item * shape.queries
            let queries = queryOffsets.map { $0[item + 1] - start } ?? shape.queries
            if queries == 0 { continue }
            // Queries with places of their own need not be tokens of the cache.
            let least = places == nil ? queries : 1
            guard cache.count >= least else {
                let own =
                    queries == 1
                    ? "the query's token, appended before"
                    : "at least \(queries) tokens, one for each query, appended before"
                throw AttentionError(
                    .cacheRange, "caches[\(item)]", expected: places == nil ? own : "tokens", found: "\(cache.count)")
            }
            let mask = mask.within(window: cache.window)
            let sequence = SequencePlan(
                item: item, queryStart: start, keyStart: 0, queries: queries, keys: cache.count,
                positions: places?.positions(start: start, count: queries)
                    ?? cache.positionsOfTokens(
                        from: mask.diagonal(item: item, queries: queries, keys: cache.count), queries),
                keyCounts: places?.keyCounts(start: start, count: queries), mask: mask)
            if !cache.tokenPositions.isEmpty { try cache.checkPlaces(sequence.positions, mask, attention.alibi) }
            guard sequence.blocks.isEmpty || sequence.pages.lowerBound >= cache.freedPages else {
                throw AttentionError(
                    .cacheRange, "caches[\(item)]",
                    expected: "tokens from position \(sequence.pages.lowerBound * SequencePlan.block) on",
                    found: "tokens from position \(cache.positions.lowerBound) on")
            }
            sequences.append(sequence)
        }
        return sequences
    }
}

extension SequencePlan {
    /// The blocks with a key that some row sees, counted from the first token.
    var pages: Range<Int> {
        let origin = keyOrigin / Self.block
        return origin + blocks.lowerBound..<origin + blocks.upperBound
    }

    /// The chunks with a key that some row sees, counted from the first token.
    var chunks: Range<Int> {
        let origin = keyOrigin / Self.chunk
        return origin..<origin + (keys + Self.chunk - 1) / Self.chunk
    }

    /// The end of the keys that some row sees, counted from the first token.
    var keyEnd: Int { keyOrigin + keys }
}

extension KeyValueCache {
    fileprivate func hasHeads(of other: KeyValueCache) -> Bool {
        keyValueHeads == other.keyValueHeads && headDimension == other.headDimension
            && valueDimension == other.valueDimension
    }

    fileprivate var headDescription: String {
        "\(keyValueHeads) heads with keys of \(headDimension) and values of \(valueDimension)"
    }
}
