// SPDX-License-Identifier: Apache-2.0
// TensorStatisticsTests.swift - metrics of tensors: known values, tensors without a spread, NaN, and what int8 loses.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct TensorStatisticsTests {
    @Test func goldenValues() {
        let golden = Golden.shared.diagnostics
        let statistics = TensorStatistics(golden.x.floats)
        #expect(statistics.infinityNorm == golden.infinityNorm)
        #expect(abs(statistics.excessKurtosis - golden.excessKurtosis) < 1e-14)
        #expect(abs(statistics.rawKurtosis - (golden.excessKurtosis + 3)) < 1e-14)
        #expect(abs(statistics.sampleKurtosis - golden.sampleKurtosis) < 1e-14)
        #expect(abs(statistics.l1OverL2 - golden.l1OverL2) < 1e-15)
        #expect(abs(statistics.meanOverMaximum - golden.meanOverMaximum) < 1e-15)
        // The conventions cannot be taken for each other.
        #expect(golden.sampleKurtosis - golden.excessKurtosis < 1.6)
    }

    /// 15 times +-1 and once 16: mean 1 exactly, all moments by hand.
    @Test func momentsByHand() {
        let values: [Float] = [1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, 0, 16]
        let statistics = TensorStatistics(values)
        #expect(statistics.count == 16)
        #expect(statistics.mean == 18.0 / 16)
        let centred = values.map { Double($0) - 18.0 / 16 }
        let second = centred.reduce(0) { $0 + $1 * $1 } / 16
        let fourth = centred.reduce(0) { $0 + $1 * $1 * $1 * $1 } / 16
        #expect(abs(statistics.standardDeviation - second.squareRoot()) < 1e-15)
        #expect(abs(statistics.excessKurtosis - (fourth / (second * second) - 3)) < 1e-14)
        #expect(abs(statistics.rawKurtosis - fourth / (second * second)) < 1e-14)
        let sample = second * 16 / 15
        #expect(abs(statistics.sampleKurtosis - fourth / (sample * sample + 1e-6)) < 1e-14)
        #expect(statistics.infinityNorm == 16 && statistics.int8Step == 16.0 / 127)
    }

    /// One element in a thousand lies 30 deviations away; six deviations is where a normal sample has none.
    @Test func outliersAreThoseBeyondSixDeviations() {
        var generator = SeededGenerator(seed: 1)
        var values = generator.normals(20_000)
        #expect(TensorStatistics(values).outlierShare == 0)
        for index in stride(from: 0, to: values.count, by: 1000) { values[index] = 30 }
        let statistics = TensorStatistics(values)
        #expect(statistics.outlierShare == 0.001)
        #expect(statistics.excessKurtosis > 100 && statistics.infinityNorm == 30)
    }

    /// Errors are spread evenly over a step, whose square is then 12 times their variance.
    @Test(arguments: [1, 4, 16] as [Float])
    func eachDoublingOfTheNormCostsSixDecibels(outlier: Float) {
        var generator = SeededGenerator(seed: 2)
        var values = generator.normals(40_000)
        values[0] = 5 * outlier
        let statistics = TensorStatistics(values)
        let predicted = 10 * log10(12 * 127 * 127) - 20 * log10(statistics.infinityNorm / statistics.standardDeviation)
        #expect(abs(statistics.int8SignalToNoise - predicted) < 0.15)
    }

    @Test func integersOfInt8LoseNothing() {
        #expect(TensorStatistics((-127...127).map { Float($0) / 4 }).int8SignalToNoise == .infinity)
        #expect(TensorStatistics([0, 0, 0]).int8SignalToNoise == .infinity)
    }

    @Test func constantTensors() {
        let statistics = TensorStatistics([Float](repeating: 0.1, count: 1001))
        #expect(statistics.mean == Double(Float(0.1)) && statistics.standardDeviation == 0)
        #expect(statistics.sampleKurtosis == 0 && statistics.rawKurtosis.isNaN && statistics.excessKurtosis.isNaN)
        #expect(statistics.outlierShare == 0)
        #expect(abs(statistics.l1OverL2 - 1) < 1e-14 && abs(statistics.meanOverMaximum - 1) < 1e-14)
        let single = TensorStatistics([-2])
        #expect(single.infinityNorm == 2 && single.mean == -2 && single.standardDeviation == 0)
        #expect(single.sampleKurtosis.isNaN && single.rawKurtosis.isNaN && single.excessKurtosis.isNaN)
    }

    @Test func emptyTensors() {
        let statistics = TensorStatistics([])
        #expect(statistics.count == 0 && statistics.infinityNorm == 0 && statistics.int8Step == 0)
        let others = [
            statistics.mean, statistics.standardDeviation, statistics.rawKurtosis, statistics.excessKurtosis,
            statistics.sampleKurtosis, statistics.outlierShare, statistics.int8SignalToNoise, statistics.l1OverL2,
            statistics.meanOverMaximum,
        ]
        #expect(others.allSatisfy { $0.isNaN })
    }

    @Test(arguments: [Float.nan, .infinity, -.infinity], [0, 7, 40])
    func whatIsNotFiniteShows(value: Float, place: Int) {
        var values = [Float](repeating: 1, count: 41)
        values[place] = value
        let statistics = TensorStatistics(values)
        #expect(value.isNaN ? statistics.infinityNorm.isNaN : statistics.infinityNorm == .infinity)
        let others = [
            statistics.standardDeviation, statistics.rawKurtosis, statistics.excessKurtosis,
            statistics.sampleKurtosis, statistics.outlierShare, statistics.int8SignalToNoise,
        ]
        #expect(others.allSatisfy { $0.isNaN })
    }

    @Test func bitsAreFixed() {
        var generator = SeededGenerator(seed: 5)
        let statistics = TensorStatistics(generator.normals(1003))
        let properties = [
            statistics.mean, statistics.standardDeviation, statistics.infinityNorm, statistics.sampleKurtosis,
            statistics.excessKurtosis, statistics.int8SignalToNoise,
        ]
        let bits = properties.map { String($0.bitPattern, radix: 16) }
        #expect(
            bits == [
                "3f8704b271f4425c", "3fef9886352a0ad0", "4009f2d340000000", "40065c47ee45c44a", "bfc984815ff14fe0",
                "4045475d90e4c74f",
            ])
    }
}
