/* SPDX-License-Identifier: Apache-2.0 */
/* project_v3.c - the product of a panel with a few rows of activations, with AVX2. */
#include "sets.h"

#pragma STDC FP_CONTRACT OFF

#if defined(__x86_64__)
#include <immintrin.h>

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

static inline __attribute__((always_inline)) __m256 halves_v3(const uint8_t *bytes) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)bytes));
}

static inline __attribute__((always_inline)) __m256 integer_v3(__m256i upper, __m256i lower) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(upper), _mm256_set1_ps(256), _mm256_cvtepi32_ps(lower));
}

/* The value, in a register and in this order: else the compiler makes trees of sums and constants in memory of it. */
static inline __attribute__((always_inline)) __m256i kept_v3(__m256i value) {
    __asm__("" : "+x"(value));
    return value;
}

static inline __attribute__((always_inline)) __m256 kept_floats_v3(__m256 value) {
    __asm__("" : "+x"(value));
    return value;
}

/* Four bytes, or two words, in each lane. */
static inline __attribute__((always_inline)) __m256i four_v3(const void *x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

/* Sums over a block of eight rows of 4-bit weights. Two products are at most 2 * 15 * 128, and eight of those fit 16 bits. */
static inline __attribute__((always_inline)) __m256i sum_v3_4(const __m256i *weights, const int8_t *x) {
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < groups; j++) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[j], four_v3(x + 4 * j)));
    }
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

static inline __attribute__((always_inline)) void tile_v3_4(const uint8_t *panel, int blocks, const lm_activations *x,
                                                            int tokens, float *out, size_t out_stride) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256 sums[8][2];
    for (int t = 0; t < tokens; t++) {
        sums[t][0] = sums[t][1] = _mm256_setzero_ps();
    }
    for (int b = 0; b < blocks; b++, panel += q4_1_bytes) {
        for (int half = 0; half < 2; half++) {
            __m256i weights[groups];
            for (int j = 0; j < 4; j++) {
                __m256i two = _mm256_loadu_si256((const __m256i *)(panel + vector_bytes * j + vector_bytes / 2 * half));
                weights[2 * j] = _mm256_and_si256(two, nibble);
                weights[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(two, 4), nibble);
            }
            __m256 d = halves_v3(panel + q4_1_weights + halves_bytes / 2 * half);
            __m256 m = halves_v3(panel + q4_1_weights + halves_bytes + halves_bytes / 2 * half);
            for (int t = 0; t < tokens; t++) {
                const lm_activations *a = x + (size_t)t * blocks + b;
                __m256i upper =
                    _mm256_add_epi32(_mm256_slli_epi32(sum_v3_4(weights, a->high), 8), sum_v3_4(weights, a->middle));
                __m256 integer = integer_v3(upper, sum_v3_4(weights, a->low));
                __m256 value = _mm256_fmadd_ps(d, integer, _mm256_mul_ps(m, _mm256_set1_ps(a->total)));
                sums[t][half] = _mm256_fmadd_ps(_mm256_set1_ps(a->scale), value, sums[t][half]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm256_storeu_ps(out + t * out_stride, sums[t][0]);
        _mm256_storeu_ps(out + t * out_stride + 8, sums[t][1]);
    }
}

/* Of one token and a block of 16 rows, by halves: U and L of the definition. */
typedef struct {
    __m256i upper[2], lower[2];
} integers_v3;

/* A part of what adds half a block to its sums: the definition's floats from integers on, in four steps. */
static inline __attribute__((always_inline)) void add_v3_4(int step, const uint8_t *d, const lm_activations *a,
                                                           __m256i upper, __m256i lower, __m256 *value, __m256 *sum) {
    if (step == 0) {
        value[0] = kept_floats_v3(integer_v3(upper, lower));
    } else if (step == 1) {
        value[1] = kept_floats_v3(_mm256_mul_ps(halves_v3(d + halves_bytes), _mm256_set1_ps(a->total)));
    } else if (step == 2) {
        value[1] = kept_floats_v3(_mm256_fmadd_ps(halves_v3(d), value[0], value[1]));
    } else if (step == 3) {
        *sum = kept_floats_v3(_mm256_fmadd_ps(_mm256_set1_ps(a->scale), value[1], *sum));
    }
}

/* The integers of a block, in place of those of the block before, which is added meanwhile if there is one: a processor does not
 * look far enough ahead to have the latencies of the one behind the other's multiplications. */
static inline __attribute__((always_inline)) void step_v3_4(const uint8_t *panel, const lm_activations *a, int is_first,
                                                            __m256i nibble, integers_v3 *integers, __m256 *sums) {
    __m256i high[2], middle[2], low[2];
    __m256 values[2][2];
#pragma clang loop unroll(full)
    for (int j = 0; j < groups; j++) {
        const __m256i x0 = four_v3(a->high + 4 * j), x1 = four_v3(a->middle + 4 * j), x2 = four_v3(a->low + 4 * j);
#pragma clang loop unroll(full)
        for (int half = 0; half < 2; half++) {
            __m256i two =
                _mm256_loadu_si256((const __m256i *)(panel + vector_bytes * (j / 2) + vector_bytes / 2 * half));
            __m256i weights = _mm256_and_si256(j % 2 ? _mm256_srli_epi16(two, 4) : two, nibble);
            __m256i y0 = _mm256_maddubs_epi16(weights, x0), y1 = _mm256_maddubs_epi16(weights, x1);
            __m256i y2 = _mm256_maddubs_epi16(weights, x2);
            high[half] = kept_v3(j == 0 ? y0 : _mm256_add_epi16(high[half], y0));
            middle[half] = kept_v3(j == 0 ? y1 : _mm256_add_epi16(middle[half], y1));
            low[half] = kept_v3(j == 0 ? y2 : _mm256_add_epi16(low[half], y2));
            if (!is_first && j % 2 == half) {
                const uint8_t *d = panel - q4_1_bytes + q4_1_weights + halves_bytes / 2 * half;
                add_v3_4(j / 2, d, a - 1, integers->upper[half], integers->lower[half], values[half], sums + half);
            }
        }
    }
    const __m256i ones = _mm256_set1_epi16(1), bytes = _mm256_set1_epi16(256);
    for (int half = 0; half < 2; half++) {
        integers->upper[half] =
            _mm256_add_epi32(_mm256_madd_epi16(high[half], bytes), _mm256_madd_epi16(middle[half], ones));
        integers->lower[half] = _mm256_madd_epi16(low[half], ones);
    }
}

/* The same for one token: both halves use what is loaded of it. */
static inline __attribute__((always_inline)) void lone_v3_4(const uint8_t *panel, int blocks, const lm_activations *a,
                                                            float *out) {
    const __m256i nibble = kept_v3(_mm256_set1_epi8(15));
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, values[2];
    integers_v3 integers;
    step_v3_4(panel, a, 1, nibble, &integers, sums);
    for (int b = 1; b < blocks; b++) {
        panel += q4_1_bytes, a++;
        step_v3_4(panel, a, 0, nibble, &integers, sums);
    }
    for (int half = 0; half < 2; half++) {
        const uint8_t *d = panel + q4_1_weights + halves_bytes / 2 * half;
        for (int step = 0; step < 4; step++) {
            add_v3_4(step, d, a, integers.upper[half], integers.lower[half], values, sums + half);
        }
        _mm256_storeu_ps(out + 8 * half, sums[half]);
    }
}

/* Sums over a block of eight rows of 8-bit weights: their even columns as words, and their odd ones, with words of x in the
 * same order; less 128 times the sum of x, which the weights carry too much. */
static inline __attribute__((always_inline)) __m256i sum_v3_8(const __m256i (*weights)[2], const int16_t *x,
                                                              int x_sum) {
    __m256i sum = _mm256_set1_epi32(-128 * x_sum);
    for (int j = 0; j < groups; j++) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights[j][0], four_v3(x + 4 * j)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights[j][1], four_v3(x + 4 * j + 2)));
    }
    return sum;
}

static inline __attribute__((always_inline)) void add_v3_8(__m256 *sum, const uint8_t *d, const lm_activations *a,
                                                           __m256i upper, __m256i lower) {
    __m256 scale = _mm256_mul_ps(halves_v3(d), _mm256_set1_ps(a->scale));
    *sum = _mm256_fmadd_ps(scale, integer_v3(upper, lower), *sum);
}

static inline __attribute__((always_inline)) void tile_v3_8(const uint8_t *panel, int blocks, const lm_activations *x,
                                                            int tokens, float *out, size_t out_stride) {
    const __m256i even = _mm256_set1_epi16(255);
    __m256 sums[8][2];
    for (int t = 0; t < tokens; t++) {
        sums[t][0] = sums[t][1] = _mm256_setzero_ps();
    }
    for (int b = 0; b < blocks; b++, panel += q8_0_bytes) {
        for (int half = 0; half < 2; half++) {
            __m256i weights[groups][2];
            for (int j = 0; j < groups; j++) {
                __m256i two = _mm256_loadu_si256((const __m256i *)(panel + vector_bytes * j + vector_bytes / 2 * half));
                weights[j][0] = _mm256_and_si256(two, even);
                weights[j][1] = _mm256_srli_epi16(two, 8);
            }
            for (int t = 0; t < tokens; t++) {
                const lm_activations *a = x + (size_t)t * blocks + b;
                add_v3_8(&sums[t][half], panel + q8_0_weights + halves_bytes / 2 * half, a,
                         sum_v3_8(weights, a->upper, a->upper_sum), sum_v3_8(weights, a->lower, a->lower_sum));
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm256_storeu_ps(out + t * out_stride, sums[t][0]);
        _mm256_storeu_ps(out + t * out_stride + 8, sums[t][1]);
    }
}

/* The same for one token: both halves use what is loaded of it. */
static inline __attribute__((always_inline)) void lone_v3_8(const uint8_t *panel, int blocks, const lm_activations *a,
                                                            float *out) {
    const __m256i even = kept_v3(_mm256_set1_epi16(255));
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int b = 0; b < blocks; b++, panel += q8_0_bytes, a++) {
        __m256i upper[2], lower[2];
        upper[0] = upper[1] = _mm256_set1_epi32(-128 * a->upper_sum);
        lower[0] = lower[1] = _mm256_set1_epi32(-128 * a->lower_sum);
#pragma clang loop unroll(full)
        for (int j = 0; j < groups; j++) {
            const __m256i u0 = four_v3(a->upper + 4 * j), u1 = four_v3(a->upper + 4 * j + 2);
            const __m256i l0 = four_v3(a->lower + 4 * j), l1 = four_v3(a->lower + 4 * j + 2);
#pragma clang loop unroll(full)
            for (int half = 0; half < 2; half++) {
                __m256i two = _mm256_loadu_si256((const __m256i *)(panel + vector_bytes * j + vector_bytes / 2 * half));
                __m256i w0 = _mm256_and_si256(two, even), w1 = _mm256_srli_epi16(two, 8);
                upper[half] = kept_v3(_mm256_add_epi32(upper[half], _mm256_madd_epi16(w0, u0)));
                lower[half] = kept_v3(_mm256_add_epi32(lower[half], _mm256_madd_epi16(w0, l0)));
                upper[half] = kept_v3(_mm256_add_epi32(upper[half], _mm256_madd_epi16(w1, u1)));
                lower[half] = kept_v3(_mm256_add_epi32(lower[half], _mm256_madd_epi16(w1, l1)));
            }
        }
        for (int half = 0; half < 2; half++) {
            add_v3_8(&sums[half], panel + q8_0_weights + halves_bytes / 2 * half, a, upper[half], lower[half]);
        }
    }
    _mm256_storeu_ps(out, sums[0]);
    _mm256_storeu_ps(out + 8, sums[1]);
}

static inline __attribute__((always_inline)) void tile_v3(lm_weight_type type, const uint8_t *panel, int blocks,
                                                          const lm_activations *x, int tokens, float *out,
                                                          size_t out_stride) {
    if (type == LM_Q8_0 && tokens == 1) {
        lone_v3_8(panel, blocks, x, out);
    } else if (type == LM_Q8_0) {
        tile_v3_8(panel, blocks, x, tokens, out, out_stride);
    } else if (tokens == 1) {
        lone_v3_4(panel, blocks, x, out);
    } else {
        tile_v3_4(panel, blocks, x, tokens, out, out_stride);
    }
}

#define LM_TILE    tile_v3
#define LM_PROJECT lm_project_v3
#include "project.inl.h"
#undef LM_TILE
#undef LM_PROJECT

#pragma clang attribute pop
#endif
