/* SPDX-License-Identifier: Apache-2.0 */
/* bf16_weights.h - powers of two as factors of bfloat16, of a row's scores of a block.
 * CPUs with AVX512-BF16 round by themselves, 32 numbers at once, and nothing else is as many operations per score. */
#ifndef QATTN_BF16_WEIGHTS_H
#define QATTN_BF16_WEIGHTS_H

#include "simd/exp2.h"
#include "simd/storage.h"

/* The factor nearest to 2^x, for x <= 126. */
QATTN_INLINE f32x16 bf16x16_weight(f32x16 x) { return bf16x16_factor(f32x16_short_exp2(x, -125)); }

/* Words n to n + 15 as the upper halves of floats, the last first. */
#define QATTN_WORDS_AS_FLOATS(n)                                                                                       \
    n + 15, 0, n + 14, 0, n + 13, 0, n + 12, 0, n + 11, 0, n + 10, 0, n + 9, 0, n + 8, 0, n + 7, 0, n + 6, 0, n + 5,   \
        0, n + 4, 0, n + 3, 0, n + 2, 0, n + 1, 0, n, 0

/* The least of all numbers whose power, as f32x16_short_exp2 has it, rounds to 2^-56 or more: factors that are less are 0. */
#define QATTN_LEAST_WEIGHT_EXPONENT -0x1.c005c6p+5f

/* x[i] becomes the factor nearest to 2^x[i], and weights the same as bfloat16, for x[i] <= 126. */
QATTN_INLINE void bf16x64_weights(f32x16 x[4], void *weights) {
#if defined(QATTN_BANDS) && defined(QATTN_AVX512)
    QATTN_UNROLL
    for (int v = 0; v < 4; v++) x[v] = f32x16_short_exp2(x[v], QATTN_LEAST_WEIGHT_EXPONENT);
    const __m512i low = _mm512_set_epi16(QATTN_WORDS_AS_FLOATS(0)), high = _mm512_set_epi16(QATTN_WORDS_AS_FLOATS(16));
    QATTN_UNROLL
    for (int v = 0; v < 4; v += 2) {
        const __m512i nearest = (__m512i)_mm512_cvtne2ps_pbh((__m512)x[v + 1], (__m512)x[v]);
        _mm512_storeu_si512((char *)weights + v * QATTN_LANES * 2, nearest);
        /* In assembly, as the compiler would permute two registers, which takes twice as long. */
        __asm__("vpermw %2, %1, %0 %{%3%}%{z%}" : "=v"(x[v]) : "v"(low), "v"(nearest), "Yk"((__mmask32)0xaaaaaaaa));
        __asm__("vpermw %2, %1, %0 %{%3%}%{z%}"
                : "=v"(x[v + 1])
                : "v"(high), "v"(nearest), "Yk"((__mmask32)0xaaaaaaaa));
    }
#else
    for (int v = 0; v < 4; v++) {
        x[v] = bf16x16_weight(x[v]);
        f32x16_store_storage((char *)weights + v * QATTN_LANES * 2, x[v], QATTN_BFLOAT16);
    }
#endif
}

#endif
