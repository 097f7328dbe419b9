/* SPDX-License-Identifier: Apache-2.0 */
/* scores.inl.h - what happens to the scores of a tile between the products and the weights, in this order:
 *
 *     softcap   t = cap tanh(t / cap)                the division is part of q' already: products arrive as t / cap
 *     ALiBi     t = t - slope |place of i + alibi_offset - j|
 *     bias      t = t + bias                         beyond 2^127 as wide_scores.inl.h has it
 *     mask      t = -inf where row i does not see key j
 *
 * Scores are in the units of the normaliser: base 2 (times log2 e) where it takes powers, else as they are. */
#ifndef QATTN_SCORES_INL_H
#define QATTN_SCORES_INL_H

#include "attention/mask.inl.h"
#include "attention/wide_scores.inl.h"
#include "simd/exp2.h"

/* Whether the normaliser takes the scores themselves instead of powers. */
QATTN_INLINE bool takes_scores(const qattn_problem *problem) {
    return problem->normaliser == QATTN_RELU_SQUARED || problem->normaliser == QATTN_NORMALISED_RELU_SQUARED;
}

/* The unit of scores: log2(e), since weights are powers of 2, or 1 for the squared normalisers. */
QATTN_INLINE float score_unit(const qattn_problem *problem) { return takes_scores(problem) ? 1 : QATTN_LOG2E_F; }

/* What a query is multiplied by. */
QATTN_INLINE float query_factor(const qattn_problem *problem, row_place row) {
    double factor = problem->scale;
    if (problem->row_factors) factor *= problem->row_factors[row_offset(problem->row_factor_strides, row)];
    if (problem->softcap != 0) return (float)(factor / problem->softcap);
    return (float)(takes_scores(problem) ? factor : factor * QATTN_LOG2E);
}

/* Whether scores are finished as soon as they are multiplied out, masks aside. */
QATTN_INLINE bool scores_are_plain(const qattn_problem *problem) {
    return problem->softcap == 0 && !problem->alibi_slopes && !problem->bias;
}

/* What finishing scores takes: of a call, and of a row against a block. */
typedef struct score_finish {
    const qattn_problem *problem;
    float unit;
    tanh_scale cap;
} score_finish;

typedef struct row_finish {
    row_place place;
    size_t block_first;
    uint64_t visible;
    float slope, distance; /* of key block_first */
} row_finish;

QATTN_INLINE score_finish begin_finish(const qattn_problem *problem) {
    const float unit = score_unit(problem);
    const double cap = problem->softcap * (takes_scores(problem) ? 1 : QATTN_LOG2E);
    return (score_finish){.problem = problem, .unit = unit, .cap = {(float)cap, (float)(cap * QATTN_TANH_FACTOR)}};
}

QATTN_INLINE row_finish begin_row_finish(const score_finish *finish, row_place place, uint64_t visible,
                                         size_t block_first) {
    row_finish row = {.place = place, .block_first = block_first, .visible = visible};
    if (finish->problem->alibi_slopes) {
        row.slope = finish->problem->alibi_slopes[place.head] * finish->unit;
        row.distance =
            (float)(query_place(finish->problem, place.query) + finish->problem->alibi_offset - (ptrdiff_t)block_first);
    }
    return row;
}

/* t - slope |distance - first - r| for lane r. */
QATTN_INLINE f32x16 alibi_lanes(f32x16 t, float slope, float distance, size_t first) {
    const f32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return f32x16_fma(f32x16_splat(-slope), f32x16_abs(distance - (lane + (float)first)), t);
}

/* The softcap, where there is one, of the first `count` vectors of a row's scores. */
QATTN_INLINE void cap_scores(const score_finish *finish, size_t count, f32x16 t[BLOCK_VECTORS]) {
    if (finish->problem->softcap == 0) return;
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        t[v] = f32x16_scaled_tanh(t[v], finish->cap);
        if (v + 1 < count) f32x16_in_order(&t[v], &t[v + 1]);
    }
}

/* What follows the softcap. */
QATTN_INLINE void place_scores(const score_finish *finish, row_finish row, size_t count, f32x16 t[BLOCK_VECTORS]) {
    const qattn_problem *const problem = finish->problem;
    if (problem->alibi_slopes) {
        QATTN_UNROLL
        for (size_t v = 0; v < count; v++) t[v] = alibi_lanes(t[v], row.slope, row.distance, v * QATTN_LANES);
    }
    if (problem->bias) {
        QATTN_UNROLL
        for (size_t v = 0; v < count; v++) {
            const uint32_t bits = (uint32_t)(row.visible >> v * QATTN_LANES) & 0xffff;
            if (bits)
                t[v] = biased_score(t[v], bias_lanes(problem, row.place, row.block_first + v * QATTN_LANES, bits),
                                    finish->unit);
        }
    }
    if (row.visible == ~UINT64_C(0)) return;
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        const uint32_t bits = (uint32_t)(row.visible >> v * QATTN_LANES) & 0xffff;
        t[v] = f32x16_select(bits, t[v], f32x16_splat(-__builtin_inff()));
    }
}

/* A row's scores against the first `count` vectors of a block. */
QATTN_INLINE void finish_scores(const score_finish *finish, row_finish row, size_t count, f32x16 t[BLOCK_VECTORS]) {
    cap_scores(finish, count, t);
    place_scores(finish, row, count, t);
}

#endif
