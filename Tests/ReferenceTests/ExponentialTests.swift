// SPDX-License-Identifier: Apache-2.0
// ExponentialTests.swift - exp2, log2 and tanh of the reference against Double, over the floats of their ranges.
//
// By default some thousandth part of the floats; with QUIET_EXHAUSTIVE=1 in the environment every one, which takes minutes.

import AttentionReference
import Foundation
import Testing

@Suite struct ExponentialTests {
    private static let isExhaustive = ProcessInfo.processInfo.environment["QUIET_EXHAUSTIVE"] == "1"

    /// Calls `body` with the floats from `low` to `high`, both positive: all of them, or one in `part`.
    private func forEachFloat(from low: Float, through high: Float, oneIn part: UInt32, _ body: (Float) -> Void) {
        let step = Self.isExhaustive ? 1 : part
        for bits in stride(from: low.bitPattern, through: high.bitPattern, by: Int(step)) {
            body(Float(bitPattern: bits))
        }
    }

    /// The error in units of the last place that a Float of `exact`'s size has.
    private func unitsOff(_ value: Float, _ exact: Double) -> Double {
        abs(Double(value) - exact) * Double(sign: .plus, exponent: 23 - Int(exact.exponent), significand: 1)
    }

    @Test(arguments: [FloatingPointSign.minus, .plus])
    func exp2IsWithinOneUnit(sign: FloatingPointSign) {
        var (worst, worstArgument) = (0.0, Float(0))
        forEachFloat(from: 0x1p-25, through: sign == .minus ? 125 : 126, oneIn: 997) { magnitude in
            let x = sign == .minus ? -magnitude : magnitude
            let error = unitsOff(ReferenceMath.exp2(x), Foundation.exp2(Double(x)))
            if error > worst { (worst, worstArgument) = (error, x) }
        }
        #expect(worst <= 0.81, "at \(worstArgument)")
    }

    @Test func shortExp2IsWithinItsBound() {
        var worst = 0.0
        forEachFloat(from: 0x1p-25, through: 125, oneIn: 997) { magnitude in
            let exact = Foundation.exp2(-Double(magnitude))
            worst = max(worst, abs(Double(ReferenceMath.shortExp2(-magnitude)) / exact - 1))
        }
        #expect(worst > 1e-4 && worst <= 2.15e-4)
    }

    @Test func exp2IsExactAtIntegers() {
        for n in -125...126 {
            let power = Float(sign: .plus, exponent: n, significand: 1)
            #expect(ReferenceMath.exp2(Float(n)) == power && ReferenceMath.shortExp2(Float(n)) == power)
        }
    }

    @Test func exp2OfNearlyNothingIsOne() {
        for x: Float in [0, -0.0, 0x1p-26, -0x1p-26, .leastNonzeroMagnitude, -.leastNormalMagnitude] {
            #expect(ReferenceMath.exp2(x) == 1)
        }
    }

    @Test func exp2EndsInZero() {
        for x: Float in [Float(-125).nextDown, -125.5, -126, -1000, -.greatestFiniteMagnitude, -.infinity] {
            #expect(ReferenceMath.exp2(x).bitPattern == 0 && ReferenceMath.shortExp2(x).bitPattern == 0)
        }
        #expect(ReferenceMath.exp2(.nan).isNaN && ReferenceMath.shortExp2(.nan).isNaN)
    }

    @Test func tanhIsWithinItsBound() {
        var (worst, worstArgument, squares, count) = (0.0, Float(0), 0.0, 0)
        forEachFloat(from: 0x1p-30, through: 12, oneIn: 997) { x in
            let error = unitsOff(ReferenceMath.tanh(x), Foundation.tanh(Double(x)))
            (squares, count) = (squares + error * error, count + 1)
            if error > worst { (worst, worstArgument) = (error, x) }
        }
        #expect(worst <= 5.7, "at \(worstArgument)")
        #expect((squares / Double(count)).squareRoot() < 1)
        let most = ReferenceMath.tanh(.infinity)
        #expect(abs(most - 1) <= 0x1p-22 && ReferenceMath.tanh(9) == most && ReferenceMath.tanh(-.infinity) == -most)
        #expect(ReferenceMath.tanh(.nan).isNaN && ReferenceMath.tanh(-0.0).bitPattern == Float(-0.0).bitPattern)
        for x: Float in [0.1, 1, 5, 20] { #expect(ReferenceMath.tanh(-x) == -ReferenceMath.tanh(x)) }
    }

    /// Up to x^2 = 25/64 a polynomial, twice as accurate as the quotient beyond; the two meet within their bounds.
    @Test func tanhNearZeroIsMoreAccurate() {
        var worst = 0.0
        forEachFloat(from: 0x1p-12, through: 0.625, oneIn: 97) { x in
            worst = max(worst, unitsOff(ReferenceMath.tanh(x), Foundation.tanh(Double(x))))
        }
        #expect(worst <= 2.9)
        let seam = (ReferenceMath.tanh(0.625), ReferenceMath.tanh(Float(0.625).nextUp))
        #expect(abs(seam.0 - seam.1) <= 6 * seam.0.ulp)
    }

    @Test func log2IsWithinItsBound() {
        var (worst, worstArgument) = (0.0, Float(0))
        func measure(_ x: Float) {
            let exact = Foundation.log2(Double(x))
            let error = abs(Double(ReferenceMath.log2(x)) - exact) / max(1, abs(exact))
            if error > worst { (worst, worstArgument) = (error, x) }
        }
        forEachFloat(from: 0.25, through: 64, oneIn: 997, measure)
        for bits in stride(from: Float.leastNormalMagnitude.bitPattern, to: Float.infinity.bitPattern, by: 9973) {
            measure(Float(bitPattern: bits))
        }
        #expect(worst <= 7.3e-8, "at \(worstArgument)")
    }

    /// Near 1 the result is small, and still as accurate as its own last place.
    @Test func log2KeepsItsDigitsNearOne() {
        var worst = 0.0
        forEachFloat(from: 0x1.6a09e8p-1, through: 0x1.6a09e6p0, oneIn: 97) { x in
            if x != 1 { worst = max(worst, unitsOff(ReferenceMath.log2(x), Foundation.log2(Double(x)))) }
        }
        #expect(worst <= 1.93)
    }

    @Test func log2IsExactAtPowersOfTwo() {
        for e in -126...127 {
            #expect(ReferenceMath.log2(Float(sign: .plus, exponent: e, significand: 1)) == Float(e))
        }
        #expect(ReferenceMath.log2(1).bitPattern == 0)
        #expect(ReferenceMath.log2(.infinity) == .infinity)
        #expect(ReferenceMath.log2(.nan).isNaN)
    }
}
