/* SPDX-License-Identifier: Apache-2.0 */
/* project_v4.c - the product of a panel with a few rows of activations, with AVX-512 and VNNI. */
#include "sets.h"

#pragma STDC FP_CONTRACT OFF

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))),   \
                             apply_to = function)

static inline __attribute__((always_inline)) __m512 halves_v4(const uint8_t *bytes) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)bytes));
}

static inline __attribute__((always_inline)) __m512i sum_v4(__m512i sum, const __m512i *weights, const int8_t *x) {
    for (int j = 0; j < groups; j++) {
        int32_t four;
        __builtin_memcpy(&four, x + 4 * j, 4);
        sum = _mm512_dpbusd_epi32(sum, weights[j], _mm512_set1_epi32(four));
    }
    return sum;
}

/* How far ahead of its block a lone row asks for weights, in bytes, on Intel's processors, which follow no more than a page by
   themselves. On an Emerald Rapids 1 KB takes weights at 12 GB/s, as without asking, 2 KB at 25 and 4 or 8 KB at 26. A Zen 4 with
   AVX2 is 10 % slower when it asks. */
enum { ASKED_AHEAD = 4096 };

/* One panel with `tokens` rows, a constant after inlining. */
static inline __attribute__((always_inline)) void tile_v4(lm_weight_type type, const uint8_t *panel, int blocks,
                                                          const lm_activations *x, int tokens, float *out,
                                                          size_t out_stride) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const int asks = tokens == 1 && __builtin_cpu_is("intel");
    __m512 sums[8];
    for (int t = 0; t < tokens; t++) {
        sums[t] = _mm512_setzero_ps();
    }
    for (int b = 0; b < blocks; b++, panel += block_bytes(type)) {
        if (asks) {
            for (size_t i = 0; i < block_bytes(type); i += vector_bytes) {
                _mm_prefetch((const char *)panel + ASKED_AHEAD + i, _MM_HINT_T0);
            }
        }
        __m512i weights[groups];
        __m512 d, m = _mm512_setzero_ps();
        if (type == LM_Q4_1) {
            for (int j = 0; j < 4; j++) {
                __m512i two = _mm512_loadu_si512(panel + vector_bytes * j);
                weights[2 * j] = _mm512_and_si512(two, nibble);
                weights[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(two, 4), nibble);
            }
            d = halves_v4(panel + q4_1_weights);
            m = halves_v4(panel + q4_1_weights + halves_bytes);
        } else {
            for (int j = 0; j < groups; j++) {
                weights[j] = _mm512_loadu_si512(panel + vector_bytes * j);
            }
            d = halves_v4(panel + q8_0_weights);
        }
        for (int t = 0; t < tokens; t++) {
            const lm_activations *a = x + (size_t)t * blocks + b;
            const __m512i zero = _mm512_setzero_si512();
            /* Weights of 8 bits carry 128 too much. */
            const int excess = type == LM_Q4_1 ? 0 : -128;
            __m512i middle = sum_v4(_mm512_set1_epi32(excess * a->upper_sum), weights, a->middle);
            __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sum_v4(zero, weights, a->high), 8), middle);
            __m512i lower = sum_v4(_mm512_set1_epi32(excess * a->lower_sum), weights, a->low);
            __m512 integer = _mm512_fmadd_ps(_mm512_cvtepi32_ps(upper), _mm512_set1_ps(256), _mm512_cvtepi32_ps(lower));
            __m512 scale = _mm512_set1_ps(a->scale);
            if (type == LM_Q4_1) {
                __m512 value = _mm512_fmadd_ps(d, integer, _mm512_mul_ps(m, _mm512_set1_ps(a->total)));
                sums[t] = _mm512_fmadd_ps(scale, value, sums[t]);
            } else {
                sums[t] = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), integer, sums[t]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm512_storeu_ps(out + t * out_stride, sums[t]);
    }
}

#define LM_TILE    tile_v4
#define LM_PROJECT lm_project_v4
#include "project.inl.h"
#undef LM_TILE
#undef LM_PROJECT

#pragma clang attribute pop
#endif
