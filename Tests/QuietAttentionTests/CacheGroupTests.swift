// SPDX-License-Identifier: Apache-2.0
// CacheGroupTests.swift - caches of all layers: appended to and taken back from together, or not at all.

import SeededInputs
import Testing

@testable import QuietAttention

@Suite struct CacheGroupTests {
    private static let problem = CacheProblem(tokens: 700)
    private let problem = Self.problem
    private struct Stop: Error {}

    /// A full cache, one with a window, and one of int8 with a window that ends elsewhere.
    private func group(maximumTokens: Int? = nil) throws -> KeyValueCacheGroup {
        try KeyValueCacheGroup([
            problem.cache(), problem.cache(.bfloat16, window: 100, rollbackTokens: 5, maximumTokens: maximumTokens),
            problem.cache(.int8, window: 65, rollbackTokens: 70),
        ])
    }

    private func append(_ range: Range<Int>, to group: inout KeyValueCacheGroup) throws {
        let (keys, values) = problem.tokens(range)
        try group.append(keys: [keys, keys, keys], values: [values, values, values])
    }

    private func bits(_ group: KeyValueCacheGroup, queries: Int) throws -> [[UInt32]] {
        let rows = problem.queries(group.count - queries..<group.count)
        return try group.caches.map { try problem.attention().attend(queries: rows, cache: $0).bits }
    }

    private func state(_ group: KeyValueCacheGroup) -> [Range<Int>] { group.caches.map(\.positions) }

    @Test func layersAreWhatTheyAreAlone() throws {
        var (group, alone) = (try group(), try group())
        var caches = alone.caches
        alone = try KeyValueCacheGroup([])
        var begin = 0
        for count in [300, 1, 1, 62, 1, 130, 1, 0, 60] {
            let (keys, values) = problem.tokens(begin..<begin + count)
            try group.append { step in
                for layer in 0..<3 {
                    try step.append(layer: layer, keys: keys, values: values)
                    #expect(step[layer].count == begin + count)
                }
            }
            for layer in 0..<3 { try caches[layer].append(keys: keys, values: values) }
            begin += count
            #expect(state(group) == caches.map(\.positions))
            #expect(group.count == begin && group.byteCount <= KeyValueCache.byteCount(caches) + 40000)
        }
        #expect(try bits(group, queries: 3) == bits(KeyValueCacheGroup(caches), queries: 3))
        #expect(alone.count == 0 && alone.byteCount == 0)
    }

    @Test(arguments: [100, 128, 290, 291])
    func whatFailsLeavesEveryCacheAsItWas(_ tokens: Int) throws {
        var group = try group()
        try append(0..<tokens - 1, to: &group)
        try append(tokens - 1..<tokens, to: &group)
        let (before, bits) = (state(group), try bits(group, queries: 4))
        let ranges = group.caches.map(\.truncationRange)
        let (keys, values) = problem.tokens(tokens..<tokens + 200)
        // After one layer, after two parts of the second layer, and with layers of different lengths.
        #expect(throws: Stop.self) {
            try group.append { step in
                try step.append(layer: 0, keys: keys, values: values)
                throw Stop()
            }
        }
        #expect(throws: Stop.self) {
            try group.append { step in
                try step.append(layer: 1, keys: keys, values: values)
                try step.append(layer: 2, keys: keys, values: values)
                try step.append(layer: 1, keys: keys, values: values)
                throw Stop()
            }
        }
        expectRefusal(.cacheShape, "body") {
            do {
                try group.append { step in try step.append(layer: 1, keys: keys, values: values) }
            } catch { throw error as! AttentionError }
        }
        expectRefusal(.elementCount, "values") {
            try group.append(keys: [keys, keys, keys], values: [values, values, [0]])
        }
        expectRefusal(.elementCount, "keys") { try group.append(keys: [keys], values: [values]) }
        #expect(state(group) == before && group.count == tokens)
        #expect(group.caches.map(\.truncationRange) == ranges)
        #expect(try self.bits(group, queries: 4) == bits)
        // And goes on as if nothing had been.
        try append(tokens..<tokens + 9, to: &group)
        var other = try self.group()
        try append(0..<tokens + 9, to: &other)
        #expect(try self.bits(group, queries: 5) == self.bits(other, queries: 5))
    }

    @Test func aLimitOfOneLayerHoldsForAll() throws {
        var group = try group(maximumTokens: 300)
        try append(0..<290, to: &group)
        expectRefusal(.cacheLimit, "keys") { try append(290..<500, to: &group) }
        #expect(group.caches.allSatisfy { $0.count == 290 })
    }

    @Test func takenBackTogether() throws {
        var group = try group()
        for token in 0..<300 { try append(token..<token + 1, to: &group) }
        let before = state(group)
        #expect(group.truncationRange.contains(295))
        expectRefusal(.cacheRange, "length") { try group.truncate(to: group.truncationRange.lowerBound - 1) }
        expectRefusal(.cacheRange, "length") { try group.truncate(to: 301) }
        #expect(state(group) == before)
        var branch = group
        try branch.truncate(to: 295)
        try append(295..<310, to: &branch)
        #expect(group.count == 300 && branch.count == 310)
        var other = try self.group()
        try append(0..<310, to: &other)
        #expect(try bits(branch, queries: 5) == bits(other, queries: 5))
        #expect(KeyValueCacheGroup.byteCount([group, branch]) < group.byteCount + branch.byteCount)
        try branch.truncate(to: 0)
        #expect(branch.count == 0 && branch.byteCount == 0)
    }

    @Test func arguments() throws {
        expectRefusal(.dimension, "layers") {
            _ = try KeyValueCacheGroup(layers: -1) { _ throws(AttentionError) in
                try KeyValueCache(keyValueHeads: 1, headDimension: 1)
            }
        }
        let layers = try KeyValueCacheGroup(layers: 2) { layer throws(AttentionError) in
            try KeyValueCache(keyValueHeads: layer + 1, headDimension: 4)
        }
        #expect(layers.caches.map(\.keyValueHeads) == [1, 2] && layers[1].keyValueHeads == 2)
        expectRefusal(.cacheShape, "caches[1]") {
            _ = try KeyValueCacheGroup([problem.cache(appending: 0..<3), problem.cache(appending: 0..<2)])
        }
    }
}
