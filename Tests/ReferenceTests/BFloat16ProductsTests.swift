// SPDX-License-Identifier: Apache-2.0
// BFloat16ProductsTests.swift - products of bfloat16 in the reference: factors and sums by hand, and the error of heads.

import TestSupport
import Testing

@testable import AttentionReference

@Suite struct BFloat16ProductsTests {
    @Test func factorsAreRoundedToEvenAndTinyOnesAreZero() {
        for (x, factor) in [
            (1, 1), (0x1.01p0, 0x1p0), (0x1.0100_02p0, 0x1.02p0), (0x1.03p0, 0x1.04p0), (-0x1.0300_02p0, -0x1.04p0),
            (0x1.fffffep127, Float.infinity), (0x1.fep127, 0x1.fep127), (-.infinity, -.infinity),
            (0x1p-56, 0x1p-56), (0x1.feffp-57, 0), (0x1.ffp-57, 0x1p-56), (0x1p-149, 0),
        ] as [(Float, Float)] {
            #expect(x.roundedForProducts == factor, "\(x)")
        }
        #expect(Float.nan.roundedForProducts.isNaN)
        #expect((-0x1p-60 as Float).roundedForProducts.bitPattern == (-0.0 as Float).bitPattern)
    }

    /// Even and odd channels have chains of their own, segments are added one by one: each order below loses another bit.
    @Test func sumsGoBySegmentsAndChains() {
        func dot(_ a: [Int: Float]) -> Float {
            let row = (0..<64).map { a[$0] ?? 0 }
            return pairDot(row, [Float](repeating: 1, count: 64), count: 64)
        }
        // 2^24 + 1 rounds to 2^24; within one chain each 1 is lost, from the other chain 1 + 1 arrive together.
        #expect(dot([0: 0x1p24, 2: 1, 4: 1]) == 0x1p24)
        #expect(dot([0: 0x1p24, 1: 1, 3: 1]) == 0x1p24 + 2)
        // Of two segments the first is rounded before the second is added.
        #expect(dot([0: 0x1p24, 1: 1, 32: 1]) == 0x1p24)
        #expect(dot([0: 0x1p24, 32: 1, 33: 1]) == 0x1p24 + 2)
    }

    @Test func rescaledSumsBelowTheSmallestAreZero() {
        #expect((0x1p-101 as Float).rescaledForProducts(0.5) == 0x1p-102)
        #expect((-0x1p-102 as Float).rescaledForProducts(0.5).bitPattern == 0)
        #expect((0x1p-120 as Float).rescaledForProducts(1) == 0x1p-120)
        #expect((1 as Float).rescaledForProducts(.nan).isNaN)
    }

    static let shapes: [AttentionCase] = [
        AttentionCase(queries: 40, keys: 500, headDimension: 64) { ($0.group, $0.geometry) = (2, .causal) },
        AttentionCase(queries: 7, keys: 4096, headDimension: 32),
        AttentionCase(queries: 16, keys: 300, headDimension: 256) { $0.sink = .none },
        AttentionCase(queries: 60, keys: 200, headDimension: 128) { $0.sink = .amid },
        AttentionCase(queries: 12, keys: 1500, headDimension: 80) { ($0.bias, $0.geometry) = (.normal, .window(700)) },
        AttentionCase(queries: 12, keys: 600, headDimension: 64) { ($0.softcap, $0.hasALiBi) = (5, true) },
    ]

    /// No worse than weights rounded to bfloat16 with everything else in Double, divided by the sum of what they were: so no
    /// worse than bfloat16 with sums in Float, which has that error and more.
    @Test(arguments: shapes)
    func errorIsThatOfRoundedWeightsAlone(shape: AttentionCase) {
        var shape = shape
        shape.storage = .bfloat16
        let inputs = shape.inputs
        var problem = shape.referenceProblem(inputs)
        let truth = problem.oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values).output
        var rounded: [Double] = []
        problem.forEachRow(queries: inputs.queries, keys: inputs.keys, values: inputs.values) { row in
            let keys = (0..<shape.keys).filter { row.isVisible[$0] }
            let scores: [Double] = keys.map { problem.formulaScores(row, $0).finished }
            let (weights, _, _) = problem.weights(scores, row)
            let largest = weights.max() ?? 1
            var output = [Double](repeating: 0, count: shape.valueDimension)
            for (weight, j) in zip(weights, keys) {
                let factor = Double(Float(weight / largest).roundedForProducts) * largest
                Double.add(factor, times: row.values + j * shape.valueDimension, to: &output)
            }
            rounded += output
        }
        problem.products = .bfloat16
        let result = problem.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values).output
        let size = shape.queries * shape.valueDimension
        for head in 0..<shape.queryHeads {
            let part = head * size..<(head + 1) * size
            let error = relativeError(result[part], truth[part])
            let allowed = relativeError(rounded[part].map { Float($0) }, truth[part])
            #expect(error <= 1.02 * allowed && error > 1e-5, "head \(head): \(error), allowed \(allowed)")
        }
    }
}
