// SPDX-License-Identifier: Apache-2.0
// DraftTreeTests.swift - trees of drafts in a cache: siblings at one position, and a boolean mask that says who sees whom.

import TestSupport
import Testing

@testable import QuietAttention

@Suite struct DraftTreeTests {
    /// The token before each draft, counted from the first draft on; nil: the last token of the prefix.
    private static let parents: [Int?] = [nil, nil, 0, 0, 1, 2, 4]
    private static let prefix = 1020
    private static let tokens = prefix + parents.count
    private static let problem = CacheProblem(tokens: tokens) {
        ($0.headDimension, $0.group, $0.valueDimension) = (PlaceRules.headDimension, 2, 5)
    }

    private static func path(_ draft: Int) -> [Int] { (parents[draft].map(path) ?? []) + [draft] }

    private static let positions = parents.indices.map { prefix + path($0).count - 1 }

    /// `[drafts][tokens]`: the prefix, and a draft's own path.
    private static let allowed: [Bool] = parents.indices.flatMap { draft in
        (0..<tokens).map { $0 < prefix || path(draft).contains($0 - prefix) }
    }

    private func mask() throws -> AttentionMask {
        .none.allowing(try BroadcastTensor(Self.allowed, queries: Self.parents.count, keys: Self.tokens))
    }

    private func rows(_ tensor: [Float], _ tokens: [Int], heads: Int, _ width: Int) -> [Float] {
        (0..<heads).flatMap { head in tokens.flatMap { tensor.rows(head * Self.tokens + $0, 1, width) } }
    }

    private func tree(_ rules: PlaceRules, _ kernels: KernelSet? = nil, window: Int? = nil) throws -> KeyValueCache {
        let problem = Self.problem
        var cache = try rules.cache(problem, 0..<Self.prefix, kernels, window: window)
        let drafts = Array(Self.prefix..<Self.tokens)
        try cache.append(
            keys: rows(problem.keys, drafts, heads: problem.keyValueHeads, problem.headDimension),
            values: rows(problem.values, drafts, heads: problem.keyValueHeads, problem.valueDimension),
            positions: Self.positions)
        return cache
    }

    static let rules = PlaceRules.all.filter { $0.alibi == nil && $0.before == nil && $0.after == 0 }

    @Test(arguments: rules)
    func treesEqualTheReference(_ rules: PlaceRules) throws {
        let problem = Self.problem
        var seen = rules
        (seen.before, seen.after) = (nil, nil)
        let drafts = Self.prefix..<Self.tokens
        let expected = try seen.expected(
            problem, drafts, places: Self.positions, keyPositions: Array(0..<Self.prefix) + Self.positions,
            allowed: Self.allowed)
        for kernels in KernelSet.available {
            let cache = try tree(rules, kernels)
            let attention = try rules.attention(problem, kernels, threads: 2)
            let result = try attention.attend(queries: problem.queries(drafts), cache: cache, mask: mask())
            #expect(result.bits == expected.bits, "\(kernels)")
        }
    }

    /// Angles fixed for a length bound the positions of tokens, not the places where they lie.
    @Test func siblingsAtTheEndOfAFixedLength() throws {
        let positions = AttentionPositions.rotary(
            RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 40, length: 100)))
        var cache = try KeyValueCache(keyValueHeads: 1, headDimension: 8, positions: positions)
        func rows(_ tokens: Int) -> [Float] { [Float](repeating: 1, count: 8 * tokens) }
        try cache.append(keys: rows(99), values: rows(99))
        for refused in [[100], [99, 100], [-1]] {
            #expect(throws: AttentionError.self) {
                try cache.append(keys: rows(refused.count), values: rows(refused.count), positions: refused)
            }
        }
        #expect(cache.count == 99 && cache.tokenPositions.isEmpty)
        try cache.append(keys: rows(3), values: rows(3), positions: [99, 99, 99])
        #expect(cache.count == 102)
    }

    /// Every path gives what it gives as the end of a plain sequence, but for the order of sums.
    @Test(arguments: rules)
    func pathsAreSequences(_ rules: PlaceRules) throws {
        let problem = Self.problem
        let result = try rules.attention(problem).attend(
            queries: problem.queries(Self.prefix..<Self.tokens), cache: tree(rules), mask: mask())
        for draft in Self.parents.indices {
            let path = Self.path(draft).map { Self.prefix + $0 }
            var cache = try rules.cache(problem, 0..<Self.prefix)
            try cache.append(
                keys: rows(problem.keys, path, heads: problem.keyValueHeads, problem.headDimension),
                values: rows(problem.values, path, heads: problem.keyValueHeads, problem.valueDimension))
            let alone = try rules.attention(problem).attend(
                queries: problem.queries(Self.prefix + draft..<Self.prefix + draft + 1), cache: cache)
            let bits = result.bits(ofQuery: draft, of: Self.parents.count).map { Float(bitPattern: $0) }
            let expected = alone.bits(ofQuery: 0, of: 1).map { Double(Float(bitPattern: $0)) }
            #expect(relativeError(bits, expected) < rules.tolerance, "draft \(draft)")
        }
    }

    /// Taken back, a tree leaves a plain cache.
    @Test func treesAreTakenBack() throws {
        let problem = Self.problem
        let rules = PlaceRules(description: "rotary", positions: PlaceRules.encodings[0])
        let drafts = Self.prefix..<Self.tokens
        let queries = problem.queries(drafts)
        let expected = try rules.attention(problem).attend(
            queries: queries, cache: rules.cache(problem, 0..<Self.tokens))
        var cache = try tree(rules)
        try cache.truncate(to: Self.prefix + 3)
        try cache.truncate(to: Self.prefix)
        try problem.append(drafts, to: &cache)
        #expect(try rules.attention(problem).attend(queries: queries, cache: cache).bits == expected.bits)
        // Positions that say where tokens lie are those that they have anyway.
        var named = try rules.cache(problem, 0..<Self.prefix)
        try named.append(
            keys: rows(problem.keys, Array(drafts), heads: problem.keyValueHeads, problem.headDimension),
            values: rows(problem.values, Array(drafts), heads: problem.keyValueHeads, problem.valueDimension),
            positions: Array(drafts))
        #expect(try rules.attention(problem).attend(queries: queries, cache: named).bits == expected.bits)
        // Of a tree cut short, the tokens left keep their positions.
        var short = try tree(rules)
        try short.truncate(to: Self.prefix + 2)
        try problem.append(Self.prefix + 2..<Self.prefix + 3, to: &short)
        #expect(short.positionsOfTokens(from: Self.prefix, 4).map(Array.init) == [1020, 1020, 1022, 1023])
    }

    /// A window that begins before the tree is the same by places and by positions.
    @Test func windowsBeforeTheTree() throws {
        let problem = Self.problem
        let rules = PlaceRules(description: "rotary", positions: PlaceRules.encodings[0])
        let queries = problem.queries(Self.prefix..<Self.tokens)
        let attention = try rules.attention(problem)
        let allowed: [Bool] = Self.parents.indices.flatMap { draft in
            (0..<Self.tokens).map { Self.allowed[draft * Self.tokens + $0] && $0 > Self.positions[draft] - 70 }
        }
        let spelledOut = try BroadcastTensor(allowed, queries: Self.parents.count, keys: Self.tokens)
        let expected = try attention.attend(queries: queries, cache: tree(rules), mask: .none.allowing(spelledOut))
        let windowed = try tree(rules, window: 70)
        #expect(try attention.attend(queries: queries, cache: windowed, mask: mask()).bits == expected.bits)
        expectRefusal(.composition, "mask") {
            _ = try attention.attend(queries: queries, cache: tree(rules, window: 2), mask: mask())
        }
    }

    @Test func whatWouldBeWrong() throws {
        let problem = Self.problem
        let rules = PlaceRules(description: "rotary", positions: PlaceRules.encodings[0])
        let cache = try tree(rules)
        let queries = problem.queries(Self.prefix..<Self.tokens)
        let attention = try rules.attention(problem)
        expectRefusal(.composition, "mask") { _ = try attention.attend(queries: queries, cache: cache) }
        expectRefusal(.composition, "mask") {
            _ = try attention.attend(queries: queries, cache: cache, mask: .window(before: nil, after: 2))
        }
        expectRefusal(.composition, "alibi") {
            _ = try problem.attention(rules: .init(alibi: .standard)).attend(
                queries: queries, cache: cache, mask: mask())
        }
        // Queries before the tree see nothing of it.
        let before = QueryPlaces(positions: Array(900..<907))
        let plain = try attention.attend(
            queries: queries, cache: rules.cache(problem, 0..<Self.prefix), places: before)
        #expect(try attention.attend(queries: queries, cache: cache, places: before).bits == plain.bits)

        var other = cache
        let (keys, values) = ([Float](repeating: 0, count: 24), [Float](repeating: 0, count: 20))
        expectRefusal(.positionCount, "positions") { try other.append(keys: keys, values: values, positions: [1]) }
        expectRefusal(.position, "positions[1]") { try other.append(keys: keys, values: values, positions: [1, -1]) }
        expectRefusal(.elementCount, "values") { try other.append(keys: keys, values: keys, positions: [1, 1]) }
        #expect(other.count == cache.count && other.positionsOfTokens(from: 1027, 1).map(Array.init) == [1027])
    }
}
