// SPDX-License-Identifier: Apache-2.0
// TokenPositions.swift - tokens of a cache that do not stand where they lie in it: those of a tree of drafts.

/// The positions of a cache's last tokens, from the first on that does not stand at its own place among all tokens.
struct TokenPositions: Sendable {
    private var first = 0
    private var positions: [Int] = []

    var isEmpty: Bool { positions.isEmpty }

    /// Of the token that lies at a place, of tokens before the first and behind the last one the place itself.
    subscript(token: Int) -> Int {
        let index = token - first
        return positions.indices.contains(index) ? positions[index] : token
    }

    /// - Parameter named: the positions of `tokens`, which lie behind all others.
    mutating func append(_ tokens: Range<Int>, named: [Int]) {
        if positions.isEmpty {
            if named.elementsEqual(tokens) { return }
            first = tokens.lowerBound
        }
        // Those between were appended without positions.
        positions += first + positions.count..<tokens.lowerBound
        positions += named
    }

    mutating func truncate(to count: Int) {
        positions.removeLast(max(0, positions.count - max(0, count - first)))
    }

    /// Whether ranges of places, and distances to them, are those of positions for rows whose ranges begin, or end, at these
    /// places: all tokens that are listed are on one side of all of them, where they lie and where they stand.
    func areOneSide(of bounds: ClosedRange<Int>) -> Bool {
        guard let least = positions.min(), let most = positions.max() else { return true }
        return bounds.upperBound <= min(first, least) || bounds.lowerBound > max(first + positions.count - 1, most)
    }
}

extension KeyValueCache {
    /// Appends tokens that stand at positions of their own: the tokens of a tree of drafts, where siblings have one position.
    ///
    /// Keys are rotated by these positions, and as queries the last tokens of the cache stand there. Which of them sees which
    /// is what a boolean mask says (``AttentionMask/allowing(_:)``, with the mask `none`): causal masks and windows that
    /// begin or end among such tokens are refused, as is ALiBi. A fork takes the tree, and ``truncate(to:)`` takes it back.
    ///
    ///     // Two drafts for the next token, and one that follows the second of them.
    ///     var tree = cache
    ///     try tree.append(keys: k, values: v, positions: [cache.count, cache.count, cache.count + 1])
    ///
    /// - Parameters:
    ///   - keys: as of the method without positions.
    ///   - values: likewise.
    ///   - positions: one per token, counted from the cache's first token on, 0 to 2^40.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `cacheLimit`, `position`, `positionCount` or `memory`; the cache
    ///   is unchanged then.
    public mutating func append(keys: [Float], values: [Float], positions: [Int]) throws(AttentionError) {
        try append(keys: keys.span, values: values.span, positions: positions)
    }

    /// Appends tokens that stand at positions of their own, from memory of any storage type.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`, `cacheLimit`, `position`, `positionCount` or `memory`; the cache
    ///   is unchanged then.
    public mutating func append<Input: AttentionScalar>(
        keys: Span<Input>, values: Span<Input>, positions: [Int]
    ) throws(AttentionError) {
        let before = tokenPositions
        try check(named: positions, tokens: keys.count / (keyValueHeads * headDimension))
        tokenPositions.append(count..<count + positions.count, named: positions)
        do {
            try append(keys: keys, values: values)
        } catch {
            tokenPositions = before
            throw error
        }
    }

    /// The positions of so many tokens; nil: they stand where they lie.
    func positionsOfTokens(from first: Int, _ count: Int) -> ArraySlice<Int>? {
        tokenPositions.isEmpty ? nil : (first..<first + count).map { tokenPositions[$0] }[...]
    }

    /// Checks that what counts places finds tokens at their positions there.
    ///
    /// - Parameter rows: where the rows of a call stand.
    func checkPlaces(_ rows: [Int], _ mask: AttentionMask, _ alibi: ALiBi?) throws(AttentionError) {
        guard !tokenPositions.isEmpty, let least = rows.min(), let most = rows.max() else { return }
        guard alibi == nil else {
            throw AttentionError(
                .composition, "alibi", expected: "none over a cache whose tokens have positions of their own",
                found: "ALiBi, whose distances count tokens")
        }
        let (first, last) = mask.offsets
        guard tokenPositions.areOneSide(of: least + first...most + first),
            tokenPositions.areOneSide(of: least + last...most + last)
        else {
            throw AttentionError(
                .composition, "mask",
                expected:
                    "none, and a boolean mask, over tokens with positions of their own: a tree is no range of tokens",
                found: "a causal mask or a window that begins or ends among them")
        }
    }

    /// Checks positions that are named for so many tokens.
    func check(named positions: [Int], tokens: Int) throws(AttentionError) {
        guard positions.count == tokens else {
            throw AttentionError(
                .positionCount, "positions", expected: "\(tokens), one per token", found: "\(positions.count)")
        }
        let most = AttentionShape.longestSequence
        if let index = positions.firstIndex(where: { !(0...most).contains($0) }) {
            throw AttentionError(
                .position, "positions[\(index)]", expected: "0 to 2^40", found: "\(positions[index])")
        }
    }
}
