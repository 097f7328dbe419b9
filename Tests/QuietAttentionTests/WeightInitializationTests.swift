// SPDX-License-Identifier: Apache-2.0
// WeightInitializationTests.swift - first weights: their distributions, their bits, and what they do through layers.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct WeightInitializationTests {
    static let count = 40_000

    /// Standard errors of n draws: of the mean sigma / sqrt(n), of the variance sqrt(kurtosis - 1) of it / sqrt(n), of the
    /// excess kurtosis sqrt(24 / n) for normal draws. Bounds are five of them.
    @Test(arguments: [
        (WeightInitialization.xavierUniform(), 2.0 / 500, -1.2), (.xavierNormal(gain: 0.5), 0.5 / 500, 0),
        (.normal(), 4e-4, 0),
    ])
    func distribution(kind: WeightInitialization, variance: Double, excessKurtosis: Double) throws {
        let weights = try kind.weights(fanIn: 100, fanOut: 400, seed: 7)
        #expect(weights.count == Self.count)
        let statistics = TensorStatistics(weights)
        let root = Double(Self.count).squareRoot()
        #expect(abs(statistics.mean) < 5 * variance.squareRoot() / root)
        let ratio = statistics.standardDeviation * statistics.standardDeviation / variance
        #expect(abs(ratio - 1) < 5 * 2.0.squareRoot() / root)
        #expect(abs(statistics.excessKurtosis - excessKurtosis) < 5 * 24.0.squareRoot() / root)
        if case .xavierUniform = kind {
            let bound = (6.0 / 500).squareRoot()
            #expect(statistics.infinityNorm <= bound && statistics.infinityNorm > 0.999 * bound)
        } else {
            // Of 40,000 normal numbers some exceed 3.5 deviations, and next to none 6.
            #expect(statistics.infinityNorm > 3.5 * variance.squareRoot() && statistics.outlierShare == 0)
        }
    }

    @Test func bitsAreFixed() throws {
        var digest = BitDigest()
        for kind in [WeightInitialization.xavierUniform(gain: 2), .xavierNormal(), .normal(standardDeviation: 0.5)] {
            digest.add(try kind.weights(fanIn: 13, fanOut: 7, seed: 1, stream: 2))
        }
        #expect(digest.hexadecimal == "5f93a32c4703377e")
    }

    @Test func seedsAndStreamsDiffer() throws {
        func weights(_ seed: UInt64, _ stream: UInt64) throws -> [Float] {
            try WeightInitialization.normal().weights(fanIn: 5, fanOut: 3, seed: seed, stream: stream)
        }
        #expect(try weights(1, 0) == weights(1, 0))
        #expect(try weights(1, 0) != weights(2, 0))
        #expect(try weights(1, 0) != weights(1, 1))
    }

    /// Var_L = (fanIn Var(w))^L through L linear layers: Xavier keeps it, variance 1 explodes, deviation 0.02 collapses.
    /// One layer of width n multiplies the measured variance by a factor of relative deviation sqrt(2 / n); the mean over
    /// r runs of L layers has sqrt(2 L / (n r)), here 0.09. The bound is four of them.
    @Test(arguments: [
        (WeightInitialization.xavierNormal(), 1.0), (.xavierUniform(), 1.0), (.normal(standardDeviation: 1), 64.0),
        (.normal(), 64 * 4e-4),
    ])
    func varianceThroughLayers(kind: WeightInitialization, factor: Double) throws {
        let (width, layers, runs) = (64, 3, 12)
        var total = 0.0
        for run in 0..<runs {
            var generator = SeededGenerator(seed: 11, stream: UInt64(run))
            var x = generator.normals(width).map(Double.init)
            for layer in 0..<layers {
                let weights = try kind.weights(
                    fanIn: width, fanOut: width, seed: UInt64(run), stream: UInt64(layer))
                x = (0..<width).map { row in
                    weights[row * width..<(row + 1) * width].indices.reduce(0) {
                        $0 + Double(weights[$1]) * x[$1 - row * width]
                    }
                }
            }
            total += x.reduce(0) { $0 + $1 * $1 } / Double(width)
        }
        let measured = total / Double(runs)
        let predicted = Foundation.pow(factor, Double(layers))
        #expect(abs(measured / predicted - 1) < 4 * 0.09, "\(measured) for \(predicted)")
    }

    /// Var(q.k) = d for independent coordinates of variance 1, which is why scores are divided by sqrt(d). The sample
    /// variance of n products has a relative deviation of about sqrt((2 + 6 / d) / n).
    @Test(arguments: [4, 16, 64])
    func varianceOfScoresIsTheDimension(dimension: Int) {
        var generator = SeededGenerator(seed: 12, stream: UInt64(dimension))
        let count = 4000
        let scores = (0..<count).map { _ -> Float in
            zip(generator.normals(dimension), generator.normals(dimension)).reduce(0) { $0 + $1.0 * $1.1 }
        }
        let statistics = TensorStatistics(scores)
        let ratio = statistics.standardDeviation * statistics.standardDeviation / Double(dimension)
        #expect(abs(ratio - 1) < 5 * ((2 + 6 / Double(dimension)) / Double(count)).squareRoot(), "\(ratio)")
    }

    @Test func errors() {
        func kind(_ initialization: WeightInitialization, _ fanIn: Int, _ fanOut: Int) -> AttentionError.Kind? {
            do {
                _ = try initialization.weights(fanIn: fanIn, fanOut: fanOut, seed: 1)
                return nil
            } catch {
                return error.kind
            }
        }
        #expect(kind(.normal(), -1, 2) == .dimension && kind(.normal(), 2, -1) == .dimension)
        #expect(kind(.normal(), Int.max, Int.max) == .overflow)
        #expect(kind(.normal(standardDeviation: .nan), 1, 1) == .scale)
        #expect(kind(.xavierNormal(gain: -1), 1, 1) == .scale)
        #expect(kind(.xavierUniform(gain: .infinity), 1, 1) == .scale)
        #expect(kind(.xavierUniform(), 0, 0) == nil && kind(.normal(), 0, 3) == nil)
    }
}
