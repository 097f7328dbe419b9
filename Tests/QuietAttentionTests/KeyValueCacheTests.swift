// SPDX-License-Identifier: Apache-2.0
// KeyValueCacheTests.swift - pages: how a cache grows, shares, copies and frees them, and what it refuses.

import TestSupport
import Testing

@testable import QuietAttention

@Suite struct KeyValueCacheTests {
    private let problem = CacheProblem(tokens: 400)

    private func pages(_ cache: KeyValueCache) -> [ObjectIdentifier] { cache.pages.map(ObjectIdentifier.init) }

    // MARK: - Pages

    @Test func growsByPagesThatStayInPlace() throws {
        var cache = try problem.cache()
        #expect(cache.count == 0 && cache.positions.isEmpty && cache.byteCount == 0)
        try problem.append(0..<1, to: &cache)
        let first = pages(cache)
        #expect(first.count == 1)
        // 2 heads of 64 tokens, keys of 5 and values of 18, padded to 32.
        #expect(cache.byteCount == 2 * 64 * (5 + 32) * 4)
        #expect(cache.bytesPerToken == 2 * (5 + 18) * 4)
        try problem.append(1..<64, to: &cache)
        #expect(pages(cache) == first)
        try problem.append(64..<200, to: &cache)
        #expect(pages(cache).count == 4 && pages(cache).first == first[0])
        #expect(cache.count == 200 && cache.positions == 0..<200)
    }

    @Test func aHeadsBlocksLieBehindEachOther() throws {
        let cache = try problem.cache(appending: 0..<400)
        // Those of pages that were allocated together.
        for head in 0..<2 {
            for page in 1..<7 {
                let (before, block) = (cache.block(page: page - 1, head: head), cache.block(page: page, head: head))
                #expect(try #require(block) - #require(before) == cache.blockBytes)
            }
        }
        #expect(cache.block(page: 0, head: 1) == cache.block(page: 6, head: 0).map { $0 + cache.blockBytes })
    }

    @Test func memoryCountsUntilItIsFreed() throws {
        var cache = try problem.cache(window: 100, appending: 0..<400)
        try problem.append(0..<1, to: &cache)
        // Of seven pages four are behind the window, of which one is kept for tokens to come.
        #expect(cache.positions == 256..<401)
        #expect(cache.byteCount == 4 * cache.pageBytes)
        // A window of 2048 tokens has extents of four pages. Of two pages behind it one took new tokens in, one is a spare.
        let problem = CacheProblem(tokens: 2560)
        var long = try problem.cache(window: 2048, appending: 0..<2200)
        try problem.append(2200..<2300, to: &long)
        #expect(long.positions == 128..<2300)
        #expect(long.byteCount == 35 * long.pageBytes)
    }

    @Test func storagesTakeTheirBytes() throws {
        let bytes = try CacheNumbers.all.map { numbers in
            try KeyValueCache(
                keyValueHeads: 8, headDimension: 128, storage: numbers.storage, products: numbers.products
            ).bytesPerToken
        }
        #expect(bytes == [8192, 4096, 4096, 2048 + 64, 4096])
        let pages = try CacheNumbers.all.map { numbers in
            var cache = try KeyValueCache(
                keyValueHeads: 1, headDimension: 16, storage: numbers.storage, products: numbers.products)
            try cache.append(keys: [Float](repeating: 1, count: 16), values: [Float](repeating: 1, count: 16))
            return cache.byteCount
        }
        // Of products of bfloat16 channels are filled up to 32.
        #expect(pages == [8192, 4096, 4096, 2048 + 512, 6144 + 64])
    }

    @Test func copiesShareAllPagesButTheOneBothWriteTo() throws {
        var trunk = try problem.cache(appending: 0..<200)
        let before = pages(trunk)
        var branch = trunk
        #expect(pages(branch) == before)
        try problem.append(200..<210, to: &branch)
        // One of the two copies the page, whoever writes first; the other goes on in place.
        #expect(pages(branch).dropLast() == before.dropLast())
        #expect(pages(branch).last != before.last)
        try problem.append(200..<300, to: &trunk)
        #expect(Array(pages(trunk).prefix(4)) == before)
        #expect(branch.count == 210 && trunk.count == 300)
    }

    @Test func aFullLastPageIsNotCopied() throws {
        var trunk = try problem.cache(appending: 0..<128)
        var branch = trunk
        try problem.append(128..<129, to: &branch)
        try problem.append(128..<129, to: &trunk)
        #expect(Array(pages(branch).prefix(2)) == Array(pages(trunk).prefix(2)))
        #expect(pages(branch)[2] != pages(trunk)[2])
    }

    @Test func pagesGoWithTheirLastOwner() throws {
        weak var page: KeyValuePage?
        do {
            let cache = try problem.cache(appending: 0..<10)
            page = cache.pages[0]
            #expect(page != nil)
        }
        #expect(page == nil)
    }

    @Test func truncatingFreesPages() throws {
        var cache = try problem.cache(appending: 0..<200)
        let before = pages(cache)
        try cache.truncate(to: 130)
        #expect(pages(cache) == Array(before.prefix(3)) && cache.count == 130)
        try cache.truncate(to: 128)
        #expect(pages(cache) == Array(before.prefix(2)))
        try cache.truncate(to: 0)
        #expect(cache.byteCount == 0 && cache.positions == 0..<0)
        try problem.append(0..<5, to: &cache)
        #expect(cache.count == 5)
    }

    @Test func anEighthIsReservedAhead() throws {
        let problem = CacheProblem(tokens: 5000)
        var cache = try problem.cache(appending: 0..<4096)
        #expect(cache.byteCount == 64 * cache.pageBytes)
        try problem.append(4096..<4097, to: &cache)
        // What is only reserved takes no memory.
        #expect(cache.byteCount == (64 + 1) * cache.pageBytes)
        #expect(cache.spares.count == 7)
        var branch = cache
        // Spare pages of both are used by the one that comes last to them.
        for begin in stride(from: 4097, to: 4961, by: 96) {
            try problem.append(begin..<begin + 96, to: &branch)
            try problem.append(begin..<begin + 96, to: &cache)
        }
        #expect(Set(pages(cache)).intersection(pages(branch)) == Set(pages(cache).prefix(64)))
        let (attention, queries) = (try problem.attention(), problem.queries(4960..<4961))
        let expected = try problem.forward(4960..<4961).bits
        #expect(try attention.attend(queries: queries, cache: cache).bits == expected)
        #expect(try attention.attend(queries: queries, cache: branch).bits == expected)
        try cache.truncate(to: 0)
        #expect(cache.byteCount == 0)
    }

    // MARK: - Windows

    @Test func aWindowUsesItsPagesAgain() throws {
        let problem = CacheProblem(tokens: 2000)
        let memory = LimitedMemory(8)
        var cache = try problem.cache(window: 200, allocate: memory.allocate)
        for token in 0..<2000 { try problem.append(token..<token + 1, to: &cache) }
        #expect(cache.byteCount <= 6 * cache.pageBytes)
        let attention = try problem.attention()
        let expected = try problem.forward(1999..<2000, mask: .window(200)).bits
        #expect(try attention.attend(queries: problem.queries(1999..<2000), cache: cache).bits == expected)
    }

    @Test func aWindowFreesWhatNoNewTokenSees() throws {
        var cache = try problem.cache(window: 100, appending: 0..<163)
        // All of them are seen by tokens of this call.
        #expect(cache.positions == 0..<163)
        // Token 163 sees keys from 64 on.
        try problem.append(163..<164, to: &cache)
        #expect(cache.positions == 64..<164)
        // The page left behind took the new token in.
        #expect(cache.byteCount == 3 * cache.pageBytes)
        try problem.append(164..<226, to: &cache)
        #expect(cache.positions == 64..<226)
        try problem.append(226..<227, to: &cache)
        #expect(cache.positions == 64..<227)
        try problem.append(227..<400, to: &cache)
        #expect(cache.positions == 128..<400)
    }

    @Test func whatWasAppendedLastCanBeTakenBack() throws {
        var cache = try problem.cache(window: 100, appending: 0..<300)
        try problem.append(300..<400, to: &cache)
        #expect(cache.positions == 192..<400)
        let full = cache
        expectRefusal(.cacheRange, "length") { try cache.truncate(to: 290) }
        #expect(cache.positions == full.positions && pages(cache) == pages(full))
        try cache.truncate(to: 300)
        #expect(cache.positions == 192..<300)
        let attention = try problem.attention()
        try problem.append(300..<310, to: &cache)
        let expected = try problem.forward(300..<310, mask: .window(100))
        #expect(try attention.attend(queries: problem.queries(300..<310), cache: cache).bits == expected.bits)
        try cache.truncate(to: 0)
        #expect(cache.positions == 0..<0)
    }

    @Test func rowsThatSeeFreedTokensAreRefused() throws {
        var cache = try problem.cache(window: 100, appending: 0..<300)
        try problem.append(300..<301, to: &cache)
        let attention = try problem.attention()
        // Token 290 sees keys from 191 on.
        let error = expectRefusal(.cacheRange, "caches[0]") {
            _ = try attention.attend(queries: problem.queries(290..<301), cache: cache)
        }
        #expect(
            error?.description == "caches[0]: expected tokens from position 128 on, got tokens from position 192 on")
        _ = try attention.attend(queries: problem.queries(291..<301), cache: cache)
        _ = try attention.attend(queries: problem.queries(200..<301), cache: cache, mask: .window(8))
    }

    @Test(arguments: [0, 1, 16, 64, 100])
    func aRollbackAlwaysWorks(_ rollback: Int) throws {
        let problem = CacheProblem(tokens: 700)
        for numbers in [CacheNumbers.float32, .int8, .bfloat16Products] {
            var cache = try problem.cache(numbers, window: 70, rollbackTokens: rollback)
            for token in 0..<600 {
                try problem.append(token..<token + 1, to: &cache)
                var back = cache
                #expect(back.truncationRange.contains(max(0, back.count - max(1, rollback))))
                try back.truncate(to: max(0, back.count - max(1, rollback)))
                #expect(back.positions.lowerBound <= max(0, back.count - 69))
            }
            // No more is held than that needs.
            #expect(cache.positions.count < 70 + rollback + 64)
            try cache.truncate(to: 600 - rollback)
            try problem.append(600 - rollback..<700, to: &cache)
            let rows = 700 - 30..<700
            let attention = try problem.attention(products: numbers.products)
            let expected =
                try numbers == .int8
                ? problem.int8Reference(rows, window: 70).bits
                : problem.forward(rows, mask: .window(70), products: numbers.products).bits
            #expect(try attention.attend(queries: problem.queries(rows), cache: cache).bits == expected)
        }
    }

    @Test func whatIsTakenBackIsAppendedInPlace() throws {
        let problem = CacheProblem(tokens: 2200)
        var cache = try problem.cache(appending: 0..<2048)
        try problem.append(2048..<2050, to: &cache)
        let bytes = cache.byteCount
        for _ in 0..<10 {
            try cache.truncate(to: 2047)
            try problem.append(2047..<2050, to: &cache)
            try problem.append(2050..<2130, to: &cache)
            try cache.truncate(to: 2050)
        }
        #expect(cache.byteCount <= bytes + 2 * cache.pageBytes)
    }

    // MARK: - Limits

    @Test func theMaximumIsKept() throws {
        var cache = try problem.cache(maximumTokens: 130, appending: 0..<100)
        let before = pages(cache)
        let error = expectRefusal(.cacheLimit, "keys") { try problem.append(100..<131, to: &cache) }
        #expect(error?.description == "keys: expected at most 130 tokens in the cache, got 131")
        #expect(pages(cache) == before && cache.count == 100)
        try problem.append(100..<130, to: &cache)
        expectRefusal(.cacheLimit, "keys") { try problem.append(130..<131, to: &cache) }
        try problem.append(130..<130, to: &cache)
        // With a window it is a limit of what is held, not of what came.
        var sliding = try problem.cache(window: 30, maximumTokens: 30 + 64 - 2 + 5)
        for begin in stride(from: 0, to: 400, by: 5) { try problem.append(begin..<begin + 5, to: &sliding) }
        expectRefusal(.cacheLimit, "keys") { try problem.append(0..<100, to: &sliding) }
        #expect(sliding.count == 400)
    }

    @Test func withoutMemoryNothingChanges() throws {
        let memory = LimitedMemory(1)
        var cache = try problem.cache(.int8, appending: 0..<100, allocate: memory.allocate)
        var branch = cache
        let before = pages(cache)
        let error = expectRefusal(.memory, "cache") { try problem.append(100..<200, to: &branch) }
        // A copy of the shared page, and two more.
        #expect(error?.description == "cache: expected memory for 3 pages of 5888 bytes, got none")
        #expect(pages(branch) == before && branch.count == 100 && branch.byteCount == cache.byteCount)
        memory.left.withLock { $0 = 1 }
        try problem.append(100..<150, to: &branch)
        let expected = try problem.cache(.int8, appending: 0..<150)
        let (attention, queries) = (try problem.attention(), problem.queries(120..<150))
        #expect(
            try attention.attend(queries: queries, cache: branch).bits
                == attention.attend(queries: queries, cache: expected).bits)
        expectRefusal(.memory, "cache") { try problem.append(100..<150, to: &cache) }
        #expect(pages(cache) == before)
    }

    @Test func memoryThatNoMachineHas() throws {
        let page = try KeyValueCache(keyValueHeads: 1 << 37, headDimension: 1024)
        #expect(page.pageBytes >= 1 << 56)
        expectRefusal(.memory, "cache") {
            _ = try KeyValuePage.pages(
                1, heads: 1, blockBytes: page.pageBytes, filled: 1, ExtentMemory.allocate)
        }
    }

    // MARK: - Arguments

    @Test func dimensions() {
        for heads in [0, -1] {
            expectRefusal(.dimension, "keyValueHeads") {
                _ = try KeyValueCache(keyValueHeads: heads, headDimension: 8)
            }
        }
        for dimension in [0, -1, 1025] {
            expectRefusal(.dimension, "headDimension") {
                _ = try KeyValueCache(keyValueHeads: 1, headDimension: dimension)
            }
            expectRefusal(.dimension, "valueDimension") {
                _ = try KeyValueCache(keyValueHeads: 1, headDimension: 8, valueDimension: dimension)
            }
        }
        expectRefusal(.overflow, "keyValueHeads") { _ = try KeyValueCache(keyValueHeads: Int.max, headDimension: 8) }
        expectRefusal(.dimension, "rollbackTokens") {
            _ = try KeyValueCache(keyValueHeads: 1, headDimension: 8, window: 8, rollbackTokens: -1)
        }
        for storage in KeyValueCache.Storage.allCases where storage != .bfloat16 {
            expectRefusal(.composition, "products") {
                _ = try KeyValueCache(keyValueHeads: 1, headDimension: 8, storage: storage, products: .bfloat16)
            }
        }
        expectRefusal(.window, "window") { _ = try KeyValueCache(keyValueHeads: 1, headDimension: 8, window: 0) }
        expectRefusal(.dimension, "maximumTokens") {
            _ = try KeyValueCache(keyValueHeads: 1, headDimension: 8, maximumTokens: -1)
        }
        #expect(throws: Never.self) {
            var cache = try KeyValueCache(
                keyValueHeads: 1, headDimension: 1, window: Int.max, maximumTokens: Int.max)
            try cache.append(keys: [1], values: [1])
        }
    }

    @Test func countsOfTokens() throws {
        var cache = try problem.cache(appending: 0..<3)
        let (key, value) = ([Float](repeating: 0, count: 10), [Float](repeating: 0, count: 36))
        expectRefusal(.elementCount, "keys") { try cache.append(keys: key + [0], values: value) }
        expectRefusal(.elementCount, "values") { try cache.append(keys: key, values: value + [0]) }
        expectRefusal(.elementCount, "values") { try cache.append(keys: key, values: []) }
        expectRefusal(.elementCount, "values") { try cache.append(keys: [], values: value) }
        try cache.append(keys: [Float](), values: [])
        #expect(cache.count == 3)
    }

    @Test(arguments: [-1, 4, Int.max, Int.min])
    func lengthsToTruncateTo(_ length: Int) throws {
        var cache = try problem.cache(appending: 0..<3)
        expectRefusal(.cacheRange, "length") { try cache.truncate(to: length) }
        #expect(cache.count == 3)
    }
}

/// The system's memory, so many times more.
private final class LimitedMemory: Sendable {
    let left: Lock<Int>

    init(_ allocations: Int) { left = Lock(allocations) }

    var allocate: AlignedMemory.Allocate {
        { [self] byteCount in
            let some = left.withLock { left in
                left -= 1
                return left >= 0
            }
            return some ? ExtentMemory.allocate(byteCount) : nil
        }
    }
}
