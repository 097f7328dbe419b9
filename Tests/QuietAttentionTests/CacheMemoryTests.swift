// SPDX-License-Identifier: Apache-2.0
// CacheMemoryTests.swift - the memory that forks and windows really take, as the system counts it.

import Testing

@testable import QuietAttention

#if os(Linux)
    #if canImport(Glibc)
        import Glibc
    #elseif canImport(Musl)
        import Musl
    #endif

    @Suite struct CacheMemoryTests {
        /// Pages of 256 KB.
        private func cache(window: Int? = nil) throws -> KeyValueCache {
            try KeyValueCache(keyValueHeads: 8, headDimension: 128, storage: .bfloat16, window: window)
        }

        private func append(_ count: Int, to cache: inout KeyValueCache) throws {
            let rows = [BFloat16](repeating: BFloat16(1), count: count * 8 * 128)
            try cache.append(keys: rows, values: rows)
        }

        private func extents(_ cache: KeyValueCache) -> [ObjectIdentifier: KeyValueExtent] {
            var extents: [ObjectIdentifier: KeyValueExtent] = [:]
            for page in cache.pages + cache.spares { extents[ObjectIdentifier(page.extent)] = page.extent }
            return extents
        }

        /// Bytes of an extent that are in memory.
        private func residentBytes(_ extent: KeyValueExtent) throws -> Int {
            let page = Int(getpagesize())
            var states = [UInt8](repeating: 0, count: (extent.reservedBytes + page - 1) / page)
            try #require(mincore(extent.address, extent.reservedBytes, &states) == 0)
            return states.count { $0 & 1 == 1 } * page
        }

        private func residentBytes(_ cache: KeyValueCache) throws -> Int {
            try extents(cache).values.reduce(0) { $0 + (try residentBytes($1)) }
        }

        @Test func whatIsReportedIsResident() throws {
            var cache = try cache()
            try append(2048, to: &cache)
            #expect(cache.byteCount == 32 * 256 << 10)
            #expect(try residentBytes(cache) == cache.byteCount)
            for _ in 0..<64 { try append(1, to: &cache) }
            #expect(cache.byteCount == 33 * 256 << 10)
            #expect(try residentBytes(cache) == cache.byteCount)
            // With two thirds of its pages an extent lies in large pages, which are resident as a whole.
            for _ in 0..<256 { try append(1, to: &cache) }
            #expect(cache.byteCount == 37 * 256 << 10)
            #expect(try residentBytes(cache) <= cache.byteCount)
            let last = try #require(cache.pages.last).extent
            #expect(!last.liesInLargePages)
            try append(64, to: &cache)
            #expect(cache.byteCount == 38 * 256 << 10 && last.liesInLargePages)
            #expect(try residentBytes(cache) <= cache.byteCount + AlignedMemory.largePage / 3)
        }

        @Test func extentsUnderAWindowAreLargePages() throws {
            // An eighth of the window is 10 pages, of which a large page holds 8.
            var cache = try cache(window: 5120)
            for _ in 0..<5 { try append(1024, to: &cache) }
            let extents = extents(cache).values
            #expect(extents.allSatisfy { $0.reservedBytes == AlignedMemory.largePage && $0.liesInLargePages })
        }

        /// 96 KB a page, of which 22 make a large page: whatever is appended together, extents are a large page or more.
        @Test(arguments: [1, 64, 1000, 1024, 4096])
        func fewHeadsGetLargePages(_ together: Int) throws {
            var cache = try KeyValueCache(keyValueHeads: 3, headDimension: 64)
            let rows = [Float](repeating: 1, count: together * 3 * 64)
            while cache.count < 4096 { try cache.append(keys: rows, values: rows) }
            let short = extents(cache).values.filter { $0.reservedBytes < AlignedMemory.largePage }
            #expect(short.reduce(0) { $0 + $1.reservedBytes } < AlignedMemory.largePage)
            #expect(cache.byteCount == (cache.count + 63) / 64 * 96 << 10)
            #expect(try residentBytes(cache) <= cache.byteCount + AlignedMemory.largePage)
            if together > 64 { #expect(short.isEmpty) }
        }

        /// Room ahead is a wish: where there is none, memory for what is appended is enough.
        @Test func roomAheadIsNotNeeded() throws {
            let most = 4 * 256 << 10
            var cache = try cache()
            cache.allocate = { $0 <= most ? ExtentMemory.allocate($0) : nil }
            for _ in 0..<40 { try append(64, to: &cache) }
            #expect(cache.count == 40 * 64 && cache.byteCount == 40 * 256 << 10)
            try append(4 * 64, to: &cache)
            let before = cache.count
            #expect(throws: AttentionError.self) { try append(6 * 64, to: &cache) }
            #expect(cache.count == before)
        }

        @Test(arguments: [2048, 2050])
        func aForkTakesWhatItsTokensNeed(_ tokens: Int) throws {
            var trunk = try cache()
            try append(2048, to: &trunk)
            if tokens > 2048 { try append(tokens - 2048, to: &trunk) }
            let before = trunk.byteCount
            var forks = [trunk, trunk, trunk]
            for index in forks.indices { try append(1, to: &forks[index]) }
            for fork in forks {
                let own = extents(fork).filter { extents(trunk)[$0.key] == nil }
                #expect(own.count == 1)
                for extent in own.values {
                    #expect(extent.byteCount == 256 << 10)
                    #expect(try residentBytes(extent) <= extent.byteCount)
                }
            }
            #expect(KeyValueCache.byteCount([trunk] + forks) == before + 3 * 256 << 10)
            #expect(KeyValueCache.byteCount([trunk, trunk]) == before)
            #expect(KeyValueCache.byteCount([]) == 0)
        }

        @Test func aWindowTakesWhatItsTokensNeed() throws {
            var cache = try cache(window: 128)
            try append(4096, to: &cache)
            #expect(cache.byteCount == 64 * 256 << 10)
            try append(1, to: &cache)
            // Tokens from 4096 - 127 - 16 on, in four pages with the new one, and one page for tokens to come.
            #expect(cache.positions == 3904..<4097)
            #expect(cache.byteCount <= 5 * 256 << 10)
            #expect(try residentBytes(cache) <= cache.byteCount)
            for _ in 0..<300 { try append(1, to: &cache) }
            #expect(cache.byteCount <= 5 * 256 << 10)
            #expect(try residentBytes(cache) <= cache.byteCount)
        }
    }
#endif
