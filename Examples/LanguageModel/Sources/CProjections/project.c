/* SPDX-License-Identifier: Apache-2.0 */
/* project.c - the product of a panel with a few rows of activations, for three instruction sets; the definition is the portable one. */
#include "panel.h"
#include <math.h>

#pragma STDC FP_CONTRACT OFF

/* MARK: - Portable */

static inline int weight(lm_weight_type type, const uint8_t *block, int row, int column) {
    int byte = 4 * row + column % 4;
    if (type == LM_Q8_0) {
        return block[vector_bytes * (column / 4) + byte] - 128;
    }
    return block[vector_bytes * (column / 8) + byte] >> 4 * (column / 4 % 2) & 15;
}

/* The sum of the integers of a block: below 2^28. */
static inline float total(const lm_activations *x) { return (float)(256 * x->upper_sum + x->lower_sum); }

static void project_portable(const lm_product *product, int first, int last) {
    const lm_matrix *matrix = product->matrix;
    const lm_weight_type type = matrix->type;
    const int blocks = matrix->columns / LM_BLOCK_COLUMNS;
    const size_t bytes = block_bytes(type);
    for (int panel = first; panel < last; panel++) {
        for (int t = 0; t < product->tokens; t++) {
            float *out = product->out + t * product->out_stride + (size_t)panel * LM_PANEL_ROWS;
            for (int row = 0; row < LM_PANEL_ROWS; row++) {
                float sum = 0;
                for (int b = 0; b < blocks; b++) {
                    const uint8_t *block = matrix->panels + ((size_t)panel * blocks + b) * bytes;
                    const uint8_t *scales = block + scales_offset(type) + 2 * row;
                    const lm_activations *x = product->activations + (size_t)t * blocks + b;
                    int32_t upper = 0, lower = 0;
                    for (int c = 0; c < LM_BLOCK_COLUMNS; c++) {
                        int w = weight(type, block, row, c);
                        upper += w * x->upper[c];
                        lower += w * x->lower[c];
                    }
                    float integer = fmaf((float)upper, 256, (float)lower);
                    float d = lm_half(scales);
                    if (type == LM_Q4_1) {
                        float m = lm_half(scales + halves_bytes);
                        sum = fmaf(x->scale, fmaf(d, integer, m * total(x)), sum);
                    } else {
                        sum = fmaf(d * x->scale, integer, sum);
                    }
                }
                out[row] = sum;
            }
        }
    }
}

#if defined(__x86_64__)
#include <immintrin.h>

/* MARK: - AVX-512 with VNNI */

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

/* One panel with `tokens` rows, a constant after inlining. */
static inline __attribute__((always_inline)) void tile_v4(lm_weight_type type, const uint8_t *panel, int blocks,
                                                          const lm_activations *x, int tokens, float *out,
                                                          size_t out_stride) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 sums[8];
    for (int t = 0; t < tokens; t++) {
        sums[t] = _mm512_setzero_ps();
    }
    for (int b = 0; b < blocks; b++, panel += block_bytes(type)) {
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
                __m512 value = _mm512_fmadd_ps(d, integer, _mm512_mul_ps(m, _mm512_set1_ps(total(a))));
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
#define LM_PROJECT project_v4
#include "project.inl.h"
#undef LM_TILE
#undef LM_PROJECT

#pragma clang attribute pop

/* MARK: - AVX2 */

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

static inline __attribute__((always_inline)) __m256 halves_v3(const uint8_t *bytes) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)bytes));
}

static inline __attribute__((always_inline)) __m256 integer_v3(__m256i upper, __m256i lower) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(upper), _mm256_set1_ps(256), _mm256_cvtepi32_ps(lower));
}

/* Sums over a block of eight rows of 4-bit weights. Two products are at most 2 * 15 * 128, and eight of those fit 16 bits. */
static inline __attribute__((always_inline)) __m256i sum_v3_4(const __m256i *weights, const int8_t *x) {
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < groups; j++) {
        int32_t four;
        __builtin_memcpy(&four, x + 4 * j, 4);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[j], _mm256_set1_epi32(four)));
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
                __m256 value = _mm256_fmadd_ps(d, integer, _mm256_mul_ps(m, _mm256_set1_ps(total(a))));
                sums[t][half] = _mm256_fmadd_ps(_mm256_set1_ps(a->scale), value, sums[t][half]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm256_storeu_ps(out + t * out_stride, sums[t][0]);
        _mm256_storeu_ps(out + t * out_stride + 8, sums[t][1]);
    }
}

/* The same for one token: both halves use what is loaded of it. */
static inline __attribute__((always_inline)) void lone_v3_4(const uint8_t *panel, int blocks, const lm_activations *a,
                                                            float *out) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int b = 0; b < blocks; b++, panel += q4_1_bytes, a++) {
        __m256i high[2], middle[2], low[2];
        for (int half = 0; half < 2; half++) {
            high[half] = middle[half] = low[half] = _mm256_setzero_si256();
        }
        for (int j = 0; j < groups; j++) {
            int32_t four[3];
            __builtin_memcpy(four, a->high + 4 * j, 4);
            __builtin_memcpy(four + 1, a->middle + 4 * j, 4);
            __builtin_memcpy(four + 2, a->low + 4 * j, 4);
            for (int half = 0; half < 2; half++) {
                __m256i two =
                    _mm256_loadu_si256((const __m256i *)(panel + vector_bytes * (j / 2) + vector_bytes / 2 * half));
                __m256i weights = _mm256_and_si256(j % 2 ? _mm256_srli_epi16(two, 4) : two, nibble);
                high[half] = _mm256_add_epi16(high[half], _mm256_maddubs_epi16(weights, _mm256_set1_epi32(four[0])));
                middle[half] =
                    _mm256_add_epi16(middle[half], _mm256_maddubs_epi16(weights, _mm256_set1_epi32(four[1])));
                low[half] = _mm256_add_epi16(low[half], _mm256_maddubs_epi16(weights, _mm256_set1_epi32(four[2])));
            }
        }
        const __m256 scale = _mm256_set1_ps(a->scale), sum = _mm256_set1_ps(total(a));
        for (int half = 0; half < 2; half++) {
            const uint8_t *d = panel + q4_1_weights + halves_bytes / 2 * half;
            __m256i upper = _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high[half], ones), 8),
                                             _mm256_madd_epi16(middle[half], ones));
            __m256 integer = integer_v3(upper, _mm256_madd_epi16(low[half], ones));
            __m256 value = _mm256_fmadd_ps(halves_v3(d), integer, _mm256_mul_ps(halves_v3(d + halves_bytes), sum));
            sums[half] = _mm256_fmadd_ps(scale, value, sums[half]);
        }
    }
    _mm256_storeu_ps(out, sums[0]);
    _mm256_storeu_ps(out + 8, sums[1]);
}

/* Sums over a block of sixteen rows of 8-bit weights, less 128 times the sum of x: sums[i] of rows 8 i and up. */
static inline __attribute__((always_inline)) void sum_v3_8(const uint8_t *weights, const int16_t *x, int x_sum,
                                                           __m256i *restrict out) {
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int j = 0; j < groups; j++) {
        int64_t four;
        __builtin_memcpy(&four, x + 4 * j, 8);
        for (int i = 0; i < 4; i++) {
            __m256i wide =
                _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(weights + vector_bytes * j + 16 * i)));
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(wide, _mm256_set1_epi64x(four)));
        }
    }
    for (int i = 0; i < 2; i++) {
        /* The horizontal sum works within halves: rows 0 1 4 5 2 3 6 7 are put in order. */
        __m256i rows = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[2 * i], sums[2 * i + 1]), 0xd8);
        out[i] = _mm256_sub_epi32(rows, _mm256_set1_epi32(128 * x_sum));
    }
}

static inline __attribute__((always_inline)) void tile_v3_8(const uint8_t *panel, int blocks, const lm_activations *x,
                                                            int tokens, float *out, size_t out_stride) {
    __m256 sums[8][2];
    for (int t = 0; t < tokens; t++) {
        sums[t][0] = sums[t][1] = _mm256_setzero_ps();
    }
    for (int b = 0; b < blocks; b++, panel += q8_0_bytes) {
        for (int t = 0; t < tokens; t++) {
            const lm_activations *a = x + (size_t)t * blocks + b;
            __m256i upper[2], lower[2];
            sum_v3_8(panel, a->upper, a->upper_sum, upper);
            sum_v3_8(panel, a->lower, a->lower_sum, lower);
            for (int half = 0; half < 2; half++) {
                __m256 d = halves_v3(panel + q8_0_weights + halves_bytes / 2 * half);
                __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(a->scale));
                sums[t][half] = _mm256_fmadd_ps(scale, integer_v3(upper[half], lower[half]), sums[t][half]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm256_storeu_ps(out + t * out_stride, sums[t][0]);
        _mm256_storeu_ps(out + t * out_stride + 8, sums[t][1]);
    }
}

static inline __attribute__((always_inline)) void tile_v3(lm_weight_type type, const uint8_t *panel, int blocks,
                                                          const lm_activations *x, int tokens, float *out,
                                                          size_t out_stride) {
    if (type == LM_Q8_0) {
        tile_v3_8(panel, blocks, x, tokens, out, out_stride);
    } else if (tokens == 1) {
        lone_v3_4(panel, blocks, x, out);
    } else {
        tile_v3_4(panel, blocks, x, tokens, out, out_stride);
    }
}

#define LM_TILE    tile_v3
#define LM_PROJECT project_v3
#include "project.inl.h"
#undef LM_TILE
#undef LM_PROJECT

#pragma clang attribute pop

static int has_v4(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

static int has_v3(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

/* MARK: - Choice */

typedef struct {
    const char *name;
    lm_project_function function;
} set;

static set set_at(int index) {
    set sets[3] = {{0}};
    int count = 0;
#if defined(__x86_64__)
    if (has_v4()) {
        sets[count++] = (set){"x86_64_v4_vnni", project_v4};
    }
    if (has_v3()) {
        sets[count++] = (set){"x86_64_v3", project_v3};
    }
#endif
    sets[count++] = (set){"portable", project_portable};
    return index >= 0 && index < count ? sets[index] : (set){0};
}

const char *lm_set_name(int index) { return set_at(index).name; }
lm_project_function lm_set_function(int index) { return set_at(index).function; }
