// SPDX-License-Identifier: Apache-2.0
// CacheProblem.swift - seeded tokens to append to a cache, and what attention over all of them at once gives.

import AttentionReference
import SeededInputs
import TestSupport

@testable import QuietAttention

/// Queries, keys and values of the tokens of one sequence, unit normal: `[heads][tokens][dimension]`.
struct CacheProblem {
    var keyValueHeads = 2
    var group = 3
    let tokens: Int
    var headDimension = 5
    var valueDimension = 18
    var queries, keys, values: [Float]

    var queryHeads: Int { keyValueHeads * group }

    init(tokens: Int, seed: UInt64 = 1, _ change: (inout Self) -> Void = { _ in }) {
        self.tokens = tokens
        (queries, keys, values) = ([], [], [])
        change(&self)
        var generator = SeededGenerator(seed: seed)
        queries = generator.normals(queryHeads * tokens * headDimension)
        keys = generator.normals(keyValueHeads * tokens * headDimension)
        values = generator.normals(keyValueHeads * tokens * valueDimension)
    }

    /// All keys of some tokens.
    mutating func setKeys(_ range: Range<Int>, to value: Float) {
        for head in 0..<keyValueHeads {
            let first = (head * tokens + range.lowerBound) * headDimension
            for index in first..<first + range.count * headDimension { keys[index] = value }
        }
    }

    /// `[heads][range][dimension]`, or `[range][heads][dimension]`.
    private func part(_ tensor: [Float], _ range: Range<Int>, heads: Int, layout: AttentionLayout) -> [Float] {
        let dimension = tensor.count / (heads * tokens)
        func row(_ head: Int, _ token: Int) -> ArraySlice<Float> {
            tensor[(head * tokens + token) * dimension..<(head * tokens + token + 1) * dimension]
        }
        return layout == .batchHeadsSequence
            ? (0..<heads).flatMap { head in range.flatMap { row(head, $0) } }
            : range.flatMap { token in (0..<heads).flatMap { row($0, token) } }
    }

    func queries(_ range: Range<Int>, layout: AttentionLayout = .batchHeadsSequence) -> [Float] {
        part(queries, range, heads: queryHeads, layout: layout)
    }

    func append(_ range: Range<Int>, to cache: inout KeyValueCache) throws {
        let (keys, values) = tokens(range, layout: cache.layout)
        try cache.append(keys: keys, values: values)
    }

    /// Keys and values of some tokens.
    func tokens(
        _ range: Range<Int>, layout: AttentionLayout = .batchHeadsSequence
    ) -> (keys: [Float], values: [Float]) {
        (
            part(keys, range, heads: keyValueHeads, layout: layout),
            part(values, range, heads: keyValueHeads, layout: layout)
        )
    }

    func cache(
        _ numbers: CacheNumbers = .float32, window: Int? = nil, rollbackTokens: Int = 0,
        maximumTokens: Int? = nil, layout: AttentionLayout = .batchHeadsSequence, kernels: KernelSet? = nil,
        appending range: Range<Int>? = nil, allocate: @escaping AlignedMemory.Allocate = ExtentMemory.allocate
    ) throws -> KeyValueCache {
        var cache = try KeyValueCache(
            keyValueHeads: keyValueHeads, headDimension: headDimension, valueDimension: valueDimension,
            storage: numbers.storage, window: window, rollbackTokens: rollbackTokens, maximumTokens: maximumTokens,
            layout: layout, products: numbers.products, kernels: kernels)
        cache.allocate = allocate
        if let range { try append(range, to: &cache) }
        return cache
    }

    /// Rules for scores that a cache has to follow as one forward pass does.
    struct Rules: Sendable, CustomStringConvertible {
        var scaling = ScoreScaling.constant
        var softcap: Double?
        var alibi: ALiBi?
        var normaliser = AttentionNormaliser.softmax
        var description: String { "\(scaling) \(softcap ?? 0) \(alibi == nil ? "" : "ALiBi") \(normaliser)" }
    }

    /// With work spread over all threads however little it is.
    func attention(
        _ kernels: KernelSet? = nil, sink: AttentionSink? = .softmax1, rules: Rules = Rules(),
        products: AttentionProducts = .float32, layout: AttentionLayout? = nil, threads: Int = 1,
        workspace: AttentionWorkspace? = nil
    ) throws -> CachedAttention {
        try CachedAttention(
            queryHeads: queryHeads,
            rules: ScoreRules(
                sink: sink ?? rules.normaliser.usualSink, scaling: rules.scaling, softcap: rules.softcap,
                alibi: rules.alibi,
                normaliser: rules.normaliser),
            products: products, layout: layout, threads: threads, kernels: kernels,
            workspace: workspace, nanosecondsPerWorker: threads > 1 ? 1e-9 : WorkerCount.nanosecondsPerWorker)
    }

    /// Attention of the queries in `range` over all tokens up to the last of them, which it packs itself.
    func forward(
        _ range: Range<Int>, mask: AttentionMask = .causal, sink: AttentionSink? = .softmax1, rules: Rules = Rules(),
        products: AttentionProducts = .float32
    ) throws -> AttentionResult {
        let all = 0..<range.upperBound
        let attention = try Attention(
            AttentionShape(
                queryHeads: queryHeads, keyValueHeads: keyValueHeads, queries: range.count, keys: all.count,
                headDimension: headDimension, valueDimension: valueDimension), sink: sink ?? rules.normaliser.usualSink,
            mask: mask,
            scaling: rules.scaling, softcap: rules.softcap, alibi: rules.alibi, normaliser: rules.normaliser,
            products: products, threads: 1)
        return try attention.forward(
            queries: queries(range), keys: part(keys, all, heads: keyValueHeads, layout: .batchHeadsSequence),
            values: part(values, all, heads: keyValueHeads, layout: .batchHeadsSequence))
    }

    /// The same of tokens kept in int8, with which nothing but a cache computes: by the reference.
    func int8Reference(_ range: Range<Int>, window: Int? = nil) -> AttentionResult {
        let all = 0..<range.upperBound
        var problem = ReferenceProblem(
            queryHeads: queryHeads, keyValueHeads: keyValueHeads, queries: range.count, keys: all.count,
            headDimension: headDimension, valueDimension: valueDimension,
            sinks: [Float](repeating: 0, count: queryHeads))
        problem.storage = .int8
        problem = window.map { problem.window($0) } ?? problem.causal
        let result = problem.forward(
            queries: queries(range), keys: part(keys, all, heads: keyValueHeads, layout: .batchHeadsSequence),
            values: part(values, all, heads: keyValueHeads, layout: .batchHeadsSequence))
        return AttentionResult(
            output: result.output, logSumExp: result.logSumExp, sinkShare: result.sinkShare)
    }

    /// The same tokens as such a cache holds them; int8, and what products round by themselves, is left as it is.
    func rounded(to numbers: CacheNumbers) -> CacheProblem {
        var result = self
        (result.keys, result.values) = (keys.map(numbers.rounded), values.map(numbers.rounded))
        return result
    }
}

extension AttentionResult {
    /// The bits of one query of several, `[head]` by `[head]`.
    func bits(ofQuery query: Int, of queries: Int) -> [UInt32] {
        let heads = logSumExp.count / queries
        let dimension = output.count / logSumExp.count
        var picked: [Float] = []
        for head in 0..<heads {
            let row = head * queries + query
            picked += output[row * dimension..<(row + 1) * dimension] + [logSumExp[row], sinkShare[row]]
        }
        return picked.map(\.bitPattern)
    }
}

/// Memory that is NaN in every storage, and whose scales are.
let memoryOfNaN: AlignedMemory.Allocate = { byteCount in
    let address = ExtentMemory.allocate(byteCount)
    address?.initializeMemory(as: UInt8.self, repeating: 0xff, count: byteCount)
    return address
}
