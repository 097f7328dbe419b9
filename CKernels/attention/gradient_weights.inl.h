/* SPDX-License-Identifier: Apache-2.0 */
/* gradient_weights.inl.h - from the scores t of rows and their dp = dout.v to the weights p, the gradients u of the
 * finished scores in natural units, and the gradients w of q.k: B2 of Documentation/Numerics.md.
 *
 *     w = u * scale,  or  (u (1 - y^2)) * scale,  y = tanh(t / cap)     with a softcap
 *
 * A pair that is not seen has +0 for all of them, whatever stands in its places. */
#ifndef QATTN_GRADIENT_WEIGHTS_INL_H
#define QATTN_GRADIENT_WEIGHTS_INL_H

#include "attention/scores.inl.h"
#include "attention/weights.inl.h"
#include "tile/factor_products.inl.h"
#include "tile/gradient_layout.h"

/* What the pairs of a row have in common. */
typedef struct gradient_row {
    row_place place;
    float reference, factor, delta;
    float constant; /* of the normaliser */
    float scale;    /* of q.k, the row's factor included */
} gradient_row;
_Static_assert(sizeof(gradient_row) <= GRADIENT_ROW_FLOATS * sizeof(float), "what gradient_layout.h counts");

/* And the rows of a call. */
typedef struct gradient_rule {
    score_finish finish;
    float inverse_cap;  /* 1 / (cap * unit) */
    float raise, lower; /* what is proportional to dout stands so much higher, and times so much as it is */
    bool plain;         /* softmax of scores that need nothing but a mask */
} gradient_rule;

QATTN_INLINE gradient_rule begin_gradients(const qattn_backward_args *args) {
    const qattn_problem *const problem = &args->problem;
    const double unit = takes_scores(problem) ? 1 : QATTN_LOG2E;
    return (gradient_rule){.finish = begin_finish(problem),
                           .inverse_cap = problem->softcap != 0 ? (float)(1 / (problem->softcap * unit)) : 0,
                           .raise = args->in_pairs ? QATTN_GRADIENT_RAISE : 1,
                           .lower = args->in_pairs ? QATTN_GRADIENT_LOWER : 1,
                           .plain = problem->normaliser == QATTN_SOFTMAX && scores_are_plain(problem)};
}

/* Of q.k of a row. */
QATTN_INLINE float gradient_scale(const qattn_problem *problem, row_place place) {
    const double factor =
        problem->row_factors ? problem->row_factors[row_offset(problem->row_factor_strides, place)] : 1;
    return (float)(problem->scale * factor);
}

/* Rows [0, count) from a place on, and factors[i], what their queries are multiplied by. */
QATTN_INLINE void begin_gradient_rows(const qattn_backward_args *args, row_place place, size_t count,
                                      gradient_row *rows, float *factors) {
    const qattn_problem *const problem = &args->problem;
    const ptrdiff_t at = (ptrdiff_t)place.head * args->sum_head_stride + (ptrdiff_t)place.query;
    const float *const references = args->references + at, *const weight_factors = args->factors + at;
    const bool has_constant = problem->normaliser != QATTN_SOFTMAX && problem->row_constants;
    const float first_factor = query_factor(problem, place), first_scale = gradient_scale(problem, place);
    for (size_t i = 0; i < count; i++, place.query++) {
        rows[i] = (gradient_row){
            .place = place, .reference = references[i], .factor = weight_factors[i], .scale = first_scale};
        factors[i] = first_factor;
        if (has_constant) rows[i].constant = problem->row_constants[row_offset(problem->row_constant_strides, place)];
        if (!problem->row_factors) continue;
        rows[i].scale = gradient_scale(problem, place);
        factors[i] = query_factor(problem, place);
    }
}

typedef struct pair_gradient {
    f32x16 p, u;
} pair_gradient;

QATTN_INLINE pair_gradient softmax_gradient(const gradient_row *row, f32x16 t, f32x16 dp) {
    const f32x16 p = f32x16_exp2(t - row->reference) * row->factor;
    return (pair_gradient){p, p * (dp - row->delta)};
}

QATTN_INLINE pair_gradient sigmoid_gradient(const gradient_row *row, f32x16 t, f32x16 dp) {
    const f32x16 p = sigmoid_weight(t, f32x16_splat(row->constant * QATTN_LOG2E_F));
    return (pair_gradient){p, dp * f32x16_fma(-p, p, p)};
}

QATTN_INLINE pair_gradient softpick_gradient(const gradient_row *row, f32x16 t, f32x16 dp) {
    const f32x16 d = softpick_difference(t, f32x16_splat(row->reference)), zero = f32x16_splat(0);
    const f32x16 e = f32x16_exp2(t - row->reference), negative = d < 0 ? f32x16_splat(row->delta) : zero;
    const f32x16 u = (e * row->factor) * (d > 0 ? dp - row->delta : negative);
    return (pair_gradient){not_negative(d) * row->factor, u};
}

QATTN_INLINE pair_gradient relu_squared_gradient(const gradient_row *row, f32x16 t, f32x16 dp, bool normalised) {
    const f32x16 x = not_negative(t), slope = (x + x) * row->factor;
    return (pair_gradient){(x * x) * row->factor, normalised ? slope * (dp - row->delta) : dp * slope};
}

/* s, and g = the gradient of its clipped self. */
typedef struct clipped_pair {
    f32x16 s, p, g;
} clipped_pair;

QATTN_INLINE clipped_pair clipped_pair_of(const gradient_row *row, float zeta, f32x16 t, f32x16 dp) {
    const float stretch = zeta - row->constant;
    const f32x16 s = f32x16_exp2(t - row->reference) * row->factor, zero = f32x16_splat(0);
    const f32x16 y = f32x16_fma(f32x16_splat(stretch), s, f32x16_splat(row->constant)), p = not_negative(y);
    const f32x16 inner = y < 1.0f ? dp * stretch : zero;
    return (clipped_pair){s, p > 1.0f ? f32x16_splat(1) : p, y > 0 ? inner : zero};
}

QATTN_INLINE pair_gradient gradient_of(const qattn_problem *problem, const gradient_row *row, f32x16 t, f32x16 dp) {
    switch (problem->normaliser) {
    case QATTN_SIGMOID: return sigmoid_gradient(row, t, dp);
    case QATTN_SOFTPICK: return softpick_gradient(row, t, dp);
    case QATTN_RELU_SQUARED: return relu_squared_gradient(row, t, dp, false);
    case QATTN_NORMALISED_RELU_SQUARED: return relu_squared_gradient(row, t, dp, true);
    case QATTN_CLIPPED_SOFTMAX: {
        const clipped_pair pair = clipped_pair_of(row, problem->zeta, t, dp);
        return (pair_gradient){pair.p, pair.s * (pair.g - row->delta)};
    }
    default: return softmax_gradient(row, t, dp);
    }
}

/* Which of the 16 pairs of vector v are seen. */
QATTN_INLINE f32x16 seen_lanes(uint64_t visible, size_t v, f32x16 x) {
    return f32x16_select((uint32_t)(visible >> v * QATTN_LANES) & 0xffff, x, f32x16_splat(0));
}

/* The finished scores of a row in t, and in slopes what a softcap does to their gradients, if there is one. */
QATTN_INLINE void finish_row(const gradient_rule *rule, const gradient_row *row, uint64_t visible, size_t block_first,
                             f32x16 t[BLOCK_VECTORS], f32x16 slopes[BLOCK_VECTORS]) {
    cap_scores(&rule->finish, BLOCK_VECTORS, t);
    if (rule->finish.problem->softcap != 0) {
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++) {
            const f32x16 y = t[v] * rule->inverse_cap;
            slopes[v] = f32x16_fma(-y, y, f32x16_splat(1));
        }
    }
    place_scores(&rule->finish, begin_row_finish(&rule->finish, row->place, visible, block_first), BLOCK_VECTORS, t);
}

QATTN_INLINE void load_block_row(f32x16 x[BLOCK_VECTORS], const float *row) {
    QATTN_UNROLL
    for (size_t v = 0; v < BLOCK_VECTORS; v++) x[v] = f32x16_load(row + v * QATTN_LANES);
}

/* One row against one block: p in the place of t, and w, or u for `finished`, in that of dp. */
QATTN_NOINLINE void QATTN_FUNCTION(row_gradients)(const gradient_rule *rule, const gradient_row *row, uint64_t visible,
                                                  size_t block_first, float *scores, float *products, bool finished) {
    const qattn_problem *const problem = rule->finish.problem;
    const bool caps = problem->softcap != 0 && !finished;
    const float scale = finished ? rule->lower : row->scale;
    f32x16 t[BLOCK_VECTORS], slopes[BLOCK_VECTORS];
    load_block_row(t, scores);
    finish_row(rule, row, visible, block_first, t, slopes);
    for (size_t v = 0; v < BLOCK_VECTORS; v++) {
        const pair_gradient pair = gradient_of(problem, row, t[v], f32x16_load(products + v * QATTN_LANES));
        const f32x16 w = (caps ? pair.u * slopes[v] : pair.u) * scale;
        f32x16_store(scores + v * QATTN_LANES, seen_lanes(visible, v, pair.p));
        f32x16_store(products + v * QATTN_LANES, seen_lanes(visible, v, w));
    }
}

/* The lanes of D of clipped softmax, D = sum of g s over the keys that the row sees. */
QATTN_NOINLINE void QATTN_FUNCTION(add_clipped_delta)(const gradient_rule *rule, const gradient_row *row,
                                                      uint64_t visible, size_t block_first, const float *scores,
                                                      const float *products, float *lanes) {
    f32x16 t[BLOCK_VECTORS], slopes[BLOCK_VECTORS], sum = f32x16_load(lanes);
    load_block_row(t, scores);
    finish_row(rule, row, visible, block_first, t, slopes);
    for (size_t v = 0; v < BLOCK_VECTORS; v++) {
        const clipped_pair pair =
            clipped_pair_of(row, rule->finish.problem->zeta, t[v], f32x16_load(products + v * QATTN_LANES));
        sum = f32x16_select((uint32_t)(visible >> v * QATTN_LANES) & 0xffff, f32x16_fma(pair.g, pair.s, sum), sum);
    }
    f32x16_store(lanes, sum);
}

/* The rows of a tile, of softmax alone: what is asked most. */
QATTN_NOINLINE void QATTN_FUNCTION(softmax_gradients)(const gradient_row *rows, const uint64_t *visible, float *scores,
                                                      float *products) {
    for (size_t i = 0; i < TILE_ROWS; i++, scores += QATTN_KEY_BLOCK, products += QATTN_KEY_BLOCK) {
        const f32x16 scale = f32x16_splat(rows[i].scale);
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++) {
            pair_gradient pair = softmax_gradient(rows + i, f32x16_load(scores + v * QATTN_LANES),
                                                  f32x16_load(products + v * QATTN_LANES));
            pair.u = pair.u * scale;
            if (visible) {
                pair.p = seen_lanes(visible[i], v, pair.p);
                pair.u = seen_lanes(visible[i], v, pair.u);
            }
            f32x16_store(scores + v * QATTN_LANES, pair.p);
            f32x16_store(products + v * QATTN_LANES, pair.u);
        }
    }
}

#endif
