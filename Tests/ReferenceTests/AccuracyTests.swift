// SPDX-License-Identifier: Apache-2.0
// AccuracyTests.swift - the reference in Float against the formula in Double.

import AttentionReference
import TestSupport
import Testing

@Suite struct AccuracyTests {
    /// Two heads of unit normal numbers, rows fewer than keys where keys are many: a row's error depends on its keys.
    static let shapes: [AttentionCase] = [
        (1, 1, 1), (1, 2, 3), (3, 5, 4), (7, 16, 8), (16, 17, 16), (13, 63, 32), (33, 64, 64), (12, 65, 80),
        (31, 127, 96), (65, 128, 128), (9, 193, 192), (4, 256, 256), (8, 1023, 64), (5, 1024, 32), (6, 1025, 16),
        (3, 2049, 64), (2, 4096, 64), (1, 4096, 256),
    ].map { queries, keys, dimension in
        AttentionCase(queries: queries, keys: keys, headDimension: dimension) {
            $0.keyValueHeads = 2
            $0.seed = UInt64(queries * keys + dimension)
        }
    }

    /// Sinks below, amid and above the scores, so that dropping or doubling one shows.
    static let sinkPairs: [[Float]] = [[-.infinity, 0], [1.25, -1], [2.5, 4]]

    /// Largest relative error of a head's output, 2-norm. Biases spread the scores, which adds to it.
    private static let outputBar = 3e-7

    static let masks: [@Sendable (inout AttentionCase) -> Void] = [
        { _ in }, { $0.geometry = .causal }, { $0.geometry = .window(19) }, { $0.allowed = .random },
        { $0.bias = .normal }, { $0.bias = .excluding }, { $0.keyLengths = .partial },
    ]

    @Test(arguments: shapes, sinkPairs)
    func shapesAreWithinTheBars(shape: AttentionCase, sinks: [Float]) throws {
        try check(shape, sinks)
    }

    @Test(arguments: masks.indices, sinkPairs)
    func masksAreWithinTheBars(mask: Int, sinks: [Float]) throws {
        var shape = AttentionCase(queries: 40, keys: 1100, headDimension: 24, valueDimension: 40)
        shape.keyValueHeads = 1
        shape.group = 2
        shape.batch = 2
        Self.masks[mask](&shape)
        try check(shape, sinks)
    }

    /// Softcap, ALiBi, factors and normalisers beside softmax: within twice the error of the formula in Float.
    @Test(arguments: AttentionCase.NormaliserChoice.allCases)
    func scoreRulesAreWithinTheBars(normaliser: AttentionCase.NormaliserChoice) throws {
        for (softcap, hasALiBi, scaling) in [
            (nil, false, AttentionCase.ScalingChoice.none), (30, false, .none), (1.5, true, .clippedLogKeys),
            (nil, true, .table),
        ] {
            let shape = AttentionCase(queries: 6, keys: 500, headDimension: 64) {
                ($0.softcap, $0.hasALiBi, $0.scaling) = (softcap, hasALiBi, scaling)
                ($0.normaliser, $0.geometry, $0.group, $0.sink) = (normaliser, .causal, 2, .amid)
            }
            let inputs = shape.inputs
            let problem = shape.referenceProblem(inputs)
            let result = problem.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
            let textbook = problem.textbook(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
            let truth = problem.oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
            let size = shape.queries * shape.valueDimension
            for head in 0..<2 {
                let part = head * size..<(head + 1) * size
                let error = relativeError(result.output[part], truth.output[part])
                let allowed = 2 * max(1e-7, relativeError(textbook.output[part], truth.output[part]))
                #expect(error <= allowed, "\(shape), head \(head): \(error) > \(allowed)")
            }
            try requireClose(
                "lse", result.logSumExp, truth.logSumExp, tolerance: { 1e-6 * max(1, abs($0)) }, "\(shape)")
        }
    }

    /// The output is within ``outputBar``, and within twice the error of the formula in Float; logSumExp within 6e-7 of
    /// max(1, |it|). A sink that is there must be seen: without it the output would be far outside.
    private func check(_ shape: AttentionCase, _ sinks: [Float]) throws {
        let inputs = shape.inputs
        var problem = shape.referenceProblem(inputs)
        problem.sinks = sinks
        let result = problem.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        let textbook = problem.textbook(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        let truth = problem.oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        problem.sinks = [-.infinity, -.infinity]
        let withoutSink = problem.oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)

        let size = shape.queries * shape.valueDimension
        for head in 0..<shape.batch * 2 {
            let part = head * size..<(head + 1) * size
            let error = relativeError(result.output[part], truth.output[part])
            #expect(error <= (shape.bias == .none ? 1 : 1.5) * Self.outputBar, "head \(head)")
            // Below 1e-7, about one unit in the last place, neither has an error worth comparing.
            #expect(error <= 2 * max(1e-7, relativeError(textbook.output[part], truth.output[part])), "head \(head)")
            let seesKeys = truth.output[part].contains { $0 != 0 }
            if sinks[head % 2] > -.infinity && seesKeys {
                #expect(
                    relativeError(result.output[part], withoutSink.output[part]) > 10 * Self.outputBar, "head \(head)")
            }
        }
        try requireClose(
            "lse", result.logSumExp, truth.logSumExp, tolerance: { 6e-7 * max(1, abs($0)) }, "\(shape) \(sinks)")
        // share = e^(s - lse): what is wrong with lse is wrong with the share.
        try requireClose(
            "sink share", result.sinkShare, truth.sinkShare, tolerance: { 3e-6 * $0 + 0x1p-125 }, "\(shape) \(sinks)")
    }
}
