// SPDX-License-Identifier: Apache-2.0
// Coefficients.swift - coefficients of exp2 and log2. Written by Scripts/find-coefficients.py: change that.

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
