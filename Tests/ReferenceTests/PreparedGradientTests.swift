// SPDX-License-Identifier: Apache-2.0
// PreparedGradientTests.swift - gradients of rows that are normalised, turned and gated, against differences and in Float.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct PreparedGradientTests {
    private static let dimension = 24

    /// The derivative at 0, to the fourth order.
    private func derivative(_ f: (Double) -> Double) -> Double {
        let h = 0x1p-14
        return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
    }

    private func dot(_ a: [Double], _ b: [Float]) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * Double($1.1) } }

    private func rows(_ count: Int, seed: UInt64) -> [[Float]] {
        var generator = SeededGenerator(seed: seed)
        return (0..<count).map { _ in generator.normals(Self.dimension) }
    }

    // MARK: - Norms and positions

    /// Every encoding with and without norm: the chain of both, in Double against differences, in Float against Double.
    @Test(arguments: PositionCase.all(headDimension: dimension), ReferencePositions.Side.allCases)
    func preparedRows(positions: PositionCase, side: ReferencePositions.Side) throws {
        let reference = positions.reference(headDimension: Self.dimension, length: 100)
        let norm = positions.norm.map { ReferenceNorm($0, side) }
        for (row, gradient) in zip(rows(4, seed: 3), rows(4, seed: 4)) {
            for position in [0, 17, 60] {
                let normalised = norm?.oracle(row.map(Double.init)) ?? row.map(Double.init)
                let inner =
                    reference?.oracleGradient(
                        normalised, of: gradient.map(Double.init), position: position, side)
                    ?? gradient.map(Double.init)
                let exact = norm?.oracleGradient(row.map(Double.init), of: inner).row ?? inner
                for c in 0..<Self.dimension {
                    let difference = derivative { step in
                        var moved = row.map(Double.init)
                        moved[c] += step
                        moved = norm?.oracle(moved) ?? moved
                        return dot(reference?.oracle(moved, position: position, side) ?? moved, gradient)
                    }
                    #expect(abs(exact[c] - difference) < 1e-9, "\(positions), \(side), channel \(c)")
                }
                let prepared = norm?.normalised(row) ?? row
                let turned = reference?.gradient(prepared, of: gradient, position: position, side) ?? gradient
                let actual = norm?.gradient(row, of: turned) ?? turned
                #expect(relativeError(actual, exact) < 6e-7, "\(positions), \(side)")
            }
        }
    }

    /// What turns a row back is R with the sine negated: the gradient of a turned row's own direction is the row.
    @Test func rotationIsTurnedBack() throws {
        let positions = ReferencePositions(dimensions: Self.dimension)
        let row = rows(1, seed: 5)[0]
        let back = positions.gradient(
            row, of: positions.turned(row, position: 77, .queries), position: 77, .queries)
        try requireClose("row", back, row.map(Double.init), tolerance: { _ in 1e-6 }, "turned and back")
    }

    @Test(arguments: ReferencePositions.Form.allCases, ReferencePositions.Side.allCases)
    func nothingIsReadWhereTheGradientIsZero(form: ReferencePositions.Form, side: ReferencePositions.Side) {
        let (zeros, nan) = ([Float](repeating: 0, count: 24), [Float](repeating: .nan, count: 24))
        let positions = ReferencePositions(dimensions: 24, form: form)
        #expect(positions.gradient(nan, of: zeros, position: 5, side).allSatisfy { $0.bitPattern == 0 })
        for kind in ReferenceNorm.Kind.allCases {
            let norm = ReferenceNorm(kind, epsilon: 1e-5, gain: zeros)
            #expect(norm.gradient(nan, of: zeros).allSatisfy { $0.bitPattern == 0 })
            let parameters = norm.parameterGradients([nan], of: [zeros])
            #expect((parameters.gain + parameters.bias).allSatisfy { $0.bitPattern == 0 })
        }
    }

    /// A mean that is not above 0 has no gradient in CoCA's keys.
    @Test(arguments: [ReferencePositions.Form.slack, .strict])
    func rectifiedKeys(form: ReferencePositions.Form) {
        let positions = ReferencePositions(dimensions: 2, form: form)
        for row: [Float] in [[1, -1], [-2, 1], [0, 0]] {
            #expect(positions.gradient(row, of: [1, 2], position: 3, .keys) == [0, 0])
        }
        #expect(
            positions.gradient([2, -1], of: [1, 2], position: 0, .keys) == (form == .slack ? [1.5, 1.5] : [0.5, 0.5]))
    }

    // MARK: - Gains and biases

    @Test(arguments: ReferenceNorm.Kind.allCases, [1, 64, 65, 200])
    func parameters(kind: ReferenceNorm.Kind, count: Int) throws {
        var generator = SeededGenerator(seed: 6)
        let (gain, bias) = (generator.normals(Self.dimension), generator.normals(Self.dimension))
        let norm = ReferenceNorm(kind, epsilon: 1e-5, gain: gain, bias: bias)
        let (rows, gradients) = (rows(count, seed: 7), rows(count, seed: 8))
        let actual = norm.parameterGradients(rows, of: gradients)
        var exact = (gain: [Double](repeating: 0, count: 24), bias: [Double](repeating: 0, count: 24))
        for (row, gradient) in zip(rows, gradients) {
            let terms = norm.oracleGradient(row.map(Double.init), of: gradient.map(Double.init))
            for c in 0..<24 {
                (exact.gain[c], exact.bias[c]) = (exact.gain[c] + terms.gain[c], exact.bias[c] + terms.bias[c])
            }
        }
        #expect(relativeError(actual.gain, exact.gain) < 6e-7 && relativeError(actual.bias, exact.bias) < 6e-7)
        func loss(_ gain: [Float], _ bias: [Float]) -> Double {
            let norm = ReferenceNorm(kind, epsilon: 1e-5, gain: gain, bias: bias)
            return zip(rows, gradients).reduce(0) { $0 + dot(norm.oracle($1.0.map(Double.init)), $1.1) }
        }
        // Linear in both: any step has the derivative.
        for c in [0, 7, 23] {
            var (moved, shifted) = (gain, bias)
            (moved[c], shifted[c]) = (gain[c] + 1, bias[c] + 1)
            let step = Double(moved[c]) - Double(gain[c])
            #expect(abs((loss(moved, bias) - loss(gain, bias)) / step - exact.gain[c]) < 1e-9 * Double(count))
            let shift = Double(shifted[c]) - Double(bias[c])
            #expect(abs((loss(gain, shifted) - loss(gain, bias)) / shift - exact.bias[c]) < 1e-9 * Double(count))
        }
    }

    /// Rows cut at a multiple of 64 go on where the sums stood.
    @Test func parametersGoOn() throws {
        let norm = ReferenceNorm(.layer, epsilon: 1e-5)
        let (rows, gradients) = (rows(150, seed: 9), rows(150, seed: 10))
        let whole = norm.parameterGradients(rows, of: gradients)
        let first = norm.parameterGradients(Array(rows[..<64]), of: Array(gradients[..<64]))
        let both = norm.parameterGradients(Array(rows[64...]), of: Array(gradients[64...]), addedTo: first)
        try requireSameBits("dgain", both.gain, whole.gain, "cut at 64")
        try requireSameBits("dbias", both.bias, whole.bias, "cut at 64")
    }

    // MARK: - Gates

    @Test(arguments: [Float(-90), -20, -1.5, -0.25, 0, 0.75, 3, 30, 90])
    func gates(logit: Float) {
        func gate(_ x: Double) -> Double { 1 / (1 + ReferenceMath.exponential(-x)) }
        let (output, gradient) = (rows(1, seed: 11)[0], rows(1, seed: 12)[0])
        let g = gate(Double(logit))
        let slope = derivative { gate(Double(logit) + $0) }
        #expect(abs(slope - g * gate(-Double(logit))) < 1e-10)
        let exact = zip(output, gradient).map { Double($0) * Double($1) * (g * gate(-Double(logit))) }
        for c in output.indices {
            let result = ReferenceMath.gateGradient(output[c], logit: logit, of: gradient[c])
            #expect(abs(Double(result.output) - Double(gradient[c]) * g) <= 1e-6 * g * abs(Double(gradient[c])) + 1e-37)
            #expect(abs(Double(result.logit) - exact[c]) <= 2e-5 * abs(exact[c]) + 1e-37)
        }
        let whole = ReferenceMath.gateGradient(output, logit: logit, of: gradient)
        let size = exact.reduce(0) { $0 + abs($1) }
        #expect(abs(Double(whole) - exact.reduce(0, +)) <= 2e-5 * size + 1e-37)
    }

    /// What is beside a gradient of 0 is not looked at, and no gradient is -0.
    @Test func gatesOfNoGradient() {
        for nothing in [Float(0), -0.0] {
            let result = ReferenceMath.gateGradient(.nan, logit: 0.5, of: nothing)
            #expect(result.output.bitPattern == 0 && result.logit.bitPattern == 0)
            #expect(ReferenceMath.gateGradient([.nan, -3], logit: 0, of: [nothing, 2]) == -1.5)
            #expect(ReferenceMath.gateGradient([.nan], logit: -1, of: [nothing]).bitPattern == 0)
        }
        #expect(ReferenceMath.gateGradient(-1, logit: -200, of: 1).logit.bitPattern == 0)
    }

    // MARK: - Signs of zeros

    /// A gradient of 0 is +0, of rows as of gains and biases that go on from -0.
    @Test func noGradientIsANegativeZero() {
        let row: [Float] = [1, 1, 1, 1]
        for kind in ReferenceNorm.Kind.allCases {
            let norm = ReferenceNorm(kind, epsilon: 0, gain: [0, 0, -1, 0])
            for gradient in [[-1, 0, 0, 0], [0, -1, 0, -0.0], [1, 1, 0, -1]] as [[Float]] {
                #expect(norm.gradient(row, of: gradient).allSatisfy { $0 != 0 || $0.sign == .plus })
            }
            let sums = norm.parameterGradients(
                [row], of: [[0, 0, 0, 0]], addedTo: ([-0.0, 0, -0.0, 1], [-0.0, -0.0, 0, 1]))
            #expect((sums.gain + sums.bias).allSatisfy { $0 != 0 || $0.sign == .plus })
        }
        let turned = ReferencePositions(dimensions: 2, pairing: .halves, form: .rotary)
            .gradient([1, 1, 1], of: [1, 0, -0.0], .queries) { _ in (0, 1) }
        #expect(turned.map(\.bitPattern) == [Float(0), -1, 0].map(\.bitPattern))
    }
}
