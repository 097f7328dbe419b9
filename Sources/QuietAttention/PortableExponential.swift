// SPDX-License-Identifier: Apache-2.0
// PortableExponential.swift - the exponential beside the portable logarithm, rounding, and sums in a fixed order.

extension PortableMath {
    /// log2(e) as the kernels multiply by it.
    static let log2e: Float = 0x1.715476p+0
    static let ln2 = 0x1.62e42fefa39efp-1
    static let ln10 = 0x1.26bb1bbb55516p+1

    /// e^x for x <= 700, within 4e-16 of it relatively.
    ///
    ///     n = x / ln 2 rounded to an integer;   r = x - n ln 2, |r| < 0.347;   e^x = 2^n (1 + r + r^2/2! + ... + r^13/13!)
    ///
    /// The first part of ln 2 has 32 bits, so that its product with n is exact.
    ///
    /// *Edge cases*: below -700, -inf included, the result is 0. NaN stays.
    static func exp(_ x: Double) -> Double {
        if x.isNaN { return x }
        if x < -700 { return 0 }
        let (ln2High, ln2Low) = (0x1.62e42feep-1, 0x1.a39ef35793c76p-33)
        let n = rounded(x * 1.4426950408889634)
        let r = (x - n * ln2High) - n * ln2Low
        var series = 1.0
        for factor in stride(from: 13.0, through: 1, by: -1) { series = series * r / factor + 1 }
        return series * Double(sign: .plus, exponent: Int(n), significand: 1)
    }

    /// The integer next to x, ties to even, for |x| < 2^51: adding 1.5 * 2^52 leaves no bits for a fraction.
    static func rounded(_ x: Double) -> Double { (x + 0x1.8p52) - 0x1.8p52 }

    /// The sum of `term` over 0 ..< count: lane r sums the terms r, r + 16, r + 32 ... in turn, and the lanes are added in
    /// a tree, r with r + 8, then r + 4, r + 2, r + 1. Sixteen short sums round less than a long one.
    @inline(__always)
    static func sum(_ count: Int, _ term: (Int) -> Double) -> Double {
        withUnsafeTemporaryAllocation(of: Double.self, capacity: 16) { lanes in
            lanes.initialize(repeating: 0)
            var first = 0
            while first + 16 <= count {
                for lane in 0..<16 { lanes[lane] += term(first + lane) }
                first += 16
            }
            for index in first..<count { lanes[index - first] += term(index) }
            for half in [8, 4, 2, 1] {
                for lane in 0..<half { lanes[lane] += lanes[lane + half] }
            }
            return lanes[0]
        }
    }
}
