// SPDX-License-Identifier: Apache-2.0
// ElementaryTests.swift - exp, erf and what is made of them against the system's in Double.

import Foundation
import Testing

@testable import Laboratory

@Suite struct ElementaryTests {
    private let grid = stride(from: -20, through: 20, by: 0.0037).map { Float($0) }

    @Test func exponentialIsRightTo2Units() {
        for x in stride(from: Float(-87), through: 88, by: 0.013) {
            let expected = exp(Double(x))
            #expect(abs(Double(exponential(x)) - expected) <= 2.4e-7 * expected, "\(x)")
        }
        #expect(exponential(0) == 1)
        #expect(exponential(-.infinity) < 2e-38)
        #expect(exponential(.nan).isNaN)
    }

    @Test func errorFunctionIsRightTo4e7() {
        for x in grid { #expect(abs(Double(errorFunction(x)) - erf(Double(x))) <= 4e-7, "\(x)") }
        #expect(errorFunction(.nan).isNaN)
    }

    @Test func activationsAndTheirSlopes() {
        func reference(_ x: Double) -> Double { 0.5 * x * (1 + erf(x / 2.0.squareRoot())) }
        for x in grid {
            let wide = Double(x)
            #expect(abs(Double(gelu(x)) - reference(wide)) <= 4e-7 * max(1, abs(wide)), "\(x)")
            let slope = (reference(wide + 1e-5) - reference(wide - 1e-5)) / 2e-5
            #expect(abs(Double(geluSlope(x)) - slope) <= 1e-6, "\(x)")
            #expect(abs(Double(sigmoid(x)) - 1 / (1 + exp(-wide))) <= 2e-7, "\(x)")
        }
    }
}
