// SPDX-License-Identifier: Apache-2.0
// AccuracyTests.swift - how far the results are from the truth, which is the formula in Double.

import AttentionReference
import QuietAttention
import TestSupport
import Testing

@Suite struct AccuracyTests {
    /// Largest relative error of a head's output, 2-norm, on unit normal inputs of up to 4096 keys and dimension 256.
    ///
    /// Two chains of roundings add up in it: that of a score, about 3.4e-8 sqrt(headDimension), and that of a chunk's
    /// values, about 1.9e-8 sqrt(min(keys, 1024)), relative to an output that is a mean of so many values.
    private static let bar = 9e-7

    /// Per head: within the bar, and at most twice the error of the formula as a textbook evaluates it in Float. Within
    /// 3e-7, some roundings of a single weight, the textbook may be nearer by chance.
    @Test("out within the bar and twice the textbook's error, lse within 6e-7", arguments: kernelSets)
    func bars(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var shape = original
            (shape.family, shape.scale) = (.unitNormal, .standard)
            if shape.bias != .none { shape.bias = .normal }
            // A sink far above leaves e^-200 of the output, whose relative error is that of the exponent.
            if shape.sink == .farAbove || shape.sink == .mixed { shape.sink = .amid }
            try requireAccuracy(shape, kernels)
        }
    }

    static let shapes = [
        AttentionCase(queries: 40, keys: 500, headDimension: 64) { ($0.group, $0.geometry) = (2, .causal) },
        AttentionCase(queries: 7, keys: 4096, headDimension: 32),
        AttentionCase(queries: 16, keys: 300, headDimension: 256) { $0.sink = .none },
        AttentionCase(queries: 100, keys: 200, headDimension: 128) { $0.sink = .amid },
        AttentionCase(queries: 3, keys: 4096, headDimension: 16) { ($0.sink, $0.geometry) = (.amid, .window(1500)) },
    ]

    @Test("larger shapes", arguments: kernelSets, shapes)
    func largerShapes(kernels: KernelSet, shape: AttentionCase) throws { try requireAccuracy(shape, kernels) }

    private func requireAccuracy(_ shape: AttentionCase, _ kernels: KernelSet) throws {
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
                error <= Self.bar && error <= max(3e-7, 2 * textbookError),
                "\(kernels), head \(head): relative error \(error), textbook \(textbookError)\n    in \(shape)")
        }
        try requireClose(
            "lse", actual.logSumExp, truth.logSumExp, tolerance: { 6e-7 * max(1, abs($0)) }, "\(kernels) \(shape)")
        try requireClose(
            "sink share", actual.sinkShare, truth.sinkShare, tolerance: { 2e-6 * $0 + 1e-30 }, "\(kernels) \(shape)")
    }
}
