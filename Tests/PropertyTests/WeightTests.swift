// SPDX-License-Identifier: Apache-2.0
// WeightTests.swift - what the weights and the sink's share are to each other, on random cases.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

let kernelSets = KernelSet.available

/// Random cases per property and kernel set; `QUIET_CASES` overrides it.
let caseCount = 60

/// |a - b| within `relative` of the larger, or within `absolute`; equal infinities.
func isClose(_ a: Double, _ b: Double, relative: Double, absolute: Double = 0) -> Bool {
    a == b || abs(a - b) <= max(absolute, relative * max(abs(a), abs(b)))
}

func require(_ condition: Bool, _ message: @autoclosure () -> String) throws {
    if !condition { throw TestFailure(message()) }
}

@Suite struct WeightTests {
    /// Rounding of a sum of weights in [0, 1], key after key.
    private func sumTolerance(_ shape: AttentionCase) -> Double { 6e-8 * Double(shape.keys + 20) }

    @Test("weights and sink share sum to 1", arguments: kernelSets)
    func sumIsOne(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var inputs = original.inputs
            let shape = original.withUnitValues(&inputs)
            let result = try shape.run(inputs, kernels: kernels)
            for row in 0..<shape.rowCount {
                let weights = result.output.rows(row, 1, shape.valueDimension)
                let share = Double(result.sinkShare[row])
                try require(weights.allSatisfy { $0 >= 0 && $0 <= 1 }, "weights of row \(row): \(weights)")
                try require(share >= 0 && share <= 1, "sink share \(share) of row \(row)")
                let sum = weights.reduce(0) { $0 + Double($1) } + share
                let isEmpty = share == 0 && weights.allSatisfy { $0 == 0 } && result.logSumExp[row] == -.infinity
                try require(
                    isEmpty || isClose(sum, 1, relative: 0, absolute: sumTolerance(shape)),
                    "weights and sink share of row \(row) sum to \(sum)")
                // The share is e^(s - lse), which says how much of the 1 is the sink's.
                let sink = Double(shape.sinkOfRow(row, inputs))
                try require(
                    isEmpty
                        || isClose(share, exp(sink - Double(result.logSumExp[row])), relative: 3e-5, absolute: 1e-30),
                    "sink share \(share) of row \(row) with sink \(sink), lse \(result.logSumExp[row])")
            }
        }
    }

    @Test("values of 1 come back as 1 less the sink share; constant values scaled by it", arguments: kernelSets)
    func constantValues(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { shape in
            var inputs = shape.inputs
            let constants = (0..<shape.valueDimension).map { $0 == 0 ? Float(1) : 0.37 * Float($0) - 2 }
            inputs.values = inputs.values.indices.map { constants[$0 % shape.valueDimension] }
            let result = try shape.run(inputs, kernels: kernels)
            for row in 0..<shape.rowCount where result.logSumExp[row] != -.infinity {
                let kept = 1 - Double(result.sinkShare[row])
                for (d, constant) in constants.enumerated() {
                    let value = Double(result.output[row * shape.valueDimension + d])
                    try require(
                        isClose(
                            value, Double(constant) * kept, relative: 0,
                            absolute: sumTolerance(shape) * max(1, abs(Double(constant)))),
                        "row \(row), value \(constant): \(value), sink share \(result.sinkShare[row])")
                }
            }
        }
    }

    @Test("ratios of weights do not depend on the sink", arguments: kernelSets)
    func ratios(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var inputs = original.inputs
            var shape = original.withUnitValues(&inputs)
            shape.sink = .none
            let low = try shape.with(sinks: inputs.sinks.map { _ in -1 }, &inputs).run(inputs, kernels: kernels)
            let high = try shape.with(sinks: inputs.sinks.map { _ in 3 }, &inputs).run(inputs, kernels: kernels)
            for row in 0..<shape.rowCount {
                let lowWeights = low.output.rows(row, 1, shape.valueDimension)
                let highWeights = high.output.rows(row, 1, shape.valueDimension)
                let largest = lowWeights.indices.max { lowWeights[$0] < lowWeights[$1] }!
                let factor = Double(highWeights[largest]) / Double(lowWeights[largest])
                if lowWeights[largest] == 0 { continue }
                for key in lowWeights.indices where lowWeights[key] > 1e-30 {
                    let ratio = Double(highWeights[key]) / Double(lowWeights[key])
                    try require(
                        isClose(ratio, factor, relative: 5e-7), "row \(row), key \(key): \(ratio), not \(factor)")
                }
                // A larger sink takes from every weight what e^3 + sum over e^-1 + sum says.
                let expected = exp(Double(low.logSumExp[row]) - Double(high.logSumExp[row]))
                try require(
                    factor < 1.0000002 && isClose(factor, expected, relative: 3e-5),
                    "row \(row): weights shrank by \(factor), expected \(expected)")
                try require(
                    high.sinkShare[row] > low.sinkShare[row] || high.sinkShare[row] < 1e-6,
                    "row \(row): share \(low.sinkShare[row]) with sink -1, \(high.sinkShare[row]) with 3")
            }
        }
    }

    @Test("softmax_n(x + c) = softmax_(n e^-c)(x)", arguments: kernelSets)
    func shift(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var shape = original
            (shape.bias, shape.broadcast) = (.none, .allButKeys)
            if shape.sink == .none { shape.sink = .one }
            // A multiple of 1/8, so that the sink moves by it exactly.
            let shift = Float(Int(shape.seed % 161) - 80) / 8
            var plain = shape.inputs
            var shifted = plain
            shifted.bias = ([Float](repeating: shift, count: shape.keys), [1, 1, 1, shape.keys])
            let sinks = plain.sinks
            let left = try shape.with(sinks: sinks, &shifted).run(shifted, kernels: kernels)
            let right = try shape.with(sinks: sinks.map { $0 - shift }, &plain).run(plain, kernels: kernels)
            // Two scores of up to 100 in base 2, and sinks of up to 300, are rounded on each side.
            for row in 0..<shape.rowCount {
                try require(
                    isClose(
                        Double(left.logSumExp[row]), Double(right.logSumExp[row]) + Double(shift), relative: 1e-6,
                        absolute: 1e-4),
                    "row \(row), shift \(shift): lse \(left.logSumExp[row]), \(right.logSumExp[row])")
                try require(
                    isClose(Double(left.sinkShare[row]), Double(right.sinkShare[row]), relative: 2e-4, absolute: 1e-30),
                    "row \(row), shift \(shift): share \(left.sinkShare[row]), \(right.sinkShare[row])")
            }
            for (index, (a, b)) in zip(left.output, right.output).enumerated() {
                try require(
                    isClose(Double(a), Double(b), relative: 2e-4, absolute: 2e-5),
                    "element \(index), shift \(shift): \(a), \(b)")
            }
        }
    }

    /// What a kernel that drops the sink, or shifts it away with the maximum, would not show.
    @Test("softmax_1 is not invariant to shifts, softmax is", arguments: kernelSets)
    func noShiftInvariance(kernels: KernelSet) throws {
        var shape = AttentionCase(queries: 6, keys: 9, headDimension: 4) { $0.sink = .one }
        let plain = shape.inputs
        var shifted = plain
        shifted.bias = ([Float](repeating: -5, count: 9), [1, 1, 1, 9])
        let before = try shape.run(plain, kernels: kernels)
        let after = try shape.run(shifted, kernels: kernels)
        for (before, after) in zip(before.sinkShare, after.sinkShare) { #expect(after > before + 0.4) }
        shape.sink = .none
        #expect(
            relativeError(
                try shape.run(plain, kernels: kernels).output,
                try shape.run(shifted, kernels: kernels).output.map(Double.init)
            ) < 1e-6)
    }

    @Test("lse is at least the sink", arguments: kernelSets)
    func lowerBounds(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { shape in
            let inputs = shape.inputs
            let result = try shape.run(inputs, kernels: kernels)
            for row in 0..<shape.rowCount {
                let sink = shape.sinkOfRow(row, inputs)
                // In base 2 and back, the sink is rounded three times.
                let slack = abs(sink.isFinite ? sink : 0) * 3e-7
                try require(
                    result.logSumExp[row] >= sink - slack, "row \(row): lse \(result.logSumExp[row]), sink \(sink)")
            }
        }
    }

    @Test("all scores to -inf: nothing under softmax_1, the mean under softmax", arguments: kernelSets)
    func escapeHatch(kernels: KernelSet) throws {
        var shape = AttentionCase(queries: 3, keys: 70, headDimension: 1, valueDimension: 20) { $0.scale = .one }
        var inputs = shape.inputs
        inputs.queries = [1, 1, 1]
        let mean = (0..<20).map { d in
            (0..<70).reduce(0.0) { $0 + Double(inputs.values[$1 * 20 + d]) } / 70
        }
        for depth in [Float(5), 20, 60, 88, 104, 1000, 1e30] {
            inputs.keys = [Float](repeating: -depth, count: 70)
            shape.sink = .none
            let softmax = try shape.run(inputs, kernels: kernels)
            #expect(relativeError(softmax.output, mean + mean + mean) < 1e-6, "softmax at \(-depth)")
            #expect(softmax.sinkShare == [0, 0, 0])
            shape.sink = .one
            let quiet = try shape.run(inputs, kernels: kernels)
            let sum = 70 * exp(-Double(depth))
            let expected = mean.map { $0 * sum / (1 + sum) }
            #expect(
                zip(quiet.output, expected + expected + expected).allSatisfy {
                    isClose(Double($0), $1, relative: 1e-4, absolute: 1e-30)
                }, "softmax_1 at \(-depth)")
            #expect(quiet.sinkShare.allSatisfy { isClose(Double($0), 1 / (1 + sum), relative: 1e-6) })
            #expect(quiet.logSumExp.allSatisfy { isClose(Double($0), log1p(sum), relative: 1e-5, absolute: 1e-7) })
        }
        // At -inf itself, visible or not, the limit of softmax_1 is taken; softmax has none and gives 0.
        inputs.keys = [Float](repeating: -.infinity, count: 70)
        for sink in [AttentionCase.SinkChoice.none, .one] {
            shape.sink = sink
            let result = try shape.run(inputs, kernels: kernels)
            #expect(result.output.allSatisfy { $0 == 0 })
            #expect(result.logSumExp == (sink == .none ? [-.infinity, -.infinity, -.infinity] : [0, 0, 0]))
            #expect(result.sinkShare == (sink == .none ? [0, 0, 0] : [1, 1, 1]))
        }
    }

    @Test("equal scores: k / (k + n)", arguments: kernelSets, [0.0, 0.25, 1, 4, 1000])
    func equalScores(kernels: KernelSet, n: Double) throws {
        for count in [1, 7, 64, 100, 1030] {
            let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: count, headDimension: 2, valueDimension: 1)
            let attention = try Attention(shape, sink: .softmaxN(n), kernels: kernels)
            let result = try attention.forward(
                queries: [0, 0], keys: [Float](repeating: 3, count: 2 * count),
                values: [Float](repeating: 1, count: count))
            let expected = Double(count) / (Double(count) + n)
            #expect(isClose(Double(result.output[0]), expected, relative: 1e-6))
            #expect(isClose(Double(result.sinkShare[0]), n / (Double(count) + n), relative: 1e-6))
            #expect(isClose(Double(result.logSumExp[0]), log(Double(count) + n), relative: 6e-7, absolute: 6e-7))
        }
    }
}
