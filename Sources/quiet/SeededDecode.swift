// SPDX-License-Identifier: Apache-2.0
// SeededDecode.swift - caches filled from a seed, and the queries of their last tokens.

import QuietAttention
import SeededInputs

/// Caches and queries with the numbers of ``SeededProblem``, in the same order: with float32 storage, or products of
/// bfloat16, and the same mask the digest is that of the forward pass.
final class SeededDecode: TimedProblem {
    private let attention: CachedAttention
    private let mask: AttentionMask
    private let shape: AttentionShape
    private let layout: AttentionLayout
    private var caches: [KeyValueCache]
    private let queries, output, logSumExp: Buffer<Float>

    /// Tokens appended at a time while a cache is filled: so that there is no second copy of all keys.
    private static let fillTokens = 1024

    /// - Parameter problem: the same problem with keys and values in tensors.
    init(
        _ problem: Attention, attention: CachedAttention, storage: KeyValueCache.Storage, seed: UInt64
    ) throws {
        self.attention = attention
        (shape, layout, mask) = (problem.shape, problem.layout, problem.mask)
        let empty = try KeyValueCache(
            keyValueHeads: shape.keyValueHeads, headDimension: shape.headDimension,
            valueDimension: shape.valueDimension, storage: storage, positions: problem.positions,
            queryKeyNorm: problem.queryKeyNorm, products: attention.products, kernels: attention.kernels)
        // Of what is appended, arrays that grow, of Float.
        let appended =
            Double(min(Self.fillTokens, shape.keys) * 4 * MemoryLayout<Float>.size)
            * Double(shape.keyValueHeads * (shape.headDimension + shape.valueDimension))
        try requireMemory(Double(shape.batch * shape.keys) * Double(empty.bytesPerToken) + appended)
        queries = try Buffer(shape.queryCount)
        output = try Buffer(shape.outputCount)
        logSumExp = try Buffer(attention.normaliser.hasSink ? shape.rowCount : 0)
        caches = [KeyValueCache](repeating: empty, count: shape.batch)

        var generator = SeededGenerator(seed: seed, stream: SeededStream.queries.rawValue)
        for start in rowStarts(
            layout, batch: shape.batch, heads: shape.queryHeads, sequence: shape.queries,
            dimension: shape.headDimension)
        {
            for index in start..<start + shape.headDimension { queries.elements[index] = generator.nextNormal() }
        }
        for item in caches.indices { try fill(item, seed: seed) }
    }

    private func fill(_ item: Int, seed: UInt64) throws {
        var keys = generators(seed, .keys, item: item, dimension: shape.headDimension)
        var values = generators(seed, .values, item: item, dimension: shape.valueDimension)
        for begin in stride(from: 0, to: shape.keys, by: Self.fillTokens) {
            let tokens = min(Self.fillTokens, shape.keys - begin)
            try caches[item].append(
                keys: keys.indices.flatMap { keys[$0].normals(tokens * shape.headDimension) },
                values: values.indices.flatMap { values[$0].normals(tokens * shape.valueDimension) })
        }
    }

    /// One for each head of a batch item, each where its head begins.
    private func generators(
        _ seed: UInt64, _ stream: SeededStream, item: Int, dimension: Int
    ) -> [SeededGenerator] {
        (0..<shape.keyValueHeads).map { head in
            var generator = SeededGenerator(seed: seed, stream: stream.rawValue)
            let before = (item * shape.keyValueHeads + head) * shape.keys * dimension
            generator.skip(words: before * SeededGenerator.wordsPerNormal)
            return generator
        }
    }

    var threads: Int { attention.threads }
    var kernels: KernelSet { attention.kernels }
    var products: AttentionProducts { attention.products }
    var workspaceBytes: Int { attention.workspace.byteCount }
    var threadsInUse: Int {
        get throws { try attention.threadsInUse(queryCount: shape.queryCount, caches: caches, mask: mask) }
    }

    /// Of all pages.
    var cacheBytes: Int { caches.reduce(0) { $0 + $1.byteCount } }

    /// Of one token's keys, values and scales.
    var bytesPerToken: Int { caches.first?.bytesPerToken ?? 0 }

    func run() throws {
        try attention.attend(
            queries: UnsafeBufferPointer(queries.elements), caches: caches, mask: mask, into: output.elements,
            logSumExp: attention.normaliser.hasSink ? logSumExp.elements : nil)
    }

    var digest: String { digestOfRows(output, logSumExp, shape, layout) }

    /// The mean of seconds that appending a token to every cache takes, over a page of tokens, so that it includes a new
    /// page. A call of attention stands before each, as in decoding, until they took `limit` seconds.
    func secondsPerAppend(limit: Double) throws -> Double {
        let lengths = caches.map(\.count)
        let keys = [Float](repeating: 1, count: shape.keyValueHeads * shape.headDimension)
        let values = [Float](repeating: 1, count: shape.keyValueHeads * shape.valueDimension)
        var (spent, between) = (0.0, 0.0)
        for _ in 0..<KeyValueCache.pageTokens {
            if between < limit { between += try timed { try run() }.seconds }
            spent += try timed { for item in caches.indices { try caches[item].append(keys: keys, values: values) } }
                .seconds
        }
        for item in caches.indices { try caches[item].truncate(to: lengths[item]) }
        return spent / Double(KeyValueCache.pageTokens)
    }
}
