/* SPDX-License-Identifier: Apache-2.0 */
/* coefficients.h - coefficients of exp2, log2 and tanh. Written by Scripts/find-coefficients.py: change that. */
#ifndef QATTN_COEFFICIENTS_H
#define QATTN_COEFFICIENTS_H

#define QATTN_LOG2E   1.4426950408889634 /* log2(e), a double */
#define QATTN_LOG2E_F 0x1.715476p+0f     /* the same, rounded to float */
#define QATTN_LN2_F   0x1.62e43p-1f      /* ln(2), rounded to float */

/* 2^f = (((((c[0] f + c[1]) f + c[2]) f + c[3]) f + c[4]) f + c[5]) f + c[6], f in [-1/2, 1/2].
 * Largest error: 3.7e-9 in real numbers, 0.81 ulp by Horner's rule with fma in float32. */
static const float qattn_exp2_coefficients[7] = {
    0x1.446c52p-13f,
    0x1.5f0896p-10f,
    0x1.3b29e4p-7f,
    0x1.c6af6ap-5f,
    0x1.ebfbdep-3f,
    0x1.62e43p-1f,
    0x1p+0f,
};

/* 2^f = ((c[0] f + c[1]) f + c[2]) f + c[3], f in [-1/2, 1/2], for what is rounded to bfloat16.
 * Largest error: 2.1e-04 of the value. */
static const float qattn_short_exp2_coefficients[4] = {
    0x1.ca1d28p-5f,
    0x1.efb07ap-3f,
    0x1.62e172p-1f,
    0x1p+0f,
};

/* log2(1 + u) = u P(u), P(u) = (... (c[0] u + c[1]) u + ...) u + c[8], u in [sqrt(1/2) - 1, sqrt(2) - 1].
 * Largest error: 1.6e-8 in real numbers, 1.92 ulp by Horner's rule with fma in float32, and
 * 7.2e-08 max(1, |e + u P(u)|) for fma(u, P(u), e) with an integer e. */
static const float qattn_log2_coefficients[9] = {
    0x1.08bba4p-3f,
    -0x1.abe568p-3f,
    0x1.b8c13ap-3f,
    -0x1.e8ced4p-3f,
    0x1.26d982p-2f,
    -0x1.715f94p-2f,
    0x1.ec73acp-2f,
    -0x1.71546ap-1f,
    0x1.715476p+0f,
};

/* tanh(x) = x S(x^2), S(z) = (((c[0] z + c[1]) z + c[2]) z + c[3]) z + c[4], x^2 <= QATTN_TANH_NEAR.
 * Largest error: 1.2e-7 of the value in real numbers, 2.84 ulp in float32. */
#define QATTN_TANH_NEAR 0x1.9p-2f
static const float qattn_near_tanh[5] = {
    0x1.f1ebecp-7f,
    -0x1.a98eap-5f,
    0x1.108d2ap-3f,
    -0x1.5552bcp-2f,
    0x1p+0f,
};

/* tanh(y) = y k P(y^2) / Q(y^2), y in [-9, 9], P(z) = z^4 + c[0] z^3 + ... + c[3], and Q likewise; beyond, tanh(9) is off
 * by 3e-8 at most. Largest error: 2.1e-8 of the value in real numbers, 5.59 ulp in float32. */
#define QATTN_TANH_LIMIT  9
#define QATTN_TANH_FACTOR 0x1.195ce2p-6f /* k */
static const float qattn_tanh_numerator[4] = {
    0x1.81cd12p+10f,
    0x1.ff3a12p+17f,
    0x1.31c67p+23f,
    0x1.1da472p+26f,
};

static const float qattn_tanh_denominator[4] = {
    0x1.a680dp+8f,
    0x1.03f6dp+15f,
    0x1.254fd6p+19f,
    0x1.39f124p+20f,
};

#endif
