// SPDX-License-Identifier: Apache-2.0
// Exponential.swift - exp2, log2 and tanh in Float, made of operations that give the same bits on every machine.

/// The functions that the attention of this package is made of. A C library's own differ between platforms; these
/// use only IEEE 754 additions, multiplications, divisions and fused multiply-adds, in the order written here.
public enum ReferenceMath {
    /// 2^x, at most 1 ulp from the true value.
    ///
    ///     n = x rounded to the nearest integer, ties to even;   f = x - n in [-1/2, 1/2];   2^x = 2^n P(f)
    ///
    /// `P` has degree 6, by Horner's rule with a fused multiply-add per degree. Its constant term is exactly 1, so
    /// integers have exact results.
    ///
    /// - Parameter x: -infinity to 126. Softmax uses x <= 0.
    ///
    /// Edge cases: below -125, -infinity included, the result is +0, which keeps every result normal. NaN gives NaN.
    public static func exp2(_ x: Float) -> Float {
        powerOfTwo(x) { fma(exp2Slope($0), $0, Exp2Coefficients.c0) }
    }

    /// 2^x for what is rounded to bfloat16: as ``exp2(_:)``, but `P` has degree 3, and errors reach 2.1e-4 of the value.
    public static func shortExp2(_ x: Float) -> Float {
        powerOfTwo(x) { f in
            var p = ShortExp2Coefficients.c3
            p = fma(p, f, ShortExp2Coefficients.c2)
            p = fma(p, f, ShortExp2Coefficients.c1)
            return fma(p, f, ShortExp2Coefficients.c0)
        }
    }

    private static func powerOfTwo(_ x: Float, _ polynomial: (Float) -> Float) -> Float {
        if x.isNaN { return .nan }
        if x < -125 { return 0 }
        // Adding 1.5 * 2^23 leaves no bits for a fraction: the addition itself rounds to the nearest even integer.
        let roundToInteger: Float = 0x1.8p23
        let n = (x + roundToInteger) - roundToInteger
        let f = x - n
        let p = polynomial(f)
        // n is in -125...126, so 2^n is a normal number, and so is p * 2^n: p >= 0.707, and for n = -125 f >= 0.
        return p * Float(bitPattern: UInt32(Int32(n) + 127) << 23)
    }

    /// (2^f - 1) / f for f in [-1/2, 1/2].
    private static func exp2Slope(_ f: Float) -> Float {
        var p = Exp2Coefficients.c6
        p = fma(p, f, Exp2Coefficients.c5)
        p = fma(p, f, Exp2Coefficients.c4)
        p = fma(p, f, Exp2Coefficients.c3)
        p = fma(p, f, Exp2Coefficients.c2)
        return fma(p, f, Exp2Coefficients.c1)
    }

    /// 2^x - 1 for x in [-1/2, 1/2], without the cancellation that subtracting 1 from 2^x has near 0.
    static func exp2m1(_ x: Float) -> Float { x * exp2Slope(x) }

    /// tanh(x), within 5.6 ulp of the true value, 2.9 near 0.
    ///
    ///     tanh(x) = x S(x^2)                where x^2 <= 25/64
    ///     tanh(y) = y k P(y^2) / Q(y^2)     elsewhere, y = x in [-9, 9]; beyond, tanh(9), off by 3e-8 at most
    ///
    /// `S` has degree 4 and constant term 1, `P` and `Q` have degree 4 and leading coefficient 1, by Horner's rule.
    ///
    /// Edge case: NaN gives NaN.
    public static func tanh(_ x: Float) -> Float { tanh(x, scale: 1) }

    /// scale * tanh(x): the scale is rounded, or multiplied with k, in Double, and the product rounded once.
    static func tanh(_ x: Float, scale: Double) -> Float {
        let square = x * x
        if square <= TanhCoefficients.near {
            var s = fma(TanhCoefficients.s4, square, TanhCoefficients.s3)
            s = fma(s, square, TanhCoefficients.s2)
            s = fma(s, square, TanhCoefficients.s1)
            s = fma(s, square, TanhCoefficients.s0)
            return x * Float(scale) * s
        }
        let limit = TanhCoefficients.limit
        let y = x > limit ? limit : x < -limit ? -limit : x
        let z = y * y
        var p = z + TanhCoefficients.p3
        p = fma(p, z, TanhCoefficients.p2)
        p = fma(p, z, TanhCoefficients.p1)
        p = fma(p, z, TanhCoefficients.p0)
        var q = z + TanhCoefficients.q3
        q = fma(q, z, TanhCoefficients.q2)
        q = fma(q, z, TanhCoefficients.q1)
        q = fma(q, z, TanhCoefficients.q0)
        return y * Float(scale * Double(TanhCoefficients.factor)) * p / q
    }

    /// log2(x), within 7.3e-8 max(1, |log2(x)|) of the true value, and exact where x is a power of two.
    ///
    ///     x = 2^e z, z in [sqrt(1/2), sqrt(2));   u = z - 1;   log2(x) = u P(u) + e
    ///
    /// `P` has degree 8, by Horner's rule.
    ///
    /// - Parameter x: A positive normal number, infinity or NaN.
    ///
    /// Edge cases: infinity gives infinity, NaN gives NaN.
    public static func log2(_ x: Float) -> Float {
        if !x.isFinite { return x }
        // The bits of sqrt(1/2) subtracted, the exponent field counts from there, so that z straddles 1 evenly.
        let e = (Int32(bitPattern: x.bitPattern) - 0x3f35_04f3) >> 23
        let z = Float(bitPattern: UInt32(bitPattern: Int32(bitPattern: x.bitPattern) - (e << 23)))
        let u = z - 1
        var p = Log2Coefficients.c8
        p = fma(p, u, Log2Coefficients.c7)
        p = fma(p, u, Log2Coefficients.c6)
        p = fma(p, u, Log2Coefficients.c5)
        p = fma(p, u, Log2Coefficients.c4)
        p = fma(p, u, Log2Coefficients.c3)
        p = fma(p, u, Log2Coefficients.c2)
        p = fma(p, u, Log2Coefficients.c1)
        p = fma(p, u, Log2Coefficients.c0)
        return fma(u, p, Float(e))
    }
}

/// a * b + c, rounded once.
@inline(__always)
func fma(_ a: Float, _ b: Float, _ c: Float) -> Float {
    c.addingProduct(a, b)
}
