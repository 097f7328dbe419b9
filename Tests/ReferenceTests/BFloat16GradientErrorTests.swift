// SPDX-License-Identifier: Apache-2.0
// BFloat16GradientErrorTests.swift - how far gradients from products of bfloat16 are from those in Double: as far as
// rounding the factors takes them, at every length and with every option.

import Foundation
import TestSupport
import Testing

@testable import AttentionReference

/// With `QUIET_EXHAUSTIVE=1` also longer sequences, in a release build.
@Suite struct BFloat16GradientErrorTests {
    private static let isExhaustive = ProcessInfo.processInfo.environment["QUIET_EXHAUSTIVE"] == "1"

    /// Softmax_1 on unit normal tensors, unless changed.
    private static func shape(
        _ queries: Int, _ keys: Int, _ dimension: Int, _ change: (inout AttentionCase) -> Void = { _ in }
    ) -> AttentionCase {
        AttentionCase(queries: queries, keys: keys, headDimension: dimension) {
            $0.products = .bfloat16
            change(&$0)
        }
    }

    /// The errors of dq, dk and dv, relative 2-norms.
    private func errors<Scalar>(
        _ gradients: ReferenceGradients<Scalar>, _ truth: ReferenceGradients<Double>
    ) -> [Double] {
        zip(gradients.named.prefix(3), truth.named).map { actual, truth in
            relativeError(actual.values.map { Float($0) }, truth.values)
        }
    }

    private func words(_ errors: [Double]) -> String {
        "dq, dk, dv off by " + errors.map { String(format: "%.2e", $0) }.joined(separator: ", ")
    }

    // MARK: - What rounding costs

    static let shapes =
        [
            shape(64, 64, 64), shape(200, 200, 64), shape(200, 200, 64) { $0.geometry = .causal },
            shape(160, 160, 32) { $0.sink = .none }, shape(160, 160, 80) { $0.geometry = .causal },
            shape(60, 1100, 32) { ($0.sink, $0.group) = (.amid, 2) },
        ] + (isExhaustive ? [shape(512, 512, 64), shape(1024, 1024, 64), shape(1024, 1024, 128)] : [])

    /// As good as rounding by itself allows: at most 5 % over ``RoundedPass``. Tensors and gradients of outputs are of
    /// bfloat16, so that their rounding does not cover that of weights and of gradients of scores.
    @Test(arguments: shapes)
    func errorIsThatOfRoundedFactors(shape: AttentionCase) {
        var shape = shape
        shape.storage = .bfloat16
        let (inputs, loss) = (shape.inputs, shape.loss)
        let problem = shape.referenceProblem(inputs)
        let truth = shape.oracleGradients(inputs, loss)
        // Not the case's own gradients: they would take the output rounded to bfloat16.
        let found = errors(
            problem.backward(queries: inputs.queries, keys: inputs.keys, values: inputs.values, loss), truth)
        let allowed = errors(RoundedPass.gradients(problem, inputs, loss), truth)
        if Self.isExhaustive { print("\(shape): \(words(found)); rounded factors: \(words(allowed))") }
        let isNear = zip(found, allowed).allSatisfy { $0 <= 1.05 * $1 }
        #expect(isNear && found.allSatisfy { 1e-3...2e-3 ~= $0 }, "\(words(found)), allowed \(words(allowed))")
    }

    // MARK: - Any length, any option

    /// Unit normal tensors in Float, so that gradients of outputs are rounded as well. Short heads are several, because
    /// the error of one depends on chance.
    @Test func errorDoesNotGrowWithLength() {
        var first: [Double]?
        for length in Self.isExhaustive ? [64, 256, 1024, 2048] : [64, 160, 400] {
            let shape = Self.shape(length, length, Self.isExhaustive ? 64 : 32) {
                $0.keyValueHeads = max(1, 400 / length)
            }
            let (inputs, loss) = (shape.inputs, shape.loss)
            let found = errors(shape.referenceGradients(inputs, loss), shape.oracleGradients(inputs, loss))
            if Self.isExhaustive { print("length \(length): \(words(found))") }
            let bound = first ?? found
            let hasNotGrown = zip(found, bound).allSatisfy { $0 <= 1.1 * $1 }
            #expect(hasNotGrown && found.allSatisfy { $0 <= 2.7e-3 }, "\(length): \(words(found))")
            first = bound
        }
    }

    /// Every option meets every normaliser; sizes pass the ends of blocks and segments.
    @Test(arguments: AttentionCase.NormaliserChoice.allCases, FiniteDifferenceTests.options.indices)
    func everyOption(normaliser: AttentionCase.NormaliserChoice, option: Int) throws {
        var shape = Self.shape(67, 131, 9) {
            $0.valueDimension = 34
            $0.sink = .amid
            FiniteDifferenceTests.options[option](&$0)
        }
        shape.normaliser = normaliser
        let (inputs, loss) = (shape.inputs, shape.loss)
        let (actual, exact) = (shape.referenceGradients(inputs, loss), shape.oracleGradients(inputs, loss))
        let found = errors(actual, exact)
        let bound = 1e-2
        #expect(found.allSatisfy { $0 <= bound }, "\(words(found)) in \(shape)")
        // Sums over all pairs of a head may cancel: what they are compared with is at least as large as dq.
        let size = norm(exact.queries)
        for (actual, exact) in zip(actual.named, exact.named).dropFirst(3) {
            let difference = norm(zip(actual.values, exact.values).map { Double($0) - $1 })
            let allowed = bound * max(norm(exact.values), size)
            #expect(difference <= allowed, "\(actual.name) is off by \(difference) in \(shape)")
        }
    }

    private func norm(_ values: [Double]) -> Double { values.reduce(0) { $0 + $1 * $1 }.squareRoot() }
}

/// The backward pass of softmax as it is written for units of bfloat16: weights and gradients of q.k are rounded once,
/// delta is that of an output whose weights were rounded at the row's maximum, and all else is in Double.
private struct RoundedPass {
    let problem: ReferenceProblem
    let loss: ReferenceLoss
    private(set) var gradients: ReferenceGradients<Double>

    static func gradients(
        _ problem: ReferenceProblem, _ inputs: AttentionInputs, _ loss: ReferenceLoss
    ) -> ReferenceGradients<Double> {
        var pass = RoundedPass(problem: problem, loss: loss, gradients: ReferenceGradients(zerosFor: problem))
        problem.forEachRow(queries: inputs.queries, keys: inputs.keys, values: inputs.values) { pass.add($0) }
        return pass.gradients
    }

    private func rounded(_ x: Double) -> Double { Double(Float(x).roundedForProducts) }

    private mutating func add(_ row: Row) {
        let (dimension, width) = (problem.headDimension, problem.valueDimension)
        let keys = (0..<problem.keys).filter { row.isVisible[$0] }
        let scores: [Double] = keys.map { problem.formulaScores(row, $0).finished }
        let (weights, _, _) = problem.weights(scores, row)
        let outputGradient = Array(loss.outputGradient[row.index * width..<(row.index + 1) * width])
        let dp = keys.map { Double.dot(outputGradient, row.values + $0 * width, count: width) }
        let largest = weights.max() ?? 1
        var delta = -Double(loss.logSumExpGradient?[row.index] ?? 0)
        for (weight, dp) in zip(weights, dp) { delta += rounded(weight / largest) * largest * dp }
        for (index, j) in keys.enumerated() {
            let w = rounded(weights[index] * (dp[index] - delta) * problem.scale)
            let (query, key) = (row.index * dimension, (row.keyValueHead * problem.keys + j) * dimension)
            for d in 0..<dimension {
                gradients.queries[query + d] += w * Double(row.keys[j * dimension + d])
                gradients.keys[key + d] += w * Double(row.query[d])
            }
            let (p, value) = (rounded(weights[index]), (row.keyValueHead * problem.keys + j) * width)
            for c in 0..<width { gradients.values[value + c] += p * Double(outputGradient[c]) }
        }
    }
}
