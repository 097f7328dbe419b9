/* SPDX-License-Identifier: Apache-2.0 */
/* panel.h - where things lie in a block of a panel, and float16 as a float, where the processor has no instruction for it. */
#ifndef LM_PANEL_H
#define LM_PANEL_H

#include "CProjections.h"
#include <string.h>

/* Compiled once for wider vectors, too, and chosen when the program starts. Bits stay: nothing is contracted. */
#if defined(__x86_64__) && defined(__linux__)
#define LM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LM_CLONES
#endif

enum {
    /* Four columns of 16 rows, of a byte each. */
    vector_bytes = 4 * LM_PANEL_ROWS,
    groups = LM_BLOCK_COLUMNS / 4,
    halves_bytes = 2 * LM_PANEL_ROWS,
    q4_1_weights = groups / 2 * vector_bytes,
    q8_0_weights = groups * vector_bytes,
    q4_1_bytes = q4_1_weights + 2 * halves_bytes,
    q8_0_bytes = q8_0_weights + halves_bytes
};

/* The place of a column among the words of activations. */
static inline int lm_word(int column) { return (column & ~3) | (column & 1) << 1 | (column >> 1 & 1); }

static inline size_t block_bytes(lm_weight_type type) { return type == LM_Q4_1 ? q4_1_bytes : q8_0_bytes; }

/* Where d begins; m, if any, lies behind it. */
static inline size_t scales_offset(lm_weight_type type) { return type == LM_Q4_1 ? q4_1_weights : q8_0_weights; }

static inline float lm_half(const uint8_t *bytes) {
    uint32_t half = bytes[0] | (uint32_t)bytes[1] << 8, magnitude = half & 0x7fff, bits;
    if (magnitude < 0x400) {
        float value = (float)magnitude * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
    } else {
        bits = (magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23);
    }
    bits |= (half & 0x8000) << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

#endif
