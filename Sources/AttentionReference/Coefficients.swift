// SPDX-License-Identifier: Apache-2.0
// Coefficients.swift - coefficients of exp2, log2 and tanh. Written by Scripts/find-coefficients.py: change that.

/// log2(e).
let log2e: Double = 1.4426950408889634
/// log2(e), rounded to Float.
let log2eFloat: Float = 0x1.715476p+0
/// ln(2), rounded to Float.
let ln2Float: Float = 0x1.62e43p-1

/// 2^f = (((((c6 f + c5) f + c4) f + c3) f + c2) f + c1) f + c0 for f in [-1/2, 1/2].
/// Largest error: 3.7e-9 in real numbers, 0.81 ulp by Horner's rule with fma in Float.
enum Exp2Coefficients {
    static let c6: Float = 0x1.446c52p-13
    static let c5: Float = 0x1.5f0896p-10
    static let c4: Float = 0x1.3b29e4p-7
    static let c3: Float = 0x1.c6af6ap-5
    static let c2: Float = 0x1.ebfbdep-3
    static let c1: Float = 0x1.62e43p-1
    static let c0: Float = 0x1p+0
}

/// 2^f = ((c3 f + c2) f + c1) f + c0 for f in [-1/2, 1/2], for what is rounded to bfloat16.
/// Largest error: 2.1e-04 of the value.
enum ShortExp2Coefficients {
    static let c3: Float = 0x1.ca1d28p-5
    static let c2: Float = 0x1.efb07ap-3
    static let c1: Float = 0x1.62e172p-1
    static let c0: Float = 0x1p+0
}

/// log2(1 + u) = u P(u), P(u) = (... (c8 u + c7) u + ...) u + c0, for u in [sqrt(1/2) - 1, sqrt(2) - 1].
/// Largest error: 1.6e-8 in real numbers, 1.92 ulp by Horner's rule with fma in Float, and
/// 7.2e-08 max(1, |e + u P(u)|) for fma(u, P(u), e) with an integer e.
enum Log2Coefficients {
    static let c8: Float = 0x1.08bba4p-3
    static let c7: Float = -0x1.abe568p-3
    static let c6: Float = 0x1.b8c13ap-3
    static let c5: Float = -0x1.e8ced4p-3
    static let c4: Float = 0x1.26d982p-2
    static let c3: Float = -0x1.715f94p-2
    static let c2: Float = 0x1.ec73acp-2
    static let c1: Float = -0x1.71546ap-1
    static let c0: Float = 0x1.715476p+0
}

/// tanh(x) = x S(x^2) for x^2 <= near; S = (((s4 z + s3) z + s2) z + s1) z + s0.
/// Largest error: 1.2e-7 of the value in real numbers, 2.84 ulp in Float.
///
/// tanh(y) = y k P(y^2) / Q(y^2) beyond, y in [-9, 9]; P = (((z + p3) z + p2) z + p1) z + p0, and Q likewise.
/// Largest error: 2.1e-8 of the value in real numbers, 5.59 ulp in Float.
enum TanhCoefficients {
    static let near: Float = 0x1.9p-2
    static let s4: Float = 0x1.f1ebecp-7
    static let s3: Float = -0x1.a98eap-5
    static let s2: Float = 0x1.108d2ap-3
    static let s1: Float = -0x1.5552bcp-2
    static let s0: Float = 0x1p+0

    /// Beyond, tanh(9) is off by 3e-8 at most.
    static let limit: Float = 9
    /// k.
    static let factor: Float = 0x1.195ce2p-6
    static let p3: Float = 0x1.81cd12p+10
    static let p2: Float = 0x1.ff3a12p+17
    static let p1: Float = 0x1.31c67p+23
    static let p0: Float = 0x1.1da472p+26
    static let q3: Float = 0x1.a680dp+8
    static let q2: Float = 0x1.03f6dp+15
    static let q1: Float = 0x1.254fd6p+19
    static let q0: Float = 0x1.39f124p+20
}
