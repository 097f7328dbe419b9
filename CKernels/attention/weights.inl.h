/* SPDX-License-Identifier: Apache-2.0 */
/* weights.inl.h - from the finished scores t of a tile to weights, by the normalisers beside softmax.
 *
 *                    units    p[j]                                          l
 *     sigmoid        base 2   1 / (1 + 2^-(t[j] + c log2 e))                 -
 *     softpick       base 2   max(d[j], 0), d[j] = 2^(t[j] - m) - 2^-m       sum |d|, rescaled with m >= 0
 *     relu squared   1        max(t[j], 0)^2                                 sum p
 *     clipped        base 2   clip((zeta - c) 2^(t[j] - m) f + c, 0, 1)      -; m and f are those of the first pass
 *
 * All but softpick leave the rows' sums as they are from block to block: rescale = 1, m = 0. A score of -inf weighs 0;
 * NaN stays NaN, which is why no maximum is taken where a comparison will do. */
#ifndef QATTN_WEIGHTS_INL_H
#define QATTN_WEIGHTS_INL_H

#include "attention/softmax.inl.h"

/* x, or 0 where x is negative. */
QATTN_INLINE f32x16 not_negative(f32x16 x) { return x < 0 ? f32x16_splat(0) : x; }

QATTN_INLINE f32x16 sigmoid_weight(f32x16 t, f32x16 offset) {
    const f32x16 x = t + offset;
    const f32x16 p = 1.0f / (1.0f + f32x16_exp2(-x));
    return x < -125.0f ? f32x16_splat(0) : p;
}

QATTN_INLINE f32x16 relu_squared_weight(f32x16 t) {
    const f32x16 x = not_negative(t);
    return x * x;
}

/* A row's values for the second pass of clipped softmax. */
typedef struct clipped_row {
    float maximum, factor, gamma, zeta;
} clipped_row;

QATTN_INLINE f32x16 clipped_weight(f32x16 t, clipped_row row) {
    const f32x16 p = f32x16_exp2(t - row.maximum) * row.factor;
    const f32x16 stretched = not_negative(f32x16_fma(f32x16_splat(row.zeta - row.gamma), p, f32x16_splat(row.gamma)));
    return stretched > 1.0f ? f32x16_splat(1) : stretched;
}

/* 2^(t - m) - 2^-m. Near 0 the difference of powers would have few bits left. */
QATTN_INLINE f32x16 softpick_difference(f32x16 t, f32x16 maximum) {
    const f32x16 base = f32x16_exp2(-maximum);
    const f32x16 far = f32x16_exp2(t - maximum) - base, near = base * f32x16_exp2m1(t);
    return f32x16_abs(t) <= 0.5f ? near : far;
}

/* The weights of a row replace its scores, rounded to factors of bfloat16 if asked for; l counts them. */
#define ROW_WEIGHTS(expression)                                                                                        \
    QATTN_UNROLL                                                                                                       \
    for (size_t v = 0; v < BLOCK_VECTORS; v++) {                                                                       \
        const f32x16 t = f32x16_load(weights + v * QATTN_LANES);                                                       \
        p[v] = expression;                                                                                             \
        if (rounds) p[v] = bf16x16_factor(p[v]);                                                                       \
        f32x16_store(weights + v * QATTN_LANES, p[v]);                                                                 \
    }

QATTN_INLINE void sigmoid_weights(float *weights, float constant, bool rounds) {
    f32x16 p[BLOCK_VECTORS];
    const f32x16 offset = f32x16_splat(constant * QATTN_LOG2E_F);
    ROW_WEIGHTS(sigmoid_weight(t, offset))
}

QATTN_INLINE void relu_squared_weights(float *weights, float *sum, bool rounds) {
    f32x16 p[BLOCK_VECTORS];
    ROW_WEIGHTS(relu_squared_weight(t))
    add_to_sum(sum, 1, p, BLOCK_VECTORS);
}

QATTN_INLINE void clipped_weights(float *weights, clipped_row row, bool rounds) {
    f32x16 p[BLOCK_VECTORS];
    ROW_WEIGHTS(clipped_weight(t, row))
}

QATTN_INLINE void softpick_weights(float *weights, float *sum, uint64_t visible, float maximum, float rescale,
                                   bool rounds) {
    f32x16 p[BLOCK_VECTORS];
    QATTN_UNROLL
    for (size_t v = 0; v < BLOCK_VECTORS; v++) {
        const uint32_t bits = (uint32_t)(visible >> v * QATTN_LANES) & 0xffff;
        const f32x16 t = f32x16_load(weights + v * QATTN_LANES);
        f32x16 d = f32x16_select(bits, softpick_difference(t, f32x16_splat(maximum)), f32x16_splat(0));
        if (rounds) d = bf16x16_factor(d);
        p[v] = f32x16_abs(d);
        f32x16_store(weights + v * QATTN_LANES, not_negative(d));
    }
    add_to_sum(sum, rescale, p, BLOCK_VECTORS);
}
#undef ROW_WEIGHTS

/* The factor of a row's output, from its l and its constant c. A row without a sum puts out 0. */
QATTN_INLINE float weights_factor(qattn_normaliser normaliser, float sum, float constant) {
    float divisor = 1;
    if (normaliser == QATTN_SOFTPICK || normaliser == QATTN_NORMALISED_RELU_SQUARED) divisor = sum + constant;
    if (normaliser == QATTN_RELU_SQUARED) divisor = constant;
    return divisor == 0 ? 0 : 1 / divisor;
}

#endif
