// SPDX-License-Identifier: Apache-2.0
// GradientAccuracyTests.swift - the gradients of the reference against those in Double.

import AttentionReference
import TestSupport
import Testing

@Suite struct GradientAccuracyTests {
    /// Every option meets every normaliser; sizes pass the ends of blocks.
    @Test(arguments: AttentionCase.NormaliserChoice.allCases, FiniteDifferenceTests.options.indices)
    func gradientsAreRight(normaliser: AttentionCase.NormaliserChoice, option: Int) throws {
        var shape = AttentionCase(queries: 67, keys: 131, headDimension: 9, valueDimension: 6) {
            $0.sink = .amid
            FiniteDifferenceTests.options[option](&$0)
        }
        shape.normaliser = normaliser
        let (inputs, loss) = (shape.inputs, shape.loss)
        let (actual, exact) = (shape.referenceGradients(inputs, loss), shape.oracleGradients(inputs, loss))
        // Other normalisers have rows in which one key has all the weight, and its gradient is a difference of equals.
        let bound = normaliser.hasSink ? 1e-6 : 5e-6
        for (actual, exact) in zip(actual.named.prefix(3), exact.named) {
            let error = relativeError(actual.values, exact.values)
            #expect(error <= bound, "\(actual.name) is off by \(error) in \(shape)")
        }
        // Sums over all pairs of a head may cancel: what they are compared with is at least as large as dq.
        let size = norm(exact.queries)
        for (actual, exact) in zip(actual.named, exact.named).dropFirst(3) {
            let difference = norm(zip(actual.values, exact.values).map { Double($0) - $1 })
            #expect(
                difference <= 1e-5 * max(norm(exact.values), size), "\(actual.name) is off by \(difference) in \(shape)"
            )
        }
    }

    private func norm(_ values: [Double]) -> Double { values.reduce(0) { $0 + $1 * $1 }.squareRoot() }

    /// The bar of issue 14 for unit normal inputs: 6e-7 in the 2-norm.
    @Test(arguments: [(64, 64, 64), (130, 200, 32), (70, 1100, 16)])
    func unitNormal(queries: Int, keys: Int, dimension: Int) throws {
        let shape = AttentionCase(queries: queries, keys: keys, headDimension: dimension) { $0.sink = .one }
        let (inputs, loss) = (shape.inputs, shape.loss)
        let (actual, exact) = (shape.referenceGradients(inputs, loss), shape.oracleGradients(inputs, loss))
        for (actual, exact) in zip(actual.named.prefix(4), exact.named) {
            let error = relativeError(actual.values, exact.values)
            #expect(error <= 6e-7, "\(actual.name) is off by \(error) in \(shape)")
        }
    }
}
