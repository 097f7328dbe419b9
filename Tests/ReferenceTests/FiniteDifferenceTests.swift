// SPDX-License-Identifier: Apache-2.0
// FiniteDifferenceTests.swift - the gradients of the oracle against differences of its own results.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct FiniteDifferenceTests {
    /// Options that every normaliser is tried with.
    static let options: [@Sendable (inout AttentionCase) -> Void] = [
        { _ in },
        {
            ($0.batch, $0.keyValueHeads, $0.group, $0.geometry) = (2, 2, 2, .causal)
            ($0.bias, $0.broadcast) = (.normal, .batch)
        },
        {
            ($0.softcap, $0.hasALiBi, $0.scaling, $0.sink) = (1.5, true, .table, .mixed)
            ($0.group, $0.allowed) = (2, .random)
        },
        {
            ($0.batch, $0.keyLengths, $0.bias, $0.broadcast) = (3, .partial, .excluding, .allButKeys)
            ($0.scale, $0.geometry, $0.seed) = (.negative, .around(before: 4, after: 1), 5)
        },
        { ($0.scaling, $0.hasALiBi, $0.geometry, $0.group, $0.seed) = (.scalableSoftmax, true, .window(4), 2, 3) },
    ]

    @Test(arguments: AttentionCase.NormaliserChoice.allCases, options.indices)
    func oracleIsTheDerivative(normaliser: AttentionCase.NormaliserChoice, option: Int) throws {
        var shape = AttentionCase(queries: 3, keys: 7, headDimension: 3, valueDimension: 2) {
            $0.sink = .amid
            Self.options[option](&$0)
        }
        shape.normaliser = normaliser
        try Differences(shape).requireOracle()
    }
}

/// A case whose inputs are multiples of 2^-16, so that the steps of differences are exact.
private struct Differences {
    let shape: AttentionCase
    let inputs: AttentionInputs
    let loss: ReferenceLoss
    let problem: ReferenceProblem

    init(_ shape: AttentionCase) {
        self.shape = shape
        var inputs = shape.inputs
        for tensor in [\AttentionInputs.queries, \.keys, \.values, \.sinks] {
            inputs[keyPath: tensor] = inputs[keyPath: tensor].map(Self.rounded)
        }
        inputs.bias = inputs.bias.map { ($0.values.map(Self.rounded), $0.extents) }
        (self.inputs, loss, problem) = (inputs, shape.loss, shape.referenceProblem(inputs))
    }

    private static func rounded(_ x: Float) -> Float { x.isFinite ? (x * 65_536).rounded() / 65_536 : x }

    /// sum dO O + sum dL lse.
    private func value(_ problem: ReferenceProblem, _ inputs: AttentionInputs) -> Double {
        let result = problem.oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        var sum = zip(result.output, loss.outputGradient).reduce(0) { $0 + $1.0 * Double($1.1) }
        for (lse, gradient) in zip(result.logSumExp, loss.logSumExpGradient ?? []) where lse.isFinite {
            sum += lse * Double(gradient)
        }
        return sum
    }

    /// The derivative at 0, to the fourth order in a step of 2^-14.
    private func derivative(_ f: (Double) -> Double) -> Double {
        let h = 0x1p-14
        let (wide, narrow) = (f(2 * h) - f(-2 * h), f(h) - f(-h))
        return (8 * narrow - wide) / (12 * h)
    }

    private func derivatives(_ tensor: WritableKeyPath<AttentionInputs, [Float]>) -> [Double] {
        inputs[keyPath: tensor].indices.map { index in
            derivative { step in
                var changed = inputs
                changed[keyPath: tensor][index] += Float(step)
                return value(problem, changed)
            }
        }
    }

    /// Of something that is part of the problem.
    private func derivatives(_ count: Int, _ change: (inout ReferenceProblem, Int, Double) -> Void) -> [Double] {
        (0..<count).map { index in
            derivative { step in
                var changed = problem
                change(&changed, index, step)
                return value(changed, inputs)
            }
        }
    }

    func requireOracle() throws {
        let oracle = shape.oracleGradients(inputs, loss)
        let heads = shape.queryHeads
        try require("dq", oracle.queries, derivatives(\.queries))
        try require("dk", oracle.keys, derivatives(\.keys))
        try require("dv", oracle.values, derivatives(\.values))
        try require("dsink", oracle.sinks, derivatives(heads) { $0.sinks[$1] += Float($2) })
        try require("dbias", oracle.bias, derivatives(oracle.bias.count) { $0.bias?.values[$1] += Float($2) })
        if shape.hasALiBi {
            try require("dslope", oracle.slopes, derivatives(heads) { $0.alibiSlopes?[$1] += Float($2) })
        }
        let logScales = derivatives(heads) { problem, head, step in
            let rows = shape.rowCount
            let factors = problem.rowFactors ?? [Double](repeating: 1, count: rows)
            problem.rowFactors = (0..<rows).map {
                $0 / shape.queries % heads == head ? factors[$0] * (1 + step) : factors[$0]
            }
        }
        try require("dlogscale", oracle.logScales, logScales)
    }

    /// Softpick's gradient takes the maximum for a constant, which is off by its epsilon of 1e-8.
    private func require(_ name: String, _ actual: [Double], _ expected: [Double]) throws {
        let size = expected.reduce(1) { max($0, abs($1)) }
        let tolerance = (shape.normaliser == .softpick ? 1e-7 : 1e-9) * size
        for (index, (a, e)) in zip(actual, expected).enumerated() where !(abs(a - e) <= tolerance) {
            throw TestFailure("\(name)[\(index)] is \(a), its difference \(e), in \(shape)")
        }
    }
}
