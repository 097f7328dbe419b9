// SPDX-License-Identifier: Apache-2.0
// AccuracyTests.swift - how far the results are from the truth, which is the formula in Double.

import AttentionReference
import QuietAttention
import TestSupport
import Testing

@Suite struct AccuracyTests {
    /// Largest relative error of a head's output, 2-norm, on unit normal inputs of up to 4096 keys and dimension 256.
    private static let bar = 3e-7

    static let shapes = [
        AttentionCase(queries: 40, keys: 500, headDimension: 64) { ($0.group, $0.geometry) = (2, .causal) },
        AttentionCase(queries: 7, keys: 4096, headDimension: 32),
        AttentionCase(queries: 16, keys: 300, headDimension: 256) { $0.sink = .none },
        AttentionCase(queries: 100, keys: 200, headDimension: 128) { $0.sink = .amid },
        AttentionCase(queries: 8, keys: 4096, headDimension: 16) { ($0.sink, $0.geometry) = (.amid, .window(1500)) },
    ]

    /// At most the bar, and at most twice the error of the formula as a textbook evaluates it in Float.
    @Test("out within 3e-7 and twice the textbook's error, lse within 6e-7", arguments: kernelSets, shapes)
    func headsOfUsualSize(kernels: KernelSet, shape: AttentionCase) throws {
        let inputs = shape.inputs
        let problem = shape.referenceProblem(inputs)
        let truth = problem.oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        let textbook = problem.textbook(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        let actual = try shape.run(inputs, kernels: kernels)
        for head in 0..<shape.batch * shape.queryHeads {
            let part = head * shape.queries * shape.valueDimension..<(head + 1) * shape.queries * shape.valueDimension
            let error = relativeError(actual.output[part], truth.output[part])
            let textbookError = relativeError(textbook.output[part], truth.output[part])
            try require(
                error <= Self.bar && error <= 2 * textbookError,
                "\(kernels), head \(head): relative error \(error), textbook \(textbookError)\n    in \(shape)")
        }
        try requireSumAccuracy(actual, truth, "\(kernels): \(shape)")
    }

    /// Heads of a few numbers, in which values may cancel: the error is relative to what they are without their signs.
    @Test("random cases: rows within 6e-7 of weights times magnitudes", arguments: kernelSets)
    func randomCases(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var shape = original
            shape.scale = .standard
            if shape.bias != .none { shape.bias = .normal }
            // A sink far above leaves e^-200 of the output, whose relative error is that of the exponent.
            if shape.sink == .farAbove || shape.sink == .mixed { shape.sink = .amid }
            let inputs = shape.inputs
            let problem = shape.referenceProblem(inputs)
            let truth = problem.oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
            let magnitude = problem.oracle(
                queries: inputs.queries, keys: inputs.keys, values: inputs.values.map { abs($0) })
            let actual = try shape.run(inputs, kernels: kernels)
            for row in 0..<shape.rowCount {
                let part = row * shape.valueDimension..<(row + 1) * shape.valueDimension
                let error = zip(actual.output[part], truth.output[part])
                    .reduce(0) { $0 + (Double($1.0) - $1.1) * (Double($1.0) - $1.1) }
                let size = magnitude.output[part].reduce(0) { $0 + $1 * $1 }
                try require(
                    error.squareRoot() <= 6e-7 * size.squareRoot(),
                    "\(kernels), row \(row): error \(error.squareRoot()), size \(size.squareRoot())\n    in \(shape)")
            }
            try requireSumAccuracy(actual, truth, "\(kernels): \(shape)")
        }
    }

    private func requireSumAccuracy(
        _ actual: AttentionOutputs, _ truth: ForwardResult<Double>, _ context: String
    ) throws {
        try requireClose("lse", actual.logSumExp, truth.logSumExp, tolerance: { 6e-7 * max(1, abs($0)) }, context)
        try requireClose("sink share", actual.sinkShare, truth.sinkShare, tolerance: { 2e-6 * $0 + 1e-30 }, context)
    }
}
