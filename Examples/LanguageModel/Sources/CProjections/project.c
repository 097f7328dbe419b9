/* SPDX-License-Identifier: Apache-2.0 */
/* project.c - the product of a panel with a few rows of activations by its definition, and the choice of an instruction set. */
#include "sets.h"
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
                        upper += w * x->upper[lm_word(c)];
                        lower += w * x->lower[lm_word(c)];
                    }
                    float integer = fmaf((float)upper, 256, (float)lower);
                    float d = lm_half(scales);
                    if (type == LM_Q4_1) {
                        float m = lm_half(scales + halves_bytes);
                        sum = fmaf(x->scale, fmaf(d, integer, m * x->total), sum);
                    } else {
                        sum = fmaf(d * x->scale, integer, sum);
                    }
                }
                out[row] = sum;
            }
        }
    }
}

/* MARK: - Choice */

#if defined(__x86_64__)
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

typedef struct {
    const char *name;
    lm_project_function function;
} set;

static set set_at(int index) {
    set sets[3] = {{0}};
    int count = 0;
#if defined(__x86_64__)
    if (has_v4()) {
        sets[count++] = (set){"x86_64_v4_vnni", lm_project_v4};
    }
    if (has_v3()) {
        sets[count++] = (set){"x86_64_v3", lm_project_v3};
    }
#endif
    sets[count++] = (set){"portable", project_portable};
    return index >= 0 && index < count ? sets[index] : (set){0};
}

const char *lm_set_name(int index) { return set_at(index).name; }
lm_project_function lm_set_function(int index) { return set_at(index).function; }
