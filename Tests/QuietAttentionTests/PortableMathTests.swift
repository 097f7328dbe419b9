// SPDX-License-Identifier: Apache-2.0
// PortableMathTests.swift - log and exp are as accurate as they say, and their bits are fixed.

import Foundation
import SeededInputs
import Testing

@testable import QuietAttention

@Suite struct PortableMathTests {
    /// Numbers over the whole range of exponents, and many near 1, where the logarithm is small.
    private func samples() -> [Double] {
        var generator = SeededGenerator(seed: 3)
        let wide = (0..<4000).map { _ in
            Double(
                sign: .plus, exponent: generator.next(in: -1070...1000),
                significand: 1 + Double(generator.nextUniform()))
        }
        let near = (0..<4000).map { _ in 0.5 + 1.5 * Double(generator.nextUniform()) }
        return wide + near + [1, 2, 0.5, Double.leastNonzeroMagnitude, Double.greatestFiniteMagnitude]
    }

    @Test func logarithm() {
        for x in samples() {
            let expected = Foundation.log(x)
            #expect(abs(PortableMath.log(x) - expected) <= 3e-16 * max(1, abs(expected)), "ln \(x)")
        }
        #expect(PortableMath.log(1) == 0)
        #expect(PortableMath.log(0) == -.infinity && PortableMath.log(.infinity) == .infinity)
        #expect(PortableMath.log(-1).isNaN && PortableMath.log(.nan).isNaN)
    }

    @Test func exponential() {
        var generator = SeededGenerator(seed: 4)
        for _ in 0..<8000 {
            let x = -600 + 1300 * Double(generator.nextUniform()) * Double(generator.nextUniform())
            let expected = Foundation.exp(x)
            #expect(abs(PortableMath.exp(x) - expected) <= 4e-16 * expected, "exp \(x)")
        }
        #expect(PortableMath.exp(0) == 1)
        #expect(PortableMath.exp(-.infinity) == 0 && PortableMath.exp(-701) == 0 && PortableMath.exp(.nan).isNaN)
    }

    @Test func bitsAreFixed() {
        let logarithms: [UInt64] = [2, 10, 0.001, 1e300].map { PortableMath.log($0).bitPattern }
        #expect(
            logarithms == [
                0x3fe6_2e42_fefa_39ef, 0x4002_6bb1_bbb5_5516, 0xc01b_a18a_998f_ffa0, 0x4085_9634_47f8_7fb5,
            ])
        let powers: [UInt64] = [1, -1, 0.001, -500].map { PortableMath.exp($0).bitPattern }
        #expect(
            powers == [
                0x4005_bf0a_8b14_576a, 0x3fd7_8b56_362c_ef38, 0x3ff0_0419_19b7_ee34, 0x12d9_265e_78d4_438d,
            ])
    }

    @Test func ties() {
        let rounded = [0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 126.7].map { PortableMath.rounded($0) }
        #expect(rounded == [0, 2, 2, 0, -2, 0, 127])
    }
}
