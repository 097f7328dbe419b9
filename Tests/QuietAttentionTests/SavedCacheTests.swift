// SPDX-License-Identifier: Apache-2.0
// SavedCacheTests.swift - caches as bytes and in files: the same bits again, and damage that is noticed.

import SeededInputs
import TestSupport
import Testing

@testable import QuietAttention

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

@Suite struct SavedCacheTests {
    private let problem = CacheProblem(tokens: 330)

    @Test(arguments: CacheNumbers.all, [0, 1, 63, 64, 300])
    func restoredBitsAreTheSame(_ numbers: CacheNumbers, _ tokens: Int) throws {
        for window in [nil, 70] {
            var cache = try problem.cache(numbers, window: window, appending: 0..<tokens / 2)
            try problem.append(tokens / 2..<tokens, to: &cache)
            let bytes = try cache.savedBytes()
            #expect(bytes.count == 96 + cache.pages.count * cache.pageBytes)
            var restored = try problem.cache(numbers, window: window, appending: 0..<9)
            try restored.restore(from: bytes)
            #expect(restored.positions == cache.positions && restored.freedPages == cache.freedPages)
            #expect(try restored.savedBytes() == bytes)
            try problem.append(tokens..<330, to: &cache)
            try problem.append(tokens..<330, to: &restored)
            let attention = try problem.attention(products: numbers.products)
            let queries = problem.queries(tokens..<330)
            #expect(
                try attention.attend(queries: queries, cache: restored).bits
                    == attention.attend(queries: queries, cache: cache).bits)
        }
    }

    @Test(arguments: CacheNumbers.all)
    func bytesDependOnTokensAlone(_ numbers: CacheNumbers) throws {
        // Memory that held NaN, and tokens that were taken back, leave no trace.
        var cache = try problem.cache(numbers, appending: 0..<100, allocate: memoryOfNaN)
        try cache.append(keys: [Float](repeating: .nan, count: 10), values: [Float](repeating: .nan, count: 36))
        try problem.append(101..<130, to: &cache)
        try cache.truncate(to: 90)
        for kernels in KernelSet.available + KernelSet.emulated {
            let fresh = try problem.cache(numbers, kernels: kernels, appending: 0..<90)
            #expect(try fresh.savedBytes() == cache.savedBytes())
        }
    }

    @Test func treesOfDraftsAreNotSaved() throws {
        var cache = try problem.cache(appending: 0..<9)
        let bytes = try cache.savedBytes()
        let (keys, values) = problem.tokens(9..<11)
        try cache.append(keys: keys, values: values, positions: [9, 9])
        expectRefusal(.composition, "cache") { _ = try cache.savedBytes() }
        // What was restored stands where it lies.
        var restored = cache
        try restored.restore(from: bytes)
        #expect(restored.tokenPositions.isEmpty && restored.count == 9)
        try cache.truncate(to: 9)
        #expect(try cache.savedBytes() == bytes)
    }

    @Test func damageIsNoticed() throws {
        let bytes = try problem.cache(.int8, window: 30, appending: 0..<70).savedBytes()
        var cache = try problem.cache(.int8, window: 30, appending: 0..<3)
        func refused(_ bytes: [UInt8]) throws {
            expectRefusal(.savedCache, "bytes") { try cache.restore(from: bytes) }
            #expect(cache.positions == 0..<3)
        }
        for length in [0, 1, 8, 95, 96, bytes.count - 8, bytes.count - 1] { try refused(Array(bytes.prefix(length))) }
        try refused(bytes + [0])
        try refused(bytes + [UInt8](repeating: 0, count: 8))
        var generator = SeededGenerator(seed: 3)
        for trial in 0..<300 {
            var damaged = bytes
            let place = trial < 96 ? trial : generator.next(below: bytes.count)
            damaged[place] ^= UInt8(1 << generator.next(below: 8))
            try refused(damaged)
        }
    }

    /// Headers of any numbers, with the checksum that goes with them.
    @Test func numbersThatNoCacheHasAreRefused() throws {
        let bytes = try problem.cache(window: 30, appending: 0..<70).savedBytes()
        var cache = try problem.cache(window: 30)
        for field in 2..<11 {
            for number in [0, 1, 2, 64, 1 << 40, 1 << 62, UInt64.max] {
                var changed = bytes
                func write(_ number: UInt64, at place: Int) {
                    for byte in 0..<8 { changed[place + byte] = UInt8(truncatingIfNeeded: number >> (8 * byte)) }
                }
                write(number, at: field * 8)
                var checksum = Checksum()
                changed.withUnsafeBytes { checksum.add(UnsafeRawBufferPointer(rebasing: $0.dropLast(8))) }
                write(checksum.value, at: bytes.count - 8)
                if changed == bytes { continue }
                do {
                    try cache.restore(from: changed)
                    // Counts that need the same pages are as good as the one that was saved.
                    #expect(field >= 9, "field \(field), \(number)")
                    try cache.truncate(to: 0)
                } catch {
                    #expect([.savedCache, .cacheShape, .cacheLimit, .position, .memory].contains(error.kind))
                    #expect(cache.count == 0)
                }
            }
        }
    }

    @Test func cachesMadeOtherwiseAreRefused() throws {
        let rotary = AttentionPositions.rotary()
        func cache(
            heads: Int = 2, dimension: Int = 8, values: Int = 8, _ storage: KeyValueCache.Storage = .float16,
            window: Int? = 40, rollback: Int = 3, positions: AttentionPositions = .rotary(), norm: QueryKeyNorm? = nil,
            products: AttentionProducts = .float32
        ) throws -> KeyValueCache {
            try KeyValueCache(
                keyValueHeads: heads, headDimension: dimension, valueDimension: values, storage: storage,
                window: window,
                rollbackTokens: rollback, positions: positions, queryKeyNorm: norm, products: products)
        }
        var saved = try cache()
        try saved.append(keys: [Float](repeating: 1, count: 80), values: [Float](repeating: 2, count: 80))
        let bytes = try saved.savedBytes()
        var same = try cache()
        try same.restore(from: bytes)
        let others = try [
            cache(heads: 1), cache(dimension: 16), cache(values: 9), cache(.bfloat16), cache(window: nil),
            cache(window: 41), cache(rollback: 4), cache(positions: .none), cache(positions: rotary.offset(by: 1)),
            cache(positions: .rotary(RotaryEmbedding(base: 9999))), cache(norm: .rms()),
        ]
        for (index, other) in others.enumerated() {
            var other = other
            let error = expectRefusal(.cacheShape, "saved cache") { try other.restore(from: bytes) }
            #expect(error != nil && other.count == 0, "\(index)")
        }
        var small = try KeyValueCache(
            keyValueHeads: 2, headDimension: 8, storage: .float16, window: 40, rollbackTokens: 3, maximumTokens: 4,
            positions: rotary)
        // Blocks of bfloat16 for either kind of products, whose lengths may be equal.
        let kinds: [AttentionProducts] = [.float32, .bfloat16]
        for (products, other) in [(kinds[0], kinds[1]), (kinds[1], kinds[0])] {
            let bytes = try cache(.bfloat16, products: products).savedBytes()
            var restored = try cache(.bfloat16, products: other)
            let error = expectRefusal(.cacheShape, "saved cache") { try restored.restore(from: bytes) }
            #expect(error?.description.contains("products of bfloat16") ?? false)
        }
        expectRefusal(.cacheLimit, "bytes") { try small.restore(from: bytes) }
    }

    @Test func files() throws {
        let folder = "/tmp/quiet-attention-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        try #require(mkdir(folder, 0o700) == 0)
        defer {
            for name in ["cache", "link", "pipe", "dangling", "new", "loop"] { unlink("\(folder)/\(name)") }
            rmdir(folder)
        }
        let (path, link) = ("\(folder)/cache", "\(folder)/link")
        let cache = try problem.cache(.bfloat16, appending: 0..<300)
        try cache.write(to: path)
        var restored = try problem.cache(.bfloat16)
        try restored.read(from: path)
        #expect(try restored.savedBytes() == cache.savedBytes())
        // A file is replaced where a link leads, and keeps its mode.
        try #require(chmod(path, 0o640) == 0 && symlink(path, link) == 0)
        let longer = try problem.cache(.bfloat16, appending: 0..<330)
        try longer.write(to: link)
        var status = stat()
        try #require(lstat(path, &status) == 0)
        #expect(status.st_mode & 0o777 == 0o640 && status.st_mode & S_IFMT == S_IFREG)
        try restored.read(from: path)
        #expect(restored.count == 330)
        // What does not work leaves everything as it was, and no file behind: the folder can be removed.
        expectRefusal(.file, "path") { try cache.write(to: "\(folder)/none/cache") }
        expectRefusal(.file, "path") { try restored.read(from: "\(folder)/none") }
        expectRefusal(.file, "path") { try restored.read(from: folder) }
        // What is no saved cache of this shape is refused by its beginning and its length, however long it is.
        let huge = "\(folder)/new"
        var other = try problem.cache(.float16)
        for size in [0, 50, 1 << 41, (1 << 41) + 8] {
            try cache.write(to: huge)
            try #require(truncate(huge, off_t(size)) == 0)
            expectRefusal(.savedCache, "bytes") { try restored.read(from: huge) }
            if size > 50 { expectRefusal(.cacheShape, "saved cache") { try other.read(from: huge) } }
        }
        unlink(huge)
        // What is no regular file is left alone: a device or a pipe in its place would be lost.
        let pipe = "\(folder)/pipe"
        #expect(mkfifo(pipe, 0o600) == 0)
        expectRefusal(.file, "path") { try cache.write(to: pipe) }
        var left = stat()
        #expect(stat(pipe, &left) == 0 && left.st_mode & S_IFMT == S_IFIFO)
        // Nobody writes to it, and reading does not wait for that.
        expectRefusal(.file, "path") { try restored.read(from: pipe) }
        expectRefusal(.file, "path") { try restored.read(from: path + "\0x") }
        expectRefusal(.file, "path") { try cache.write(to: path + "\0x") }
        // A link stays one where there is nothing yet, and one that leads to itself leads nowhere.
        let (dangling, loop) = ("\(folder)/dangling", "\(folder)/loop")
        try #require(symlink("new", dangling) == 0 && symlink("loop", loop) == 0)
        try longer.write(to: dangling)
        #expect(lstat(dangling, &status) == 0 && status.st_mode & S_IFMT == S_IFLNK)
        try restored.read(from: "\(folder)/new")
        expectRefusal(.file, "path") { try cache.write(to: loop) }
        #expect(lstat(loop, &status) == 0 && status.st_mode & S_IFMT == S_IFLNK)
        #expect(restored.count == 330)
    }
}
