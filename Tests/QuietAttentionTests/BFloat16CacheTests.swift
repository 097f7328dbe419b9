// SPDX-License-Identifier: Apache-2.0
// BFloat16CacheTests.swift - products of bfloat16 over caches: every kernel set against the reference, bit for bit.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@testable import QuietAttention

private let sets = KernelSet.available + KernelSet.emulated

@Suite struct BFloat16CacheTests {
    /// Channels beyond a segment, values beyond two vectors, keys beyond a chunk and not at the end of a page.
    private static let problem = CacheProblem(tokens: 1100, seed: 5) {
        ($0.headDimension, $0.valueDimension) = (33, 40)
    }

    /// What the reference gives for the last queries, over all tokens that a window leaves.
    private static func expected(_ problem: CacheProblem, _ queries: Int, window: Int? = nil) -> AttentionResult {
        var reference = ReferenceProblem(
            queryHeads: problem.queryHeads, keyValueHeads: problem.keyValueHeads, queries: queries,
            keys: problem.tokens, headDimension: problem.headDimension, valueDimension: problem.valueDimension,
            sinks: [Float](repeating: 0, count: problem.queryHeads))
        reference = window.map { reference.window($0) } ?? reference.causal
        reference.products = .bfloat16
        let result = reference.forward(
            queries: problem.queries(problem.tokens - queries..<problem.tokens), keys: problem.keys,
            values: problem.values)
        return AttentionResult(output: result.output, logSumExp: result.logSumExp, sinkShare: result.sinkShare)
    }

    /// One row, a few, more than a softmax tile, more than a band; of three query heads each.
    private static let counts = [1, 2, 3, 13, 37]
    private static let prefills = counts.map { expected(problem, $0) }
    private static let windowed = counts.map { expected(problem, $0, window: 70) }

    private func requireSame(_ result: AttentionResult, _ expected: AttentionResult, _ context: String) throws {
        try requireSameBits("out", result.output, expected.output, context)
        try requireSameBits("lse", result.logSumExp, expected.logSumExp, context)
        try requireSameBits("sink share", result.sinkShare, expected.sinkShare, context)
    }

    @Test(arguments: sets)
    func anyQueriesEqualTheReference(_ kernels: KernelSet) throws {
        let problem = Self.problem
        let cache = try problem.cache(
            .bfloat16Products, kernels: kernels, appending: 0..<problem.tokens, allocate: memoryOfNaN)
        var sliding = try problem.cache(
            .bfloat16Products, window: 70, rollbackTokens: 40, kernels: kernels, appending: 0..<1000,
            allocate: memoryOfNaN)
        for token in 1000..<1100 { try problem.append(token..<token + 1, to: &sliding) }
        for (index, count) in Self.counts.enumerated() {
            let queries = problem.queries(problem.tokens - count..<problem.tokens)
            for threads in [1, 3] {
                let attention = try problem.attention(kernels, products: .bfloat16, threads: threads)
                let context = "\(kernels), \(count) queries, \(threads) threads"
                try requireSame(
                    attention.attend(queries: queries, cache: cache), Self.prefills[index], context)
                try requireSame(
                    attention.attend(queries: queries, cache: sliding), Self.windowed[index], "\(context), window")
            }
        }
    }

    /// NaN and infinities, among keys and values that rows see and that they do not see yet, that were taken back, and that
    /// others were put in the place of.
    @Test(arguments: sets)
    func numbersThatAreNotFinite(_ kernels: KernelSet) throws {
        var problem = CacheProblem(tokens: 150) { ($0.headDimension, $0.valueDimension) = (20, 18) }
        let clean = problem
        for (token, key, value) in [
            (70, Float.nan, Float(1)), (100, 1, .infinity), (140, -.infinity, 1), (147, 1, .nan), (149, .infinity, 1),
        ] {
            problem.setKeys(token..<token + 1, to: key)
            problem.setValues(token..<token + 1, to: value)
        }
        let attention = try problem.attention(kernels, products: .bfloat16)
        let all = try problem.cache(.bfloat16Products, kernels: kernels, appending: 0..<150)
        try requireSame(
            attention.attend(queries: problem.queries(110..<150), cache: all), Self.expected(problem, 40), "\(kernels)")
        for length in [64, 65, 70, 101, 128] {
            var cache = all
            try cache.truncate(to: length)
            for (begin, end) in [(length, min(length + 9, 149)), (min(length + 9, 149), 150)] {
                try clean.append(begin..<end, to: &cache)
            }
            var mended = clean
            mended.copyTokens(0..<length, from: problem)
            try requireSame(
                attention.attend(queries: clean.queries(113..<150), cache: cache), Self.expected(mended, 37),
                "\(kernels), taken back to \(length)")
        }
    }

    /// What is too small for a factor of bfloat16 is 0 in a cache, too.
    @Test(arguments: sets)
    func tinyNumbers(_ kernels: KernelSet) throws {
        var problem = CacheProblem(tokens: 40) { ($0.headDimension, $0.valueDimension) = (4, 3) }
        problem.scaleTokens(by: 0x1p-57)
        let attention = try problem.attention(kernels, products: .bfloat16)
        let cache = try problem.cache(.bfloat16Products, kernels: kernels, appending: 0..<40)
        let result = try attention.attend(queries: problem.queries(20..<40), cache: cache)
        try requireSame(result, Self.expected(problem, 20), "\(kernels)")
        #expect(result.output.contains { $0 == 0 } && result.output.contains { $0 != 0 })
    }

    /// Random tokens in random pieces; then the rows of parts of the keys, merged.
    @Test(arguments: sets)
    func chunkedPrefillAndParts(_ kernels: KernelSet) throws {
        let problem = Self.problem
        var generator = SeededGenerator(seed: 11)
        let attention = try problem.attention(kernels, products: .bfloat16, threads: 2)
        for _ in 0..<4 {
            var cache = try problem.cache(.bfloat16Products, kernels: kernels, allocate: memoryOfNaN)
            while cache.count < problem.tokens - 37 {
                let end = min(problem.tokens - 37, cache.count + generator.next(in: 1...150))
                try problem.append(cache.count..<end, to: &cache)
            }
            try problem.append(cache.count..<problem.tokens, to: &cache)
            let queries = problem.queries(problem.tokens - 37..<problem.tokens)
            let left = try attention.partial(queries: queries, cache: cache, keys: 0..<1024)
            let right = try attention.partial(queries: queries, cache: cache, keys: 1024..<1100)
            let expected = Self.prefills[4]
            try requireSame(attention.attend(queries: queries, cache: cache), expected, "\(kernels)")
            try requireSame(left.merged(with: right).finish(sink: .softmax1), expected, "\(kernels), parts")
        }
    }
}

extension CacheProblem {
    fileprivate mutating func setValues(_ range: Range<Int>, to value: Float) {
        for head in 0..<keyValueHeads {
            let first = (head * tokens + range.lowerBound) * valueDimension
            for index in first..<first + range.count * valueDimension { values[index] = value }
        }
    }

    fileprivate mutating func scaleTokens(by factor: Float) {
        for index in keys.indices { keys[index] *= factor }
        for index in values.indices { values[index] *= factor }
    }

    fileprivate mutating func copyTokens(_ range: Range<Int>, from other: CacheProblem) {
        for head in 0..<keyValueHeads {
            let (first, last) = (head * tokens + range.lowerBound, head * tokens + range.upperBound)
            for index in first * headDimension..<last * headDimension { keys[index] = other.keys[index] }
            for index in first * valueDimension..<last * valueDimension { values[index] = other.values[index] }
        }
    }
}
