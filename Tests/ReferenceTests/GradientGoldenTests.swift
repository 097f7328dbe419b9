// SPDX-License-Identifier: Apache-2.0
// GradientGoldenTests.swift - the gradients of the reference against values computed to 50 digits.

import AttentionReference
import Foundation
import TestSupport
import Testing

@Suite struct GradientGoldenTests {
    // MARK: - Rows of scores

    /// Scores `x` as a bias over queries of 0, and values of one channel whose gradient is 1: then dp is the values, and
    /// dx the gradient of the bias.
    private func rowProblem(_ x: [Float], sink: Float) -> ReferenceProblem {
        var problem = ReferenceProblem(queries: 1, keys: x.count, headDimension: 1, scale: 1, sinks: [sink])
        problem.bias = ReferenceBroadcast(x, extents: [1, 1, 1, x.count])
        return problem
    }

    private func gradients(
        _ problem: ReferenceProblem, dp: [Float], dL: [Float]? = nil
    ) -> (float: ReferenceGradients<Float>, oracle: ReferenceGradients<Double>) {
        let zeros = [Float](repeating: 0, count: dp.count)
        let loss = ReferenceLoss(outputGradient: [1], logSumExpGradient: dL)
        return (
            problem.backward(queries: [0], keys: zeros, values: dp, loss),
            problem.oracleGradients(queries: [0], keys: zeros, values: dp, loss)
        )
    }

    @Test(arguments: Golden.shared.rows.filter { $0.weightGradients != nil })
    func rowIsRight(row: Golden.Row) throws {
        let dp = try #require(row.weightGradients).floats
        let dx = try #require(row.scoreGradients).doubles
        let dsink = try #require(row.sinkGradient).value
        let dL = row.logSumExpGradient.map { [Float($0.value)] }
        let (float, oracle) = gradients(rowProblem(row.x.floats, sink: Float(row.sinkLogit.value)), dp: dp, dL: dL)
        let size = dp.reduce(1) { max($0, abs(Double($1))) }
        // A weight of sink_big is e^-100: beside its rounding by 2^-17 a factor of 1e-5 is enough.
        try requireClose("dx", float.bias, dx, tolerance: { 1e-5 * abs($0) + 4e-7 * size }, row.name)
        try requireClose("dsink", float.sinks, [dsink], tolerance: { _ in 4e-7 * size }, row.name)
        // A sink of log n is rounded to Float.
        let sink = row.sinkLogit.value
        let rounding = sink.isFinite ? abs(sink - Double(Float(sink))) : 0
        #expect(zip(oracle.bias, dx).allSatisfy { abs($0 - $1) <= 1e-13 * abs($1) + rounding + 1e-15 })
        #expect(abs(oracle.sinks[0] - dsink) <= size * (rounding + 1e-15))
    }

    @Test(arguments: Golden.shared.otherNormalisers)
    func otherNormaliserIsRight(golden: Golden.Normaliser) throws {
        var problem = rowProblem(golden.x.floats, sink: -.infinity)
        let (normaliser, constant): (ReferenceNormaliser, Double) =
            switch golden.name {
            case "clipped_softmax": (.clippedSoftmax(zeta: Float(golden.zeta ?? 0)), golden.gamma ?? 0)
            case "sigmoid_bias_minus_log_n": (.sigmoid, -log(5))
            case "softpick": (.softpick, 0)
            case "relu2_over_n": (.reluSquared, 5)
            case "relu2_normalised": (.normalisedReluSquared, 0)
            default: throw TestFailure("unknown normaliser \(golden.name)")
            }
        (problem.normaliser, problem.rowConstants) = (normaliser, [Float(constant)])
        let (float, oracle) = gradients(problem, dp: golden.weightGradients.floats)
        let dx = golden.scoreGradients.doubles
        try requireClose("dx", float.bias, dx, tolerance: { _ in 5e-7 }, golden.name)
        // The constant of sigmoid is rounded to Float.
        #expect(zip(oracle.bias, dx).allSatisfy { abs($0 - $1) <= 3e-8 })
        #expect(float.sinks == [0])
    }

    // MARK: - Attention

    @Test(arguments: Golden.shared.attention.filter { $0.queryGradient != nil })
    func attentionIsRight(golden: Golden.Attention) throws {
        let (q, k, v) = (golden.queries.floats, golden.keys.floats, golden.values.floats)
        let loss = ReferenceLoss(
            outputGradient: golden.outputGradient.floats, logSumExpGradient: golden.logSumExpGradient?.floats)
        let float = golden.problem.backward(queries: q, keys: k, values: v, loss)
        let oracle = golden.problem.oracleGradients(queries: q, keys: k, values: v, loss)
        let expected = [
            ("dq", float.queries, oracle.queries, try #require(golden.queryGradient).doubles),
            ("dk", float.keys, oracle.keys, try #require(golden.keyGradient).doubles),
            ("dv", float.values, oracle.values, try #require(golden.valueGradient).doubles),
            ("dsink", float.sinks, oracle.sinks, [try #require(golden.sinkGradient).value]),
        ]
        for (name, float, oracle, golden) in expected {
            try requireClose(name, float, golden, tolerance: { _ in 1.5e-6 }, name)
            #expect(zip(oracle, golden).allSatisfy { abs($0 - $1) <= 1e-14 }, "\(name)")
        }
    }
}
