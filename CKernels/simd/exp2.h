/* SPDX-License-Identifier: Apache-2.0 */
/* exp2.h - 2^x, log2(x) and tanh(x) on 16 lanes, with the same bits on every instruction set.
 *
 *             valid for                                  error      special values
 *   exp2      x <= 126                                   <= 1 ulp   0 below -125, so no result is subnormal; NaN stays
 *   short     x <= 126                                   2.1e-4     the same
 *   exp2m1    |x| <= 1/2                                 1e-8 + 1 ulp   2^x - 1, without its cancellation near 0
 *   log2      x positive and normal                      see coefficients.h   +inf and NaN stay
 *   tanh      any x                                      see coefficients.h   NaN stays
 *
 * All are Horner chains of fma over the coefficients of simd/coefficients.h (Scripts/find-coefficients.py). */
#ifndef QATTN_EXP2_H
#define QATTN_EXP2_H

#include "simd/vector.h"

QATTN_INLINE f32x16 f32x16_horner(f32x16 x, const float *coefficients, int count) {
    f32x16 y = f32x16_splat(coefficients[0]);
    QATTN_UNROLL
    for (int i = 1; i < count; i++) y = f32x16_fma(y, x, f32x16_splat(coefficients[i]));
    return y;
}

/* 2^x by a polynomial of `count` coefficients, or 0 below `least`, which is -125 or more. */
QATTN_INLINE f32x16 f32x16_power_of_two(f32x16 x, const float *coefficients, int count, float least) {
#if defined(QATTN_AVX512)
    /* n = round(x), y = 2^(x - n) in [0.7, 1.42], result y * 2^n: one instruction each to round and to scale. Where there
     * are tile instructions, CPUs round in two operations and take x - n in one, which is exact; others the reverse. */
#if defined(QATTN_TILE_UNIT)
    const f32x16 rest = (f32x16)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 n = (__m512)(x - rest);
#else
    const __m512 n = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const f32x16 rest = x - (f32x16)n;
#endif
    const f32x16 y = f32x16_horner(rest, coefficients, count);
    const __mmask16 not_below = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(least), _CMP_NLT_UQ);
    return (f32x16)_mm512_maskz_scalef_ps(not_below, (__m512)y, n);
#else
    /* Adding 1.5 * 2^23 leaves round-to-even(x) in the low bits; the exponent field of 2^n is n + 127. */
    const f32x16 magic = f32x16_splat(0x1.8p23f);
    const f32x16 shifted = x + magic;
    const f32x16 n = shifted - magic;
    const f32x16 y = f32x16_horner(x - n, coefficients, count);
    const f32x16 scale = f32x16_from_bits((f32x16_bits(shifted) << 23) + 0x3f800000u);
    return x < least ? f32x16_splat(0) : y * scale; /* exact: at least 2^-125.5; a NaN y stays NaN */
#endif
}

QATTN_INLINE f32x16 f32x16_exp2(f32x16 x) {
    const int count = sizeof qattn_exp2_coefficients / sizeof *qattn_exp2_coefficients;
    return f32x16_power_of_two(x, qattn_exp2_coefficients, count, -125);
}

/* The same for what is rounded to bfloat16. */
QATTN_INLINE f32x16 f32x16_short_exp2(f32x16 x, float least) {
    const int count = sizeof qattn_short_exp2_coefficients / sizeof *qattn_short_exp2_coefficients;
    return f32x16_power_of_two(x, qattn_short_exp2_coefficients, count, least);
}

QATTN_INLINE f32x16 f32x16_exp2m1(f32x16 x) {
    /* The polynomial of exp2 ends with a constant term of 1: what is left without it is the difference. */
    const int count = sizeof qattn_exp2_coefficients / sizeof *qattn_exp2_coefficients;
    return x * f32x16_horner(x, qattn_exp2_coefficients, count - 1);
}

/* x^count + c[0] x^(count - 1) + ... + c[count - 1]: the first step is a sum, for which CPUs have units of their own.
 */
QATTN_INLINE f32x16 f32x16_monic(f32x16 x, const float *coefficients, int count) {
    f32x16 y = x + f32x16_splat(coefficients[0]);
    QATTN_UNROLL
    for (int i = 1; i < count; i++) y = f32x16_fma(y, x, f32x16_splat(coefficients[i]));
    return y;
}

/* What tanh is multiplied by, in its two forms. */
typedef struct tanh_scale {
    float near, far; /* scale, scale * QATTN_TANH_FACTOR */
} tanh_scale;

/* The quotient of two polynomials, for any x. */
QATTN_INLINE f32x16 f32x16_far_tanh(f32x16 x, float factor) {
    const int count = sizeof qattn_tanh_numerator / sizeof *qattn_tanh_numerator;
    const f32x16 limit = f32x16_splat(QATTN_TANH_LIMIT);
    const f32x16 below = x > limit ? limit : x, y = below < -limit ? -limit : below;
    const f32x16 z = y * y;
    return y * f32x16_splat(factor) * f32x16_monic(z, qattn_tanh_numerator, count) /
           f32x16_monic(z, qattn_tanh_denominator, count);
}

/* scale * tanh(x). Near 0, where most scores are that a cap is made for, a polynomial takes half the time; where any
 * lane is not, both forms are computed. */
QATTN_INLINE f32x16 f32x16_scaled_tanh(f32x16 x, tanh_scale scale) {
    const f32x16 z = x * x;
    const int count = sizeof qattn_near_tanh / sizeof *qattn_near_tanh;
    const f32x16 near = x * f32x16_splat(scale.near) * f32x16_horner(z, qattn_near_tanh, count);
    if (f32x16_all_at_most(z, QATTN_TANH_NEAR)) return near;
    return z <= f32x16_splat(QATTN_TANH_NEAR) ? near : f32x16_far_tanh(x, scale.far);
}

QATTN_INLINE f32x16 f32x16_tanh(f32x16 x) {
    return f32x16_scaled_tanh(x, (tanh_scale){.near = 1, .far = QATTN_TANH_FACTOR});
}

QATTN_INLINE f32x16 f32x16_log2(f32x16 x) {
    const int count = sizeof qattn_log2_coefficients / sizeof *qattn_log2_coefficients;
    /* x = 2^e z with z in [sqrt(1/2), sqrt(2)): 0x3f3504f3 are the bits of sqrt(1/2), rounded. */
    const i32x16 bits = (i32x16)x;
    const i32x16 e = (bits - 0x3f3504f3) >> 23;
    const f32x16 z = f32x16_from_bits(f32x16_bits(x) - ((u32x16)e << 23));
    const f32x16 u = z - 1.0f;
    const f32x16 y =
        f32x16_fma(u, f32x16_horner(u, qattn_log2_coefficients, count), __builtin_convertvector(e, f32x16));
    return x < __builtin_inff() ? y : x;
}

/* out[i] = f(x[i]): the functions above for callers outside of kernels; out may be x. */
#define QATTN_MAP(name)                                                                                                \
    static void QATTN_FUNCTION(name)(const float *x, float *out, size_t count) {                                       \
        for (size_t i = 0; i < count; i += QATTN_LANES) {                                                              \
            const size_t n = count - i < QATTN_LANES ? count - i : QATTN_LANES;                                        \
            float lanes[QATTN_LANES] = {0};                                                                            \
            memcpy(lanes, x + i, n * sizeof(float));                                                                   \
            f32x16_store(lanes, f32x16_##name(f32x16_load(lanes)));                                                    \
            memcpy(out + i, lanes, n * sizeof(float));                                                                 \
        }                                                                                                              \
    }
QATTN_MAP(exp2)
QATTN_MAP(log2)
QATTN_MAP(tanh)
#undef QATTN_MAP

#endif
