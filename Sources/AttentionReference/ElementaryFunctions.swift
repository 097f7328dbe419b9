// SPDX-License-Identifier: Apache-2.0
// ElementaryFunctions.swift - logarithm, exponential, sine and cosine in Double: the definition of the bits of positions.

extension ReferenceMath {
    /// ln x of a positive normal number: with x = 2^e z, z in [sqrt(1/2), sqrt(2)), s = (z - 1) / (z + 1),
    ///
    ///     ln x = e ln 2 + 2 (s + s (s^2/3 + s^4/5 + ... + s^22/23))
    ///
    /// by Horner's rule, ln 2 in two parts of which the first is exact times e.
    public static func logarithm(_ x: Double) -> Double {
        var (z, e) = (x.significand, x.exponent)
        if z >= 0x1.6a09e667f3bcdp0 { (z, e) = (z / 2, e + 1) }
        let s = (z - 1) / (z + 1)
        let square = s * s
        var sum = 0.0
        for odd in [23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3] { sum = (sum + 1 / Double(odd)) * square }
        return Double(e) * ln2High + (2 * (s + s * sum) + Double(e) * ln2Low)
    }

    /// e^x, 0 below -700: with n = x / ln 2 rounded to the nearest integer, ties to even, and r = x - n ln 2,
    ///
    ///     e^x = 2^n (1 + r/1 (1 + r/2 (1 + r/3 (... (1 + r/14)))))
    ///
    /// - Parameter x: At most 700.
    public static func exponential(_ x: Double) -> Double {
        if x < -700 { return 0 }
        let n = roundedToInteger(x * 0x1.71547652b82fep0)
        let r = (x - n * ln2High) - n * ln2Low
        var sum = 1.0
        for k in (1...14).reversed() { sum = 1 + sum * r / Double(k) }
        return sum * Double(sign: .plus, exponent: Int(n), significand: 1)
    }

    /// The sine and cosine of position * theta, the product taken exactly: angle + lost. With n = angle / (pi/2) rounded
    /// to the nearest integer, ties to even, and x = angle - n pi/2 + lost,
    ///
    ///     sin x = x + x (-x^2/3! + x^4/5! - ... + x^16/17!),    cos x = 1 + (-x^2/2! + x^4/4! - ... + x^16/16!)
    ///
    /// by Horner's rule in x^2; n modulo 4 says which of them, with which sign, are those of the angle.
    public static func sineAndCosine(position: Int, theta: Double) -> (sine: Double, cosine: Double) {
        let angle = Double(position) * theta
        let lost = fma(Double(position), theta, -angle)
        let n = roundedToInteger(angle * 0x1.45f306dc9c883p-1)
        let high = fma(-n, 0x1.921fb54442d18p0, angle)
        let x = fma(-n, 0x1.1a62633145c07p-54, high) + lost
        let sine = x + x * (x * x * horner(sineSeries, x * x))
        let cosine = 1 + x * x * horner(cosineSeries, x * x)
        switch Int(n) & 3 {
        case 0: return (sine, cosine)
        case 1: return (cosine, -sine)
        case 2: return (-sine, -cosine)
        default: return (-cosine, sine)
        }
    }

    /// 1/17!, -1/15!, ... -1/3! and 1/16!, -1/14!, ... -1/2!.
    private static let sineSeries = inverseFactorials([17, 15, 13, 11, 9, 7, 5, 3])
    private static let cosineSeries = inverseFactorials([16, 14, 12, 10, 8, 6, 4, 2])

    private static func inverseFactorials(_ numbers: [Int]) -> [Double] {
        numbers.enumerated().map { ($0 % 2 == 0 ? 1 : -1) / Double((1...$1).reduce(1, *)) }
    }

    /// (c[0] z + c[1]) z + c[2] ...
    private static func horner(_ coefficients: [Double], _ z: Double) -> Double {
        coefficients.reduce(0) { $0 * z + $1 }
    }

    /// Adding 1.5 * 2^52 leaves no bits for a fraction: the addition itself rounds to the nearest even integer.
    private static func roundedToInteger(_ x: Double) -> Double { (x + 0x1.8p52) - 0x1.8p52 }

    private static let ln2High = 0x1.62e42feep-1
    private static let ln2Low = 0x1.a39ef35793c76p-33
}

/// a * b + c, rounded once.
private func fma(_ a: Double, _ b: Double, _ c: Double) -> Double { c.addingProduct(a, b) }
