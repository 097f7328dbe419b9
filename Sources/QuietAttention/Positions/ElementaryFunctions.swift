// SPDX-License-Identifier: Apache-2.0
// ElementaryFunctions.swift - logarithm, exponential, sine and cosine in Double with the same bits on every platform.
//
// Goals, in order of priority:
// 1. The same bits everywhere: additions, multiplications, divisions and three fused multiply-adds, no C library.
// 2. Errors far below what rounding to Float leaves: a few units in the last place of Double.
// 3. Short and plain: Taylor series, whose coefficients need no table.
// AttentionReference has the same functions as the definition of their bits.

/// Functions of Double that tables of rotary embeddings, row factors and constants of normalisers are made with.
enum ElementaryFunctions {
    /// The natural logarithm of a positive, normal, finite number.
    ///
    ///     x = 2^e z,  z in [sqrt(1/2), sqrt(2)),  s = (z - 1) / (z + 1),  ln x = e ln 2 + 2 (s + s^3/3 + s^5/5 + ...)
    ///
    /// With s^2 <= 0.0295 the terms behind s^23 add less than 1e-19 of the sum.
    static func logarithm(_ x: Double) -> Double {
        // Counted from the bits of sqrt(1/2), the exponent field makes z straddle 1 evenly.
        let e = (Int64(bitPattern: x.bitPattern) - 0x3fe6_a09e_667f_3bcd) >> 52
        let z = Double(bitPattern: UInt64(bitPattern: Int64(bitPattern: x.bitPattern) - (e << 52)))
        let s = (z - 1) / (z + 1)
        let square = s * s
        var sum = 0.0
        for odd in stride(from: 23, through: 3, by: -2) { sum = (sum + 1 / Double(odd)) * square }
        let logarithm = 2 * (s + s * sum)
        return Double(e) * ln2High + (logarithm + Double(e) * ln2Low)
    }

    /// e^x for x <= 700; 0 below -700, where results would soon be subnormal.
    ///
    ///     n = x / ln 2 rounded,  r = x - n ln 2,  e^x = 2^n (1 + r + r^2/2! + ... + r^14/14!)
    ///
    /// With |r| <= 0.35 the terms left out add less than 1e-19.
    static func exponential(_ x: Double) -> Double {
        if x < -700 { return 0 }
        let n = (x * log2e + roundToInteger) - roundToInteger
        let r = (x - n * ln2High) - n * ln2Low
        var sum = 1.0
        for k in stride(from: 14, through: 1, by: -1) { sum = 1 + sum * r / Double(k) }
        return sum * Double(bitPattern: UInt64(Int64(n) + 1023) << 52)
    }

    /// The sine and cosine of position * theta, for a whole position below 2^42 and 0 <= theta <= 1.
    ///
    /// The product is taken exactly, as a sum of two numbers, so that the error does not grow with the position.
    ///
    ///     n = angle / (pi/2) rounded,  x = angle - n pi/2 in [-pi/4, pi/4],  Taylor series of x to x^17 and x^16
    ///
    /// The terms left out are below 1e-17.
    static func sineAndCosine(_ position: Double, _ theta: Double) -> (sine: Double, cosine: Double) {
        let angle = position * theta
        let lost = (-angle).addingProduct(position, theta)
        let n = (angle * twoOverPi + roundToInteger) - roundToInteger
        // Exact where |angle| >= 1: both numbers are multiples of the unit of pi/2, and their difference is below 1.
        var x = angle.addingProduct(-n, halfPiHigh)
        x = x.addingProduct(-n, halfPiLow) + lost
        let z = x * x
        var p = 1.0 / 355_687_428_096_000
        p = p * z - 1.0 / 1_307_674_368_000
        p = p * z + 1.0 / 6_227_020_800
        p = p * z - 1.0 / 39_916_800
        p = p * z + 1.0 / 362_880
        p = p * z - 1.0 / 5040
        p = p * z + 1.0 / 120
        p = p * z - 1.0 / 6
        let sine = x + x * (z * p)
        var q = 1.0 / 20_922_789_888_000
        q = q * z - 1.0 / 87_178_291_200
        q = q * z + 1.0 / 479_001_600
        q = q * z - 1.0 / 3_628_800
        q = q * z + 1.0 / 40320
        q = q * z - 1.0 / 720
        q = q * z + 1.0 / 24
        q = q * z - 0.5
        let cosine = 1 + z * q
        switch Int(n) & 3 {
        case 0: return (sine, cosine)
        case 1: return (cosine, -sine)
        case 2: return (-sine, -cosine)
        default: return (-cosine, sine)
        }
    }

    /// Adding 1.5 * 2^52 leaves no bits for a fraction: the addition itself rounds to the nearest even integer.
    private static let roundToInteger = 0x1.8p52
    private static let log2e = 0x1.71547652b82fep0
    /// ln 2 in two parts, of which the first times an exponent is exact.
    private static let ln2High = 0x1.62e42feep-1
    private static let ln2Low = 0x1.a39ef35793c76p-33
    private static let twoOverPi = 0x1.45f306dc9c883p-1
    /// pi/2 in two parts.
    private static let halfPiHigh = 0x1.921fb54442d18p0
    private static let halfPiLow = 0x1.1a62633145c07p-54
}
