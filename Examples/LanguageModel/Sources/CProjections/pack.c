/* SPDX-License-Identifier: Apache-2.0 */
/* pack.c - weights into panels and back, activations into bytes, SwiGLU. */
#include "panel.h"
#include <math.h>
#include <string.h>

#pragma STDC FP_CONTRACT OFF

size_t lm_block_bytes(lm_weight_type type) { return block_bytes(type); }

static size_t block_offset(lm_weight_type type, int columns, int row, int block) {
    return ((size_t)(row / LM_PANEL_ROWS) * (columns / LM_BLOCK_COLUMNS) + block) * block_bytes(type);
}

void lm_pack_row(lm_weight_type type, int columns, const uint8_t *file_row, int row, uint8_t *panels) {
    int lane = row % LM_PANEL_ROWS;
    for (int b = 0; b < columns / LM_BLOCK_COLUMNS; b++) {
        uint8_t *block = panels + block_offset(type, columns, row, b);
        if (type == LM_Q4_1) {
            /* In the file byte i holds columns i (low) and i + 16 (high). */
            const uint8_t *file = file_row + 20 * b, *q = file + 4;
            for (int j = 0; j < 4; j++) {
                for (int i = 0; i < 4; i++) {
                    int low = 8 * j + i, high = low + 4;
                    uint8_t a = low < 16 ? q[low] & 15 : q[low - 16] >> 4;
                    uint8_t c = high < 16 ? q[high] & 15 : q[high - 16] >> 4;
                    block[vector_bytes * j + 4 * lane + i] = (uint8_t)(a | c << 4);
                }
            }
            memcpy(block + q4_1_weights + 2 * lane, file, 2);
            memcpy(block + q4_1_weights + halves_bytes + 2 * lane, file + 2, 2);
        } else {
            const uint8_t *file = file_row + 34 * b, *q = file + 2;
            for (int j = 0; j < 8; j++) {
                for (int i = 0; i < 4; i++) {
                    block[vector_bytes * j + 4 * lane + i] = q[4 * j + i] ^ 0x80;
                }
            }
            memcpy(block + q8_0_weights + 2 * lane, file, 2);
        }
    }
}

void lm_unpack_row(const lm_matrix *matrix, int row, float *out) {
    int lane = row % LM_PANEL_ROWS;
    for (int b = 0; b < matrix->columns / LM_BLOCK_COLUMNS; b++, out += LM_BLOCK_COLUMNS) {
        const uint8_t *block = matrix->panels + block_offset(matrix->type, matrix->columns, row, b);
        if (matrix->type == LM_Q4_1) {
            float d = lm_half(block + q4_1_weights + 2 * lane);
            float m = lm_half(block + q4_1_weights + halves_bytes + 2 * lane);
            for (int j = 0; j < 4; j++) {
                for (int i = 0; i < 4; i++) {
                    uint8_t q = block[vector_bytes * j + 4 * lane + i];
                    out[8 * j + i] = d * (float)(q & 15) + m;
                    out[8 * j + 4 + i] = d * (float)(q >> 4) + m;
                }
            }
        } else {
            float d = lm_half(block + q8_0_weights + 2 * lane);
            for (int j = 0; j < 8; j++) {
                for (int i = 0; i < 4; i++) {
                    out[4 * j + i] = d * (float)((int)block[vector_bytes * j + 4 * lane + i] - 128);
                }
            }
        }
    }
}

static inline __attribute__((always_inline)) void quantise_block(const float *x, lm_activations *out) {
    int32_t largest = 0;
    for (int i = 0; i < LM_BLOCK_COLUMNS; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    if (largest >= 0x7f800000 || magnitude < 0x1p-100f) {
        memset(out, 0, sizeof *out);
        out->scale = largest >= 0x7f800000 ? NAN : 0;
        return;
    }
    /* 127 * 65536 + 127 * 256 + 127: the largest number of three signed bytes. */
    const int limit = 8355711;
    float inverse = (float)limit / magnitude;
    /* Loops of one kind each, which compilers turn into vectors. */
    int32_t upper[LM_BLOCK_COLUMNS], lower[LM_BLOCK_COLUMNS], upper_sum = 0, lower_sum = 0;
    for (int i = 0; i < LM_BLOCK_COLUMNS; i++) {
        float scaled = x[i] * inverse;
        int32_t integer = (int32_t)(scaled + (scaled < 0 ? -0.5f : 0.5f));
        integer = integer > limit ? limit : integer < -limit ? -limit : integer;
        lower[i] = (int8_t)integer;
        upper[i] = (integer - lower[i]) >> 8;
        upper_sum += upper[i];
        lower_sum += lower[i];
    }
    for (int i = 0; i < LM_BLOCK_COLUMNS; i++) {
        int32_t middle = (int8_t)upper[i];
        out->low[i] = (int8_t)lower[i];
        out->middle[i] = (int8_t)middle;
        out->high[i] = (int8_t)((upper[i] - middle) >> 8);
    }
    for (int i = 0; i < LM_BLOCK_COLUMNS; i++) {
        /* lm_word is its own inverse. */
        out->upper[i] = (int16_t)upper[lm_word(i)];
        out->lower[i] = (int16_t)lower[lm_word(i)];
    }
    out->upper_sum = upper_sum;
    out->lower_sum = lower_sum;
    out->scale = magnitude / (float)limit;
    /* Below 2^28. */
    out->total = (float)(256 * upper_sum + lower_sum);
}

LM_CLONES void lm_quantise(const float *rows, int tokens, int columns, lm_activations *out) {
    size_t blocks = (size_t)tokens * (columns / LM_BLOCK_COLUMNS);
    for (size_t i = 0; i < blocks; i++) {
        quantise_block(rows + LM_BLOCK_COLUMNS * i, out + i);
    }
}

/* e^x for x in -87..88, to about 2 units in the last place: 2^n p(r), r = x - n ln 2. */
static inline __attribute__((always_inline)) float exponential(float x) {
    const float shift = 0x1.8p23f;
    float n = (x * 0x1.715476p0f + shift) - shift;
    float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    float p = 0x1.6c16c2p-10f;
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r + 1;
    p = p * r + 1;
    int32_t bits;
    memcpy(&bits, &p, sizeof bits);
    bits += (int32_t)n << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
}

LM_CLONES void lm_swiglu(const float *gate, const float *up, float *out, int count) {
    /* Where out is gate, the check for overlaps would choose the loop without vectors. */
#pragma clang loop vectorize(assume_safety)
    for (int i = 0; i < count; i++) {
        /* Beyond, the quotient is nothing that counts, or 1 + e^-x is 1. A NaN passes. */
        float x = gate[i] < -87 ? -87 : gate[i];
        out[i] = x / (1 + exponential(x > 87 ? -87 : -x)) * up[i];
    }
}
