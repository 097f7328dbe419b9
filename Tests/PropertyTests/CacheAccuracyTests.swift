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
    /// What int8 adds by 15-bit integers has a bound of its own below, and disappears in the room that this one leaves.
    /// Bounds and the true result, which take longest, are the same for all kernel sets.
    @Test("error bounds of every element", arguments: KeyValueCache.Storage.allCases)
    func bounds(storage: KeyValueCache.Storage) throws {
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
            let truth = problem.oracle(queries: queries, keys: keys, values: values)
            let bounds = (0..<6).map { row in
                bound(
                    Array(queries[row * dimension..<(row + 1) * dimension]), keys, values,
                    tokens: tokens - 2 + row % 3, scale: problem.scale, logSumExp: truth.logSumExp[row], storage)
            }
            for kernels in kernelSets {
                let context = "\(storage), \(kernels), \(tokens) tokens"
                var cache = try KeyValueCache(
                    keyValueHeads: 1, headDimension: dimension, valueDimension: 20, storage: storage, kernels: kernels)
                try cache.append(keys: keys, values: values)
                let result = try CachedAttention(queryHeads: 2, sink: .logits(problem.sinks), kernels: kernels)
                    .attend(queries: queries, cache: cache)
                for (row, bound) in bounds.enumerated() {
                    for d in 0..<20 {
                        let error = abs(Double(result.output[row * 20 + d]) - truth.output[row * 20 + d])
                        try require(error <= bound.output[d], "\(context): \(error) above \(bound.output[d])")
                    }
                    let error = abs(Double(result.logSumExp[row]) - truth.logSumExp[row])
                    try require(error <= bound.logSumExp, "\(context): lse off by \(error), not \(bound.logSumExp)")
                }
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
            let result = try CachedAttention(queryHeads: 2, sink: .softmax1, kernels: kernels)
                .attend(queries: queries, cache: cache, mask: .none)
            let truth = problem.oracle(queries: queries, keys: keys, values: values)
            let error = relativeError(result.output, truth.output)
            try require(error <= Self.bars[storage]!, "\(storage), \(tokens) tokens: \(error)")
        }
    }

    /// Over keys k' and values v' as a cache of int8 holds them, integers of 15 bits stand for queries and weights, off by at
    /// most u = 2^-15 of the largest of the row, or of the row's block. A score moves by at most
    /// e[j] = u max(|scale| amax(q), 2^-112) sum_d |k'[j][d]|, and, with w[j] = p[j] times the scale of the value,
    ///
    ///     |out - out'| <= (e^2e - 1) sum_j p[j] |v'[j]| + e^2e u sum_blocks max(amax(w), 2^-112) sum_j |integers of v'[j]|
    ///
    /// in every element. On unit normal inputs the output's relative error in the 2-norm was measured as 9e-5 at most.
    @Test("15-bit steps over the values held, in int8", arguments: kernelSets)
    func fifteenBits(kernels: KernelSet) throws {
        for (tokens, dimension, most) in [(5, 3, Float(1)), (300, 64, 1), (1500, 32, 16), (70, 600, 1)] {
            let relative = try compareWithSteps(tokens: tokens, dimension: dimension, most: most, kernels: kernels)
            try require(relative <= 2e-4, "\(tokens) tokens: \(relative)")
        }
    }

    /// Where queries or weights are so small that steps cannot be 2^-15 of them any more: the first loses keys, the second,
    /// whose values have scales near 1e-36, most of its output.
    @Test("steps of tiny numbers, in int8", arguments: kernelSets)
    func tinySteps(kernels: KernelSet) throws {
        for tokens in [5, 300] {
            let queries = try compareWithSteps(
                tokens: tokens, dimension: 16, queryFactor: 1e-36, keyFactor: 1e34, kernels: kernels)
            let values = try compareWithSteps(tokens: tokens, dimension: 16, valueFactor: 4e-35, kernels: kernels)
            // The bound without its second maximum would not hold here.
            try require(max(queries, values) > 2e-4, "\(queries), \(values)")
        }
    }

    /// Compares every element of a run with its bound, and returns the relative error in the 2-norm.
    private func compareWithSteps(
        tokens: Int, dimension: Int, most: Float = 1, queryFactor: Float = 1, keyFactor: Float = 1,
        valueFactor: Float = 1, kernels: KernelSet
    ) throws -> Double {
        let width = 20
        let problem = ReferenceProblem(
            queries: 3, keys: tokens, headDimension: dimension, valueDimension: width, sinks: [0])
        var generator = SeededGenerator(seed: UInt64(tokens))
        let queries = generator.normals(3 * dimension).map { $0 * queryFactor }
        let keys = generator.normals(tokens * dimension).map { $0 * keyFactor }
        let values = scaled(generator.normals(tokens * width), width, by: most).map { $0 * valueFactor }
        var cache = try KeyValueCache(
            keyValueHeads: 1, headDimension: dimension, valueDimension: width, storage: .int8, kernels: kernels)
        try cache.append(keys: keys, values: values)
        let result = try CachedAttention(queryHeads: 1, sink: .softmax1, kernels: kernels)
            .attend(queries: queries, cache: cache, mask: .none)
        let heldKeys = ReferenceProblem.roundedToInt8(keys, dimension: dimension)
        let heldValues = ReferenceProblem.roundedToInt8(values, dimension: width)
        let truth = problem.oracle(queries: queries, keys: heldKeys, values: heldValues)
        for row in 0..<3 {
            let bound = stepBound(
                Array(queries.rows(row, 1, dimension)), heldKeys, heldValues, tokens: tokens,
                scale: problem.scale, logSumExp: truth.logSumExp[row])
            for d in 0..<width {
                let error = abs(Double(result.output[row * width + d]) - truth.output[row * width + d])
                try require(error <= bound[d], "\(tokens) tokens: \(error) above \(bound[d])")
            }
        }
        return relativeError(result.output, truth.output)
    }

    /// Rows whose largest magnitude is next to 3.73e-37, below which its inverse is infinite.
    @Test("integers of tiny rows") func tinyRows() {
        for largest in [1e-35, 4e-37, 3e-37, 0x1p-133] as [Float] {
            let row = [largest, largest / 2, -largest / 300, 0]
            let held = ReferenceProblem.roundedToInt8(row, dimension: 4)
            #expect(held[3] == 0)
            for (x, y) in zip(row, held) {
                #expect(abs(x - y) <= (largest < 0x1.fcp-122 ? largest : largest / 254 * 1.0001 + 0x1p-142))
            }
        }
    }

    private func stepBound(
        _ query: [Float], _ keys: [Float], _ values: [Float], tokens: Int, scale: Double, logSumExp: Double
    ) -> [Double] {
        let width = values.count / tokens
        let largestQuery = query.reduce(0) { max($0, abs(Double($1))) }
        var (most, absolute) = (0.0, [Double](repeating: 0, count: width))
        var moved = absolute
        for first in stride(from: 0, to: tokens, by: 64) {
            var (largestWeight, integers) = (0.0, [Double](repeating: 0, count: width))
            for j in first..<min(first + 64, tokens) {
                let key = keys.rows(j, 1, query.count).map(Double.init)
                let value = values.rows(j, 1, width).map(Double.init)
                let score = scale * zip(query, key).reduce(0) { $0 + Double($1.0) * $1.1 }
                most = max(most, 0x1p-15 * max(scale * largestQuery, 0x1p-112) * key.reduce(0) { $0 + abs($1) })
                let (weight, step) = (exp(score - logSumExp), value.reduce(0) { max($0, abs($1)) } / 127)
                largestWeight = max(largestWeight, weight * step)
                for d in 0..<width {
                    absolute[d] += weight * abs(value[d])
                    integers[d] += abs(value[d]) / step
                }
            }
            for d in 0..<width { moved[d] += 0x1p-15 * max(largestWeight, 0x1p-112) * integers[d] }
        }
        let factor = exp(2 * most)
        return (0..<width).map { (factor - 1 + 2e-6) * absolute[$0] + factor * (1 + 1e-5) * moved[$0] }
    }

    @Test("tokens of zeros, and of NaN, which makes only its rows NaN", arguments: kernelSets)
    func specialTokens(kernels: KernelSet) throws {
        for storage in KeyValueCache.Storage.allCases {
            var cache = try KeyValueCache(keyValueHeads: 1, headDimension: 2, storage: storage, kernels: kernels)
            try cache.append(keys: [0, 0, 0, 0], values: [0, 0, 2, -2])
            let attention = try CachedAttention(queryHeads: 1, sink: .softmax, kernels: kernels)
            let step: Float = storage == .int8 ? 0x1p-15 : 0  // of a weight, in int8
            func isNear(_ output: [Float]) -> Bool { abs(output[0] - 1) <= step && abs(output[1] + 1) <= step }
            #expect(isNear(try attention.attend(queries: [1, 1], cache: cache).output))
            try cache.append(keys: [.nan, 0], values: [1, 1])
            let output = try attention.attend(queries: [1, 1, 1, 1], cache: cache).output
            #expect(isNear(output) && output[2].isNaN && output[3].isNaN)
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
