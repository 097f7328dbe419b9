// SPDX-License-Identifier: Apache-2.0
// CacheAccuracyTests.swift - how far caches of 16-bit floats and of int8 are from the formula in Double.

import AttentionReference
import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct CacheAccuracyTests {
    /// Relative error of a head's output in the 2-norm, on unit normal inputs: measured 1.9e-4, 1.5e-3 and 7e-3.
    static let bars: [KeyValueCache.Storage: Double] = [
        .float32: 9e-7, .float16: 4e-4, .bfloat16: 3e-3, .int8: 1.2e-2,
    ]

    /// Keys k' and values v' of a cache are off by at most
    ///
    ///     |k' - k| <= u |k|  for 16 bits,  amax(k) / 254  for int8, and v' likewise
    ///
    /// (u = 2^-8 for bfloat16, 2^-11 for float16), which moves a score by at most e[j] = |scale| sum_d |q[d]| |k' - k|[d].
    /// Numerator and denominator of a weight both move by a factor within e^±e, e = max_j e[j], so that
    ///
    ///     |out' - out| <= (e^2e - 1) sum_j p[j] |v[j]| + e^2e sum_j p[j] |v' - v|[j]
    ///
    /// in every element, for any sink, and |lse' - lse| <= e. Rounding in Float adds little: 2e-6 of the sums.
    @Test("error bounds of every element", arguments: KeyValueCache.Storage.allCases, kernelSets)
    func bounds(storage: KeyValueCache.Storage, kernels: KernelSet) throws {
        for (tokens, dimension, sink) in [(5, 3, Float(0)), (200, 64, 1), (1500, 32, -.infinity), (70, 128, 3)] {
            var problem = ReferenceProblem(
                queryHeads: 2, keyValueHeads: 1, queries: 3, keys: tokens, headDimension: dimension,
                valueDimension: 20, sinks: [sink, 0])
            problem = problem.causal
            var generator = SeededGenerator(seed: UInt64(tokens))
            let queries = generator.normals(2 * 3 * dimension)
            // Magnitudes from 2^-4 to 2^4 from token to token: scales have to follow.
            let keys = scaled(generator.normals(tokens * dimension), dimension, by: 1)
            let values = scaled(generator.normals(tokens * 20), 20, by: 16)
            var cache = try KeyValueCache(
                keyValueHeads: 1, headDimension: dimension, valueDimension: 20, storage: storage, kernels: kernels)
            try cache.append(keys: keys, values: values)
            let result = try CachedAttention(queryHeads: 2, sink: .logits(problem.sinks), kernels: kernels)
                .attend(queries: queries, cache: cache)
            let truth = problem.oracle(queries: queries, keys: keys, values: values)
            for row in 0..<6 {
                let limit = tokens - 2 + row % 3
                let query = Array(queries[row * dimension..<(row + 1) * dimension])
                let bound = bound(
                    query, keys, values, tokens: limit, scale: problem.scale, logSumExp: truth.logSumExp[row], storage)
                for d in 0..<20 {
                    let error = abs(Double(result.output[row * 20 + d]) - truth.output[row * 20 + d])
                    try require(
                        error <= bound.output[d], "\(storage), \(tokens) tokens: \(error) above \(bound.output[d])")
                }
                let error = abs(Double(result.logSumExp[row]) - truth.logSumExp[row])
                try require(error <= bound.logSumExp, "\(storage): lse off by \(error), not \(bound.logSumExp)")
            }
        }
    }

    @Test("relative errors on unit normal inputs", arguments: KeyValueCache.Storage.allCases, kernelSets)
    func bars(storage: KeyValueCache.Storage, kernels: KernelSet) throws {
        for (tokens, dimension) in [(300, 64), (2100, 128)] {
            let problem = ReferenceProblem(
                queryHeads: 2, keyValueHeads: 1, queries: 2, keys: tokens, headDimension: dimension, sinks: [0, 0])
            var generator = SeededGenerator(seed: 7)
            let queries = generator.normals(4 * dimension)
            let (keys, values) = (generator.normals(tokens * dimension), generator.normals(tokens * dimension))
            var cache = try KeyValueCache(
                keyValueHeads: 1, headDimension: dimension, storage: storage, kernels: kernels)
            try cache.append(keys: keys, values: values)
            let result = try CachedAttention(queryHeads: 2, kernels: kernels)
                .attend(queries: queries, cache: cache, mask: .none)
            let truth = problem.oracle(queries: queries, keys: keys, values: values)
            let error = relativeError(result.output, truth.output)
            try require(error <= Self.bars[storage]!, "\(storage), \(tokens) tokens: \(error)")
        }
    }

    @Test("tokens of zeros, and of NaN, which makes only its rows NaN", arguments: kernelSets)
    func specialTokens(kernels: KernelSet) throws {
        for storage in KeyValueCache.Storage.allCases {
            var cache = try KeyValueCache(keyValueHeads: 1, headDimension: 2, storage: storage, kernels: kernels)
            try cache.append(keys: [0, 0, 0, 0], values: [0, 0, 2, -2])
            let attention = try CachedAttention(queryHeads: 1, sink: .softmax, kernels: kernels)
            #expect(try attention.attend(queries: [1, 1], cache: cache).output == [1, -1])
            try cache.append(keys: [.nan, 0], values: [1, 1])
            let output = try attention.attend(queries: [1, 1, 1, 1], cache: cache).output
            #expect(Array(output[0..<2]) == [1, -1] && output[2].isNaN && output[3].isNaN)
            try cache.truncate(to: 2)
            try cache.append(keys: [0, 0], values: [.nan, 1])
            #expect(try attention.attend(queries: [1, 1], cache: cache).output[0].isNaN)
            try cache.truncate(to: 2)
            try cache.append(keys: [0, 0], values: [5, 1])
            #expect(try attention.attend(queries: [1, 1, 1, 1], cache: cache).output.allSatisfy(\.isFinite))
        }
    }

    private func scaled(_ rows: [Float], _ dimension: Int, by most: Float) -> [Float] {
        rows.indices.map { rows[$0] * [1, most, 1 / most][$0 / dimension % 3] }
    }

    private func bound(
        _ query: [Float], _ keys: [Float], _ values: [Float], tokens: Int, scale: Double, logSumExp: Double,
        _ storage: KeyValueCache.Storage
    ) -> (output: [Double], logSumExp: Double) {
        let (dimension, width) = (query.count, 20)
        func row(_ tensor: [Float], _ j: Int, _ dimension: Int) -> [Double] {
            tensor[j * dimension..<(j + 1) * dimension].map(Double.init)
        }
        func errors(_ row: [Double]) -> [Double] {
            let largest = row.reduce(0) { max($0, abs($1)) }
            return row.map { x in
                switch storage {
                case .float32: 0
                case .float16: max(abs(x) * 0x1p-11, 0x1p-25)
                case .bfloat16: abs(x) * 0x1p-8
                case .int8: largest / 254 * (1 + 1e-5)
                }
            }
        }
        var (most, absolute, moved) = (
            0.0, [Double](repeating: 0, count: width), [Double](repeating: 0, count: width)
        )
        for j in 0..<tokens {
            let (key, value) = (row(keys, j, dimension), row(values, j, width))
            let score = scale * zip(query, key).reduce(0) { $0 + Double($1.0) * $1.1 }
            most = max(most, scale * zip(query, errors(key)).reduce(0) { $0 + abs(Double($1.0)) * $1.1 })
            let weight = exp(score - logSumExp)
            for (d, error) in errors(value).enumerated() {
                absolute[d] += weight * abs(value[d])
                moved[d] += weight * error
            }
        }
        let factor = exp(2 * most)
        let output = (0..<width).map { (factor - 1 + 2e-6) * absolute[$0] + factor * moved[$0] }
        return (output, most + 2e-6 * max(1, abs(logSumExp)))
    }
}
