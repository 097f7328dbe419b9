// SPDX-License-Identifier: Apache-2.0
// PortableMath.swift - functions of Double with the same bits on every platform, which those of C libraries have not.

/// Functions made of IEEE 754 additions, multiplications, divisions and square roots alone.
enum PortableMath {
    /// ln 2 in two parts: products of the first with exponents are exact.
    private static let ln2High = 0x1.62e42fefap-1
    private static let ln2Low = 0x1.cf79abc9e3b3ap-40

    /// The natural logarithm, within 1.5 units in the last place.
    ///
    ///     x = 2^e z, z in [sqrt(1/2), sqrt(2));   s = (z - 1) / (z + 1);   log z = 2 (s + s^3 / 3 + s^5 / 5 + ...)
    ///
    /// |s| < 0.172, so the first term left out, s^23 / 23, is below 2^-62.
    ///
    /// Edge cases: 0 gives -inf, negative numbers and NaN give NaN, infinity gives infinity.
    static func log(_ x: Double) -> Double {
        guard x > 0, x.isFinite else { return x == 0 ? -.infinity : x > 0 ? x : .nan }
        var (e, z) = (Double(x.exponent), x.significand)
        if z > 0x1.6a09e667f3bcdp0 { (e, z) = (e + 1, z / 2) }
        let s = (z - 1) / (z + 1)
        let square = s * s
        var sum = 0.0
        for n in stride(from: 21, through: 3, by: -2) { sum = (sum + 1 / Double(n)) * square }
        return e * ln2High + (2 * s + (2 * s * sum + e * ln2Low))
    }
}
