// SPDX-License-Identifier: Apache-2.0
// CachedAttentionErrorTests.swift - what attention over caches refuses, and empty work, which it does not.

import TestSupport
import Testing

@testable import QuietAttention

@Suite struct CachedAttentionErrorTests {
    private let problem = CacheProblem(tokens: 70)

    @Test func options() {
        expectRefusal(.dimension, "queryHeads") { _ = try CachedAttention(queryHeads: -1, sink: .softmax1) }
        expectRefusal(.scale, "scale") { _ = try CachedAttention(queryHeads: 1, sink: .softmax1, scale: .nan) }
        expectRefusal(.sinkCount, "sink.logits") { _ = try CachedAttention(queryHeads: 2, sink: .logits([0])) }
        expectRefusal(.sink, "sink.softmaxN") { _ = try CachedAttention(queryHeads: 2, sink: .softmaxN(-1)) }
        expectRefusal(.threads, "threads") { _ = try CachedAttention(queryHeads: 2, sink: .softmax1, threads: 0) }
    }

    @Test func tensors() throws {
        let cache = try problem.cache(appending: 0..<70)
        let attention = try problem.attention()
        let queries = problem.queries(68..<70)
        let error = expectRefusal(.elementCount, "queries") {
            _ = try attention.attend(queries: queries + [0], cache: cache)
        }
        #expect(error?.expected == "a multiple of 1 x 30 elements")
        expectRefusal(.elementCount, "queries") {
            _ = try attention.attend(queries: queries, caches: [cache, cache, cache])
        }
        var output = [Float](repeating: 7, count: 5)
        expectRefusal(.elementCount, "output") { try attention.attend(queries: queries, cache: cache, into: &output) }
        #expect(output == [7, 7, 7, 7, 7])
        expectRefusal(.offsets, "queryOffsets") {
            _ = try attention.attend(queries: queries, caches: [cache], queryOffsets: [1, 2])
        }
        expectRefusal(.offsets, "keyOffsets") {
            _ = try attention.attend(queries: queries, caches: [cache], queryOffsets: [0, 1, 2])
        }
        expectRefusal(.elementCount, "queries") {
            _ = try attention.attend(queries: queries, caches: [cache], queryOffsets: [0, 3])
        }
    }

    @Test func caches() throws {
        let cache = try problem.cache(appending: 0..<70)
        let attention = try problem.attention()
        let other = try KeyValueCache(keyValueHeads: 2, headDimension: 5, valueDimension: 5)
        let error = expectRefusal(.cacheShape, "caches[1]") {
            _ = try attention.attend(queries: problem.queries(0..<2), caches: [cache, other])
        }
        #expect(error?.found == "2 heads with keys of 5 and values of 5")
        let three = try KeyValueCache(keyValueHeads: 4, headDimension: 5, valueDimension: 18)
        expectRefusal(.headGroups, "keyValueHeads") {
            _ = try attention.attend(queries: problem.queries(0..<1), cache: three)
        }
    }

    /// Blocks are laid out for one kind of products or the other.
    @Test func cachesMadeForOtherProducts() throws {
        let caches = try [CacheNumbers.bfloat16, .bfloat16Products].map { try problem.cache($0, appending: 0..<70) }
        let queries = problem.queries(68..<69)
        for (index, products) in [AttentionProducts.float32, .bfloat16].enumerated() {
            let attention = try problem.attention(products: products)
            #expect(throws: Never.self) { _ = try attention.attend(queries: queries, cache: caches[index]) }
            let error = expectRefusal(.composition, "caches[\(1 - index)]") {
                _ = try attention.attend(queries: queries + queries, caches: caches)
            }
            #expect(error?.expected == "one made for products of \(products.rawValue)")
            expectRefusal(.composition, "caches[0]") {
                _ = try attention.partial(queries: queries, cache: caches[1 - index])
            }
        }
    }

    @Test func moreQueriesThanTokens() throws {
        let attention = try problem.attention()
        let cache = try problem.cache(appending: 0..<3)
        _ = try attention.attend(queries: problem.queries(0..<3), cache: cache)
        let error = expectRefusal(.cacheRange, "caches[0]") {
            _ = try attention.attend(queries: problem.queries(0..<4), cache: cache)
        }
        #expect(
            error?.description == "caches[0]: expected at least 4 tokens, one for each query, appended before, got 3")
        expectRefusal(.cacheRange, "caches[0]") {
            _ = try attention.attend(queries: problem.queries(0..<1), cache: problem.cache())
        }
        // Packed queries: the second cache has one token too few, the third is empty and has no query.
        let queries = problem.queries(0..<5, layout: .batchSequenceHeads)
        let caches = try [cache, problem.cache(appending: 0..<1), problem.cache()]
        expectRefusal(.cacheRange, "caches[1]") {
            _ = try attention.attend(queries: queries, caches: caches, queryOffsets: [0, 3, 5, 5])
        }
        let none = [Float](problem.queries(0..<4, layout: .batchSequenceHeads))
        _ = try attention.attend(queries: none, caches: caches, queryOffsets: [0, 3, 4, 4])
    }

    @Test func layouts() throws {
        let attention = try problem.attention()
        let caches = try [
            problem.cache(appending: 0..<9), problem.cache(layout: .batchSequenceHeads, appending: 0..<9),
        ]
        let queries = problem.queries(7..<9)
        expectRefusal(.cacheShape, "caches[1]") {
            _ = try attention.attend(queries: queries + queries, caches: caches)
        }
        let stated = try problem.attention(layout: .batchHeadsSequence)
        let both = try stated.attend(queries: queries + queries, caches: caches)
        #expect(both.output == (0..<2).flatMap { _ in both.output.prefix(both.output.count / 2) })
        // Queries are read, and outputs written, in the order of the cache's tokens.
        let rows = try attention.attend(
            queries: problem.queries(7..<9, layout: .batchSequenceHeads), cache: caches[1])
        let same = try problem.attention(layout: .batchSequenceHeads)
            .attend(queries: problem.queries(7..<9, layout: .batchSequenceHeads), cache: caches[0])
        #expect(rows.bits == same.bits)
    }

    @Test func masks() throws {
        let cache = try problem.cache(appending: 0..<70)
        let attention = try problem.attention()
        let queries = problem.queries(0..<2)
        expectRefusal(.window, "mask.window") {
            _ = try attention.attend(queries: queries, cache: cache, mask: .window(0))
        }
        expectRefusal(.broadcastExtent, "mask.allowing.keys") {
            let allowed = try BroadcastTensor([true, true], keys: 2)
            _ = try attention.attend(queries: queries, cache: cache, mask: .none.allowing(allowed))
        }
        expectRefusal(.broadcastExtent, "bias.queries") {
            let bias = try BroadcastTensor([Float](repeating: 0, count: 210), queries: 3, keys: 70)
            _ = try attention.attend(queries: queries, cache: cache, bias: bias)
        }
        expectRefusal(.keyLengthCount, "mask.keyLengths") {
            _ = try attention.attend(queries: queries, cache: cache, mask: .none.keyLengths([1, 2]))
        }
    }

    @Test func emptyWork() throws {
        let attention = try problem.attention(threads: 2)
        #expect(try attention.attend(queries: [], caches: []).output.isEmpty)
        expectRefusal(.elementCount, "queries") { _ = try attention.attend(queries: [1], caches: []) }
        #expect(try attention.attend(queries: [], caches: [], queryOffsets: [0]).output.isEmpty)
        for offsets in [[], [7], [0, 5]] {
            #expect(throws: AttentionError.self) {
                _ = try attention.attend(queries: [], caches: [], queryOffsets: offsets)
            }
        }
        let cache = try problem.cache(appending: 0..<70)
        #expect(try attention.attend(queries: [], cache: cache).output.isEmpty)
        let headless = try CachedAttention(queryHeads: 0, sink: .softmax1)
        #expect(try headless.attend(queries: [], cache: cache).output.isEmpty)
        expectRefusal(.elementCount, "queries") { _ = try headless.attend(queries: [1], cache: cache) }
    }

    @Test func callsReuseMemory() throws {
        let cache = try problem.cache(appending: 0..<70)
        let attention = try problem.attention()
        _ = try attention.attend(queries: problem.queries(0..<2), cache: cache)
        let bytes = attention.workspace.byteCount
        #expect(bytes > 0)
        for _ in 0..<3 { _ = try attention.attend(queries: problem.queries(0..<2), cache: cache) }
        #expect(attention.workspace.byteCount == bytes)
    }
}
