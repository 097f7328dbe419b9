// SPDX-License-Identifier: Apache-2.0
// EntropyNormalisationTests.swift - powers of a distribution with a given entropy, and what cannot have one.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct EntropyNormalisationTests {
    private func entropy(_ p: [Double]) -> Double { p.reduce(0) { $0 - ($1 > 0 ? $1 * log($1) : 0) } }

    @Test func goldenValues() throws {
        let golden = Golden.shared.diagnostics.entropyNormalisation
        let normalised = try EntropyNormalisation(golden.p, entropy: log(2))
        #expect(abs(normalised.exponent - golden.gamma) < 1e-12)
        for (p, expected) in zip(normalised.probabilities, golden.normalised) { #expect(abs(p - expected) < 1e-12) }
    }

    /// The author's own test: 100 random probabilities, brought to the entropy of 30 equal ones.
    @Test(arguments: [1.5, 5, 30, 80, 99.9])
    func hundredRandomProbabilities(equivalent: Double) throws {
        var generator = SeededGenerator(seed: 1)
        let p = (0..<100).map { _ in Double(generator.nextUniform()) } + [0, 0]
        let normalised = try EntropyNormalisation(p, entropy: log(equivalent))
        #expect(abs(entropy(normalised.probabilities) - log(equivalent)) < 1e-12)
        #expect(abs(normalised.probabilities.reduce(0, +) - 1) < 1e-12)
        #expect(normalised.probabilities.suffix(2) == [0, 0])
        // Only the ratios count.
        let scaled = try EntropyNormalisation(p.map { $0 * 8 }, entropy: log(equivalent))
        #expect(scaled == normalised)
    }

    /// Probabilities over many decades, and two nearly equal largest ones: where an undamped step goes astray.
    @Test(arguments: [
        [1, 1e-30, 1e-60, 1e-90], [1, 0.999999, 1e-9, 1e-9], [0.5, 0.5, 1e-6, 1e-6],
    ])
    func hardDistributions(p: [Double]) throws {
        let ties = p.filter { $0 == p[0] }.count
        for part in [0.01, 0.3, 0.7, 0.99] {
            let target = log(Double(ties)) + part * (log(Double(p.count)) - log(Double(ties)))
            let normalised = try EntropyNormalisation(p, entropy: target)
            #expect(abs(entropy(normalised.probabilities) - target) < 1e-11, "\(p) at \(part)")
        }
    }

    @Test func equalProbabilitiesHaveOneEntropy() throws {
        let normalised = try EntropyNormalisation([0.2, 0, 0.2], entropy: log(2))
        #expect(normalised.exponent == 1 && normalised.probabilities == [0.5, 0, 0.5])
        #expect(kind([0.2, 0, 0.2], log(2) - 0.1) == .entropy)
    }

    private func kind(_ p: [Double], _ entropy: Double) -> AttentionError.Kind? {
        do {
            _ = try EntropyNormalisation(p, entropy: entropy)
            return nil
        } catch {
            return error.kind
        }
    }

    @Test func errors() {
        #expect(kind([], 1) == .probabilities && kind([0, 0], 0) == .probabilities)
        #expect(kind([1, -0.5], 0.5) == .probabilities && kind([1, .nan], 0.5) == .probabilities)
        #expect(kind([1, .infinity], 0.5) == .probabilities)
        for target in [0, -1, log(3), 2, .nan, .infinity] as [Double] {
            #expect(kind([0.7, 0.2, 0.1], target) == .entropy)
        }
        // Two largest ones: no power has less than ln 2.
        #expect(kind([0.4, 0.4, 0.2], 0.5) == .entropy)
    }
}
