// SPDX-License-Identifier: Apache-2.0
// PositionCacheTests.swift - positions in caches, in parts and on threads: the bits of one prefill, however it is cut.

import TestSupport
import Testing

@testable import QuietAttention

@Suite struct PositionCacheTests {
    /// Beyond a chunk, and not at the end of a page.
    private static let problem = CacheProblem(tokens: 1100) { ($0.headDimension, $0.group) = (6, 2) }
    private static let last = 1060..<1100

    private static let cases = PlaceRules.encodings(length: 2000)

    private func prefill(
        _ positions: PositionCase, _ products: AttentionProducts = .float32
    ) throws -> AttentionResult {
        try prefill(positions.positions, positions.norm, products)
    }

    private func prefill(
        _ positions: AttentionPositions, _ norm: QueryKeyNorm? = nil, _ products: AttentionProducts = .float32
    ) throws -> AttentionResult {
        let problem = Self.problem
        let shape = try AttentionShape(
            queryHeads: problem.queryHeads, keyValueHeads: problem.keyValueHeads, queries: Self.last.count,
            keys: problem.tokens, headDimension: problem.headDimension, valueDimension: problem.valueDimension)
        let attention = try Attention(
            shape, sink: .softmax1, mask: .causal, positions: positions, queryKeyNorm: norm, products: products)
        return try attention.forward(queries: problem.queries(Self.last), keys: problem.keys, values: problem.values)
    }

    private func cache(
        _ positions: PositionCase, _ kernels: KernelSet, _ numbers: CacheNumbers = .float32
    ) throws -> KeyValueCache {
        try KeyValueCache(
            keyValueHeads: Self.problem.keyValueHeads, headDimension: 6, valueDimension: Self.problem.valueDimension,
            storage: numbers.storage, positions: positions.positions, queryKeyNorm: positions.norm,
            products: numbers.products, kernels: kernels)
    }

    /// Prepared keys are rounded once where products are of bfloat16.
    @Test("prefill, parts and steps", arguments: cases, [CacheNumbers.float32, .bfloat16Products])
    func equalsOnePrefill(positions: PositionCase, numbers: CacheNumbers) throws {
        let problem = Self.problem
        let expected = try prefill(positions, numbers.products)
        for kernels in KernelSet.available + (numbers == .float32 ? [] : KernelSet.emulated) {
            var cache = try cache(positions, kernels, numbers)
            for (begin, end) in [(0, 1), (1, 63), (63, 65), (65, 700), (700, 1080), (1080, 1060), (1060, 1061)] {
                if end < begin { try cache.truncate(to: end) } else { try problem.append(begin..<end, to: &cache) }
            }
            for (begin, end) in [(1060, 1061), (1061, 1062), (1062, 1063), (1063, 1099), (1099, 1100)] {
                if end > cache.count { try problem.append(begin..<end, to: &cache) }
                for threads in [1, 3] {
                    let result = try problem.attention(kernels, products: numbers.products, threads: threads)
                        .attend(queries: problem.queries(begin..<end), cache: cache)
                    for token in begin..<end {
                        #expect(
                            result.bits(ofQuery: token - begin, of: end - begin)
                                == expected.bits(ofQuery: token - Self.last.lowerBound, of: Self.last.count),
                            "\(kernels), token \(token)")
                    }
                }
            }
        }
    }

    /// Tokens that continue another sequence: queries and keys stand where the offset says, as in one forward pass.
    @Test(arguments: [1, 1000, -1099])
    func offsets(_ offset: Int) throws {
        let problem = Self.problem
        // Relative encodings would hide a shift of both sides, but for rounding: this one has a centre.
        let embedding = RotaryEmbedding(scaling: .xPos(scaleBase: 512, centre: 0))
        func attend(_ positions: AttentionPositions) throws -> [UInt32] {
            var cache = try KeyValueCache(
                keyValueHeads: problem.keyValueHeads, headDimension: 6, valueDimension: problem.valueDimension,
                positions: positions)
            try problem.append(0..<700, to: &cache)
            try problem.append(700..<1100, to: &cache)
            return try problem.attention().attend(queries: problem.queries(Self.last), cache: cache).bits
        }
        let positions = AttentionPositions.rotary(embedding).offset(by: offset)
        #expect(try attend(positions) == prefill(positions).bits)
        #expect(try attend(positions) != attend(.rotary(embedding)))
    }

    /// Rows of several heads in one item, and sequences of different lengths in one call.
    @Test func sequencesOfDifferentLengths() throws {
        let problem = Self.problem
        let positions = Self.cases[0]
        let kernels = try KernelSet.preferred()
        let expected = try prefill(positions)
        var short = try cache(positions, kernels)
        try problem.append(0..<1070, to: &short)
        var long = short
        try problem.append(1070..<1100, to: &long)
        let rows =
            problem.queries(1065..<1070, layout: .batchSequenceHeads)
            + problem.queries(1061..<1100, layout: .batchSequenceHeads)
        let result = try problem.attention(kernels, threads: 2).attend(
            queries: rows, caches: [short, long], queryOffsets: [0, 5, 44])
        let (heads, width) = (problem.queryHeads, problem.valueDimension)
        for (row, token) in [(0, 1065), (4, 1069), (5, 1061), (43, 1099)] {
            for head in 0..<heads {
                let place = (head * Self.last.count + token - Self.last.lowerBound) * width
                #expect(
                    result.output[(row * heads + head) * width..<(row * heads + head + 1) * width]
                        == expected.output[place..<place + width])
            }
        }
    }

    /// A cache without positions beside one with: each as it was made.
    @Test func cachesOfDifferentPositions() throws {
        let problem = Self.problem
        let kernels = try KernelSet.preferred()
        var caches = [try cache(Self.cases[0], kernels), try problem.cache(kernels: kernels)]
        for index in 0..<2 { try problem.append(0..<200, to: &caches[index]) }
        let queries = problem.queries(199..<200)
        let together = try problem.attention(kernels).attend(queries: queries + queries, caches: caches)
        for index in 0..<2 {
            let alone = try problem.attention(kernels).attend(queries: queries, cache: caches[index])
            let count = alone.output.count
            #expect(Array(together.output[index * count..<(index + 1) * count]) == alone.output)
        }
        let count = together.output.count / 2
        #expect(together.output.prefix(count) != together.output.suffix(count))
    }

    /// States of chunks, of rows prepared once for each of them.
    @Test func partsOfTheKeys() throws {
        let problem = Self.problem
        var cache = try self.cache(Self.cases[0], KernelSet.preferred())
        try problem.append(0..<1100, to: &cache)
        let attention = try problem.attention(threads: 2)
        let queries = problem.queries(Self.last)
        let parts = try [0..<1024, 1024..<1100].map {
            try attention.partial(queries: queries, cache: cache, keys: $0)
        }
        let merged = try parts[0].merged(with: parts[1]).finish(sink: .softmax1)
        #expect(try merged.bits == prefill(Self.cases[0]).bits)
    }

    /// Each worker prepares rows in memory of its own, and packs blocks for others.
    @Test(arguments: ThreadTests.shapes, [2, 5])
    func threadsChangeNoPreparedBit(_ shape: AttentionShape, _ threads: Int) throws {
        let problem = Problem(shape)
        let positions = AttentionPositions.rotary(
            RotaryEmbedding(dimensions: 2, scaling: .xPos(scaleBase: 512, centre: 100)))
        let expected = try problem.run(
            Attention(shape, sink: .softmax1, mask: .causal, positions: positions, queryKeyNorm: .rms(), threads: 1)
        ).bits
        for wholeGroups in [false, true] {
            let attention = try Attention(
                shape, sink: .softmax1, mask: .causal, positions: positions, queryKeyNorm: .rms(), threads: threads,
                spread: true,
                wholeGroups: wholeGroups)
            #expect(attention.threadsInUse > 1 || shape.keys == 0)
            for _ in 0..<3 { #expect(try problem.run(attention).bits == expected) }
        }
    }
}
