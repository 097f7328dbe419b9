// SPDX-License-Identifier: Apache-2.0
// DecodeTests.swift - one prefill, in parts, step by step, forked and windowed: the same bits, for every kind of cache and set.

import TestSupport
import Testing

@testable import QuietAttention

private let sets = KernelSet.available + KernelSet.emulated

@Suite struct DecodeTests {
    /// Beyond a chunk, and not at the end of a page.
    private static let problem = CacheProblem(tokens: 1100)
    /// The queries compared.
    private static let last = 1060..<1100

    private static let int8Expected = problem.int8Reference(last)

    /// What all of them have to give.
    private func expected(_ numbers: CacheNumbers) throws -> AttentionResult {
        numbers == .int8
            ? Self.int8Expected
            : try Self.problem.rounded(to: numbers).forward(Self.last, products: numbers.products)
    }

    @Test(arguments: CacheNumbers.all, sets)
    func onePrefill(_ numbers: CacheNumbers, _ kernels: KernelSet) throws {
        let problem = Self.problem
        let expected = try expected(numbers)
        let cache = try problem.cache(numbers, kernels: kernels, appending: 0..<problem.tokens, allocate: memoryOfNaN)
        for threads in [1, 2, 5] {
            let result = try problem.attention(kernels, products: numbers.products, threads: threads)
                .attend(queries: problem.queries(Self.last), cache: cache)
            #expect(result.bits == expected.bits, "\(threads) threads")
        }
    }

    /// Each number of rows up to six has kernels of its own; beyond, the last rows have.
    @Test(arguments: CacheNumbers.all, sets)
    func everyNumberOfRows(_ numbers: CacheNumbers, _ kernels: KernelSet) throws {
        for group in 1...11 {
            let problem = CacheProblem(tokens: 200) {
                ($0.group, $0.headDimension, $0.valueDimension) = (group, 37, 80)
            }
            let last = 199..<200
            let expected =
                try numbers == .int8
                ? problem.int8Reference(last)
                : problem.rounded(to: numbers).forward(last, products: numbers.products)
            let cache = try problem.cache(numbers, kernels: kernels, appending: 0..<200, allocate: memoryOfNaN)
            let result = try problem.attention(kernels, products: numbers.products)
                .attend(queries: problem.queries(last), cache: cache)
            #expect(result.bits == expected.bits, "\(group) rows")
        }
    }

    /// Several tiles of rows over caches of more than a megabyte, which some kernel sets take to be in memory; of blocks
    /// that all rows see whole.
    @Test(arguments: CacheNumbers.all)
    func rowsFromMemory(_ numbers: CacheNumbers) throws {
        let problem = CacheProblem(tokens: 256) {
            ($0.keyValueHeads, $0.group, $0.headDimension, $0.valueDimension) = (8, 14, 15, 272)
        }
        let last = 255..<256
        let expected =
            try numbers == .int8
            ? problem.int8Reference(last) : problem.rounded(to: numbers).forward(last, products: numbers.products)
        for kernels in sets {
            let cache = try problem.cache(numbers, kernels: kernels, appending: 0..<256, allocate: memoryOfNaN)
            let result = try problem.attention(kernels, products: numbers.products)
                .attend(queries: problem.queries(last), cache: cache)
            #expect(result.bits == expected.bits, "\(kernels)")
        }
    }

    static let rules: [CacheProblem.Rules] = [
        .init(scaling: .clippedLogKeys(base: 64), softcap: 3, alibi: .standard),
        .init(scaling: .logKeysPerDimension(kappa: 1)),
        .init(normaliser: .clippedSoftmax(gamma: .overKeys(alpha: 2, .visible))),
        .init(alibi: .standard, normaliser: .sigmoid()), .init(softcap: 3, normaliser: .softpick()),
        .init(normaliser: .reluSquared()), .init(normaliser: .normalisedReluSquared(sink: 1)),
    ]

    /// Row factors, softcap, ALiBi and normalisers count from the first token of the cache.
    @Test(arguments: rules, sets)
    func rulesForScores(_ rules: CacheProblem.Rules, _ kernels: KernelSet) throws {
        let problem = Self.problem
        for numbers in [CacheNumbers.float32, .bfloat16, .bfloat16Products] {
            let expected = try problem.rounded(to: numbers).forward(
                Self.last, sink: nil, rules: rules, products: numbers.products)
            let cache = try problem.cache(
                numbers, kernels: kernels, appending: 0..<problem.tokens, allocate: memoryOfNaN)
            for threads in [1, 3] {
                let attention = try problem.attention(
                    kernels, sink: nil, rules: rules, products: numbers.products, threads: threads)
                let result = try attention.attend(queries: problem.queries(Self.last), cache: cache)
                #expect(result.bits == expected.bits, "\(numbers), \(threads) threads")
            }
        }
    }

    @Test(arguments: CacheNumbers.all, sets)
    func inPartsAndStepByStep(_ numbers: CacheNumbers, _ kernels: KernelSet) throws {
        let problem = Self.problem
        let expected = try expected(numbers)
        let attention = try problem.attention(kernels, products: numbers.products)
        for part in [1, 7, 40] {
            var cache = try problem.cache(numbers, kernels: kernels, allocate: memoryOfNaN)
            for (begin, end) in [(0, 1), (1, 63), (63, 65), (65, 700), (700, 1060)] {
                try problem.append(begin..<end, to: &cache)
            }
            for begin in stride(from: Self.last.lowerBound, to: Self.last.upperBound, by: part) {
                let range = begin..<min(begin + part, Self.last.upperBound)
                try problem.append(range, to: &cache)
                let result = try attention.attend(queries: problem.queries(range), cache: cache)
                for token in range {
                    #expect(
                        result.bits(ofQuery: token - begin, of: range.count)
                            == expected.bits(ofQuery: token - Self.last.lowerBound, of: Self.last.count),
                        "token \(token) in parts of \(part)")
                }
            }
        }
    }

    @Test(arguments: CacheNumbers.all, sets)
    func forkedAndTakenBack(_ numbers: CacheNumbers, _ kernels: KernelSet) throws {
        let problem = Self.problem
        let other = CacheProblem(tokens: 200, seed: 9)
        var trunk = try problem.cache(numbers, kernels: kernels, appending: 0..<1030, allocate: memoryOfNaN)
        var branch = trunk
        try other.append(0..<70, to: &branch)
        try problem.append(1030..<1100, to: &trunk)
        // A draft of which nothing is accepted but the prefix.
        try branch.truncate(to: 1030)
        try problem.append(1030..<1050, to: &branch)
        var twig = branch
        try other.append(0..<1, to: &branch)
        try problem.append(1050..<1100, to: &twig)
        let attention = try problem.attention(kernels, products: numbers.products, threads: 2)
        let expected = try expected(numbers).bits
        for cache in [trunk, twig] {
            #expect(try attention.attend(queries: problem.queries(Self.last), cache: cache).bits == expected)
        }
    }

    private static let windows = [1, 100, 1500]
    private static let int8Windows = windows.map {
        CacheProblem(tokens: 2200).int8Reference(2196..<2200, window: $0)
    }

    @Test(arguments: CacheNumbers.all, sets)
    func windowsThatFreePages(_ numbers: CacheNumbers, _ kernels: KernelSet) throws {
        let problem = CacheProblem(tokens: 2200)
        let attention = try problem.attention(kernels, products: numbers.products)
        for (index, window) in Self.windows.enumerated() {
            let whole = try problem.cache(numbers, kernels: kernels, appending: 0..<problem.tokens)
            var cache = try problem.cache(numbers, window: window, kernels: kernels, allocate: memoryOfNaN)
            for begin in stride(from: 0, to: problem.tokens, by: 110) {
                try problem.append(begin..<begin + 110, to: &cache)
            }
            #expect(cache.positions.lowerBound == max(0, 2090 - window + 1) / 64 * 64)
            let range = 2196..<2200
            let result = try attention.attend(queries: problem.queries(range), cache: cache)
            let unfreed = try attention.attend(queries: problem.queries(range), cache: whole, mask: .window(window))
            #expect(result.bits == unfreed.bits)
            let expected =
                numbers == .int8
                ? Self.int8Windows[index]
                : try problem.rounded(to: numbers).forward(range, mask: .window(window), products: numbers.products)
            #expect(result.bits == expected.bits)
        }
    }

    @Test(arguments: CacheNumbers.all, sets)
    func sixteenBitInputIsKeptOrRoundedOnce(_ numbers: CacheNumbers, _ kernels: KernelSet) throws {
        let problem = CacheProblem(tokens: 130).rounded(to: .bfloat16)
        let keys = problem.keys.map { BFloat16($0) }
        let values = problem.values.map { BFloat16($0) }
        var cache = try problem.cache(numbers, kernels: kernels)
        try cache.append(keys: keys.span, values: values.span)
        let wide = try problem.cache(numbers, kernels: kernels, appending: 0..<130)
        let attention = try problem.attention(kernels, products: numbers.products)
        let narrow = problem.queries(100..<130).map { BFloat16($0) }
        let queries = narrow.map { Float($0) }
        let expected = try attention.attend(queries: queries, cache: wide)
        #expect(try attention.attend(queries: queries, cache: cache).bits == expected.bits)
        // Queries and output of 16 bits.
        var output = [BFloat16](repeating: BFloat16(0), count: expected.output.count)
        var span = output.mutableSpan
        try attention.attend(queries: narrow.span, caches: [cache], into: &span)
        #expect(output.map(\.bitPattern) == expected.output.map { BFloat16($0).bitPattern })
    }

    // MARK: - Several sequences

    @Test(arguments: [1, 2, 3])
    func sequencesOfDifferentLengthsAndStorages(_ threads: Int) throws {
        let problem = CacheProblem(tokens: 2100)
        let lengths = [2100, 40, 64, 1025, 41]
        let caches = try lengths.enumerated().map {
            try problem.cache(CacheNumbers.all[$0.offset % 4], appending: 0..<$0.element)
        }
        for sink in [AttentionSink.softmax, .logits((0..<problem.queryHeads).map { Float($0) - 2 })] {
            let attention = try problem.attention(sink: sink, threads: threads)
            let single = try problem.attention(sink: sink)
            for queries in [1, 3, 40] {
                let parts = lengths.indices.map { problem.queries($0 * 50..<$0 * 50 + queries) }
                let together = try attention.attend(queries: parts.flatMap { $0 }, caches: caches)
                let alone = try caches.indices.map { try single.attend(queries: parts[$0], cache: caches[$0]) }
                #expect(bits(together.output) == bits(alone.flatMap(\.output)))
                #expect(bits(together.logSumExp) == bits(alone.flatMap(\.logSumExp)))
                #expect(bits(together.sinkShare) == bits(alone.flatMap(\.sinkShare)))
            }
        }
    }

    @Test func differentNumbersOfQueries() throws {
        let problem = CacheProblem(tokens: 300)
        let caches = try [300, 70, 128].map { try problem.cache(appending: 0..<$0) }
        let offsets = [0, 5, 5, 17]
        let parts = [0..<5, 0..<0, 20..<32].map { problem.queries($0, layout: .batchSequenceHeads) }
        let packed = try problem.attention(threads: 2)
            .attend(queries: parts.flatMap { $0 }, caches: caches, queryOffsets: offsets)
        let rows = try problem.attention(layout: .batchSequenceHeads)
        let alone = try caches.indices.map { try rows.attend(queries: parts[$0], cache: caches[$0]) }
        #expect(bits(packed.output) == bits(alone.flatMap(\.output)))
        // [H, total], whereas each alone is [H, L].
        for head in 0..<problem.queryHeads {
            #expect(packed.logSumExp[head * 17] == alone[0].logSumExp[head * 5])
            #expect(packed.sinkShare[head * 17 + 16] == alone[2].sinkShare[head * 12 + 11])
        }
    }

    @Test func layouts() throws {
        let problem = CacheProblem(tokens: 100)
        let cache = try problem.cache(appending: 0..<100)
        let exchanged = try problem.cache(layout: .batchSequenceHeads, appending: 0..<100)
        let heads = try problem.attention().attend(queries: problem.queries(90..<100), cache: cache)
        let rows = try problem.attention(layout: .batchSequenceHeads)
            .attend(queries: problem.queries(90..<100, layout: .batchSequenceHeads), cache: exchanged)
        #expect(bits(rows.logSumExp) == bits(heads.logSumExp))
        let dimension = problem.valueDimension
        for head in 0..<problem.queryHeads {
            for query in 0..<10 {
                let (a, b) = ((query * problem.queryHeads + head) * dimension, (head * 10 + query) * dimension)
                #expect(bits(Array(rows.output[a..<a + dimension])) == bits(Array(heads.output[b..<b + dimension])))
            }
        }
    }

    // MARK: - Masks

    @Test(arguments: [1, 3])
    func masksAndBiasesCountFromTheFirstToken(_ threads: Int) throws {
        let problem = CacheProblem(tokens: 1090)
        let cache = try problem.cache(appending: 0..<1090)
        let (queries, keys) = (12, 1090)
        let allowed = try BroadcastTensor(
            (0..<queries * keys).map { $0 * 7 % 11 != 3 }, queries: queries, keys: keys)
        let bias = try BroadcastTensor(
            (0..<problem.queryHeads * keys).map { Float($0 * 13 % 17) / 8 - 1 }, heads: problem.queryHeads, keys: keys)
        let range = 1078..<1090
        let shape = try AttentionShape(
            queryHeads: problem.queryHeads, keyValueHeads: 2, queries: queries, keys: keys, headDimension: 5,
            valueDimension: 18)
        let attention = try problem.attention(threads: threads)
        for mask in [
            AttentionMask.none, .causal, .window(40), .window(before: 30, after: 2), .causal.keyLengths([1000]),
        ] {
            let mask = mask.allowing(allowed)
            let expected = try Attention(shape, sink: .softmax1, mask: mask, bias: bias, threads: 1)
                .forward(queries: problem.queries(range), keys: problem.keys, values: problem.values)
            let result = try attention.attend(queries: problem.queries(range), cache: cache, mask: mask, bias: bias)
            #expect(result.bits == expected.bits)
        }
    }

    // MARK: - Work

    /// Every row of every head meets every chunk in one item, and items of a worker are adjacent.
    @Test(arguments: [1, 2, 7])
    func itemsCoverAllWork(_ threads: Int) throws {
        let problem = CacheProblem(tokens: 5000) { $0.group = 40 }
        let caches = try [5000, 10, 4, 2048].map { try problem.cache(appending: 0..<$0) }
        for queries in [1, 4] {
            let attention = try problem.attention(threads: threads)
            let call = try CachedProblem(
                attention, queryCount: 4 * problem.queryHeads * queries * problem.headDimension, caches: caches,
                queryOffsets: nil, mask: .causal, bias: nil)
            let schedule = try CachedSchedule(call, attention, chunks: nil)
            #expect(schedule.workers == threads)
            #expect((0..<threads).flatMap { schedule.items(ofWorker: $0) } == Array(0..<schedule.items))
            var seen = Set<[Int]>()
            for number in 0..<schedule.items {
                let item = schedule.item(number)
                // 40 rows are one unit, 160 two of equal length in tiles of 6.
                #expect(item.rows.count <= (queries == 1 ? 40 : 84) && !item.rows.isEmpty)
                for row in item.rows {
                    for chunk in item.chunks {
                        #expect(seen.insert([item.sequence, item.keyValueHead, row, chunk]).inserted)
                    }
                }
            }
            #expect(seen.count == 2 * 40 * queries * (5 + 1 + 1 + 2))
        }
    }

    @Test func shortWorkUsesOneThread() throws {
        let problem = CacheProblem(tokens: 4096) { ($0.headDimension, $0.valueDimension) = (128, 128) }
        let attention = try CachedAttention(queryHeads: problem.queryHeads, sink: .softmax1, threads: 8)
        let count = problem.queryHeads * problem.headDimension
        let short = try problem.cache(appending: 0..<64)
        #expect(try attention.threadsInUse(queryCount: count, caches: [short]) == 1)
        let middling = try problem.cache(appending: 0..<512)
        #expect(try (2...6).contains(attention.threadsInUse(queryCount: 2 * count, caches: [middling, middling])))
        let long = try problem.cache(appending: 0..<4096)
        #expect(
            try attention.threadsInUse(queryCount: 8 * count, caches: [KeyValueCache](repeating: long, count: 8)) == 8)
        #expect(try CachedAttention(queryHeads: 6, sink: .softmax1).threads == availableThreads())
    }

    // MARK: - Tasks

    /// For the thread sanitizer too: forks of one cache grow, are read and go away on many tasks.
    @Test func tasksDecodeForksOfOneCache() async throws {
        let problem = CacheProblem(tokens: 1200)
        let prefix = try problem.cache(.bfloat16, appending: 0..<1100)
        let attention = try problem.attention(threads: 2)
        let whole = try problem.cache(.bfloat16, appending: 0..<1200)
        let expected = try attention.attend(queries: problem.queries(1196..<1200), cache: whole).bits
        try await withThrowingTaskGroup(of: [UInt32].self) { tasks in
            for step in [1, 3, 10, 50, 100, 7, 2, 100] {
                tasks.addTask {
                    var branch = prefix
                    for begin in stride(from: 1100, to: 1200, by: step) {
                        let range = begin..<min(begin + step, 1200)
                        try problem.append(range, to: &branch)
                        _ = try attention.attend(queries: problem.queries(range), cache: branch)
                    }
                    return try attention.attend(queries: problem.queries(1196..<1200), cache: branch).bits
                }
            }
            for try await bits in tasks { #expect(bits == expected) }
        }
        #expect(prefix.count == 1100)
    }
}
