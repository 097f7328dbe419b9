// SPDX-License-Identifier: Apache-2.0
// EntropyLawTests.swift - statistical laws of attention on random inputs: entropy against length, noise, concentration.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct EntropyLawTests {
    // MARK: - Entropy against the number of keys

    static let dimension = 32

    /// The mean entropy of 24 rows of softmax over n keys, queries and keys unit normal.
    private func meanEntropy(keys: Int, scale: Double) throws -> Double {
        var generator = SeededGenerator(seed: UInt64(keys))
        let shape = try AttentionShape(queryHeads: 1, queries: 24, keys: keys, headDimension: Self.dimension)
        let attention = try Attention(shape, sink: .softmax, scale: scale)
        return try attention.headDiagnostics(
            queries: generator.normals(shape.queryCount), keys: generator.normals(shape.keyCount))[0].entropy
    }

    /// The slope of the entropy over log n from 64 to 4096 keys, for scores of deviation sigma(n) = lambda(n) sqrt(d).
    ///
    /// Scores are nearly normal, and then H = log n - sigma^2 / 2, as long as sigma < sqrt(2 log n). Rows differ by their
    /// sigma^2, of relative deviation sqrt(2 / d) = 0.25: the mean of 24 has 0.05 of sigma^2 / 2, or 0.05 to 0.25 nats here,
    /// which the seeds' equal queries do not cancel. Over log 64 = 4.16 that is 0.012 and 0.06 of slope.
    private func slope(_ lambda: (Double) -> Double) throws -> Double {
        func entropy(_ keys: Int) throws -> Double {
            try meanEntropy(keys: keys, scale: lambda(log(Double(keys))))
        }
        return (try entropy(4096) - entropy(64)) / log(64)
    }

    @Test func entropyGrowsWithLogNUnderAFixedScale() throws {
        let root = Double(Self.dimension).squareRoot()
        #expect(abs(try slope { _ in 1 / root } - 1) < 0.05)
    }

    /// Nearly flat for kappa = sqrt(d / log n), where the formula's slope 1 - kappa^2 log n / d crosses zero; here at 128
    /// keys. Long queries have sigma beyond sqrt(2 log n), where few keys take all and entropy falls no further: over many
    /// seeds the slope is 0.12, and was 1 without the scaling.
    @Test func entropyStaysNearlyFlatUnderLogNScaling() throws {
        let kappa = (Double(Self.dimension) / log(128)).squareRoot()
        #expect(abs(try slope { kappa * $0 / Double(Self.dimension) } - 0.12) < 0.13)
    }

    /// With the usual kappa = sqrt(d) / log 512 scores of deviation 1 at 512 keys are too small for that: the slope is
    /// 1 - (log 4096 + log 64) / (2 log^2 512) = 0.84.
    @Test func entropyOfSmallScoresGrowsUnderLogNScalingToo() throws {
        let root = Double(Self.dimension).squareRoot()
        #expect(abs(try slope { $0 / log(512) / root } - 0.84) < 0.05)
    }

    // MARK: - Noise

    /// Noise on the scores multiplies the keys' sum by E[e^noise] = e^(sigma^2 / 2), which does not cancel against a sink:
    /// the sink's share is that of a sink lower by sigma^2 / 2. The noisy sum over n keys of normal scores has a relative
    /// deviation of sqrt(e (e^(sigma^2) - 1) / n) = 0.034, and a share p one of p (1 - p) as much, 0.005. The bound is four.
    @Test func noiseIsAShiftedSink() throws {
        let (count, sigma) = (20_000, 1.5)
        let noise = try WeightInitialization.normal(standardDeviation: sigma).weights(fanIn: count, fanOut: 1, seed: 1)
        let scores = try WeightInitialization.normal(standardDeviation: 1).weights(fanIn: count, fanOut: 1, seed: 2)
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: count, headDimension: 1)
        let sink = Float(log(Double(count)))
        let attention = try Attention(shape, sink: .logits([sink]), scale: 1)
        let quiet = try attention.diagnostics(queries: [1], keys: scores)[0].sinkShare
        let noisy = try attention.diagnostics(queries: [1], keys: zip(scores, noise).map { $0 + $1 })[0].sinkShare
        let keysOverSink = (1 - quiet) / quiet
        let predicted = 1 / (1 + keysOverSink * exp(sigma * sigma / 2))
        #expect(abs(noisy - predicted) < 0.02, "\(noisy), predicted \(predicted), without noise \(quiet)")
        #expect(quiet - noisy > 0.1)
        // The same shift, by hand.
        let lower = try Attention(shape, sink: .logits([sink - Float(sigma * sigma / 2)]), scale: 1)
            .diagnostics(queries: [1], keys: scores)[0].sinkShare
        #expect(abs(lower - predicted) < 1e-5)
    }

    // MARK: - Concentration

    /// n scores q.k with k ~ N(mu, sigma^2 I): normal with mean beta = q.mu and deviation gamma = sigma |q|.
    private func keys(_ count: Int, beta: Double, gamma: Double) throws -> (q: [Float], k: [Float]) {
        let q: [Float] = [0.6, 0, -0.8]
        let normals = try WeightInitialization.normal(standardDeviation: gamma)
            .weights(fanIn: 3, fanOut: count, seed: 3)
        return (q, normals.enumerated().map { $1 + Float(beta) * q[$0 % 3] })
    }

    /// S = E f / sqrt(E f^2) of the weights e^x is exp(-gamma^2 / 2), whatever the mean. The relative deviation of the mean
    /// of n squares is sqrt((e^(4 gamma^2) - 1) / n), and half of it that of S; the bound is four times that.
    @Test(arguments: [(0.25, 1.0), (0.5, -2), (0.75, 0)])
    func concentrationOfSoftmax(gamma: Double, beta: Double) throws {
        let count = 8000
        let (q, k) = try keys(count, beta: beta, gamma: gamma)
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: count, headDimension: 3)
        let row = try Attention(shape, sink: .softmax1, scale: 1).diagnostics(queries: q, keys: k)[0]
        let bound = 2 * ((exp(4 * gamma * gamma) - 1) / Double(count)).squareRoot()
        #expect(abs(row.l1OverL2 / exp(-gamma * gamma / 2) - 1) < bound)
    }

    /// Linear weights cannot concentrate, squared ReLU only where scores are negative on average.
    @Test(arguments: [(0.5, 1.0), (0.5, -0.75), (1, 0)])
    func concentrationOfLinearAndSquaredWeights(gamma: Double, beta: Double) throws {
        let count = 20_000
        let (q, k) = try keys(count, beta: beta, gamma: gamma)
        let scores = (0..<count).map { key in (0..<3).reduce(Float(0)) { $0 + q[$1] * k[3 * key + $1] } }
        let ratio = beta / gamma
        let linear =
            ((2 / Double.pi).squareRoot() * gamma * exp(-ratio * ratio / 2) + beta * erf(ratio / 2.0.squareRoot()))
            / (beta * beta + gamma * gamma).squareRoot()
        #expect(abs(TensorStatistics(scores).l1OverL2 / linear - 1) < 0.02)

        let density = exp(-ratio * ratio / 2) / (2 * Double.pi).squareRoot()
        let below = (1 + erf(ratio / 2.0.squareRoot())) / 2
        let (b2, g2) = (beta * beta, gamma * gamma)
        let second = (b2 + g2) * below + beta * gamma * density
        let fourth = (b2 * b2 + 6 * b2 * g2 + 3 * g2 * g2) * below + (b2 + 5 * g2) * beta * gamma * density
        let squared = TensorStatistics(scores.map { max($0, 0) * max($0, 0) }).l1OverL2
        // At beta = -0.75 one score in 15 counts, and the fourth power of few: a deviation of 0.04.
        #expect(abs(squared / (second / fourth.squareRoot()) - 1) < 0.1)
    }
}
