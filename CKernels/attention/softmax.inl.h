/* SPDX-License-Identifier: Apache-2.0 */
/* softmax.inl.h - the online softmax of a tile of rows, in base 2, and the state it keeps.
 *
 *     m' = max(m, t[j]),  a = 2^(m - m'),  p[j] = 2^(t[j] - m'),  l[r] = l[r] a + p[r] + p[r+16] + p[r+32] + p[r+48]
 *
 * for the block's keys; o = o a + sum p[j] v[j] follows in tiles.inl.h. The sink joins once, at the very end.
 *
 * While m is -inf nothing has been summed, and the subtraction uses 0 instead: -inf - -inf would be NaN. */
#ifndef QATTN_SOFTMAX_INL_H
#define QATTN_SOFTMAX_INL_H

#include "attention/mask.inl.h"
#include "attention/wide_scores.inl.h"
#include "simd/bf16_weights.h"

/* The lane of row r of a tile in vectors that hold a number for each row. */
QATTN_INLINE size_t tile_lane(size_t tile_rows, size_t r) { return tile_rows == UNIT_ROWS ? r : row_lane(r); }

/* Where the number of row i stands among such vectors, one for each tile. */
QATTN_INLINE size_t number_of_row(size_t tile_rows, size_t i) {
    if (tile_rows == UNIT_ROWS) return i;
    return i / TILE_ROWS * QATTN_LANES + row_lane(i % TILE_ROWS);
}

/* The rows' running state. */
typedef struct row_state {
    size_t tile_rows;
    float *maximum; /* m    [tiles][16], after number_of_row */
    float *sum;     /* l    [rows][16] */
    float *out;     /* o    [rows][value_lanes] */
    bool *started;  /*      [rows] whether the row has seen a key */
} row_state;

/* x, or 0 where x is -inf: what may be subtracted. */
QATTN_INLINE f32x16 finite_reference(f32x16 x) { return x == -__builtin_inff() ? f32x16_splat(0) : x; }

/* From the largest scores of a tile's rows of a block: the rows' new m, rescale = a, and what is subtracted from the
 * scores, which is returned, all after number_of_row. */
QATTN_INLINE f32x16 tile_maximum(f32x16 largest, float *maximum, float *rescale) {
    const f32x16 old_max = f32x16_load(maximum);
    const f32x16 new_max = f32x16_max(largest, old_max);
    const f32x16 reference = finite_reference(new_max);
    f32x16_store(maximum, new_max);
    f32x16_store(rescale, f32x16_exp2(old_max - reference));
    return reference;
}

/* l = l a + the weights of `count` vectors of a block. Vectors beyond count are +0 and leave the sum as it is. */
QATTN_INLINE void add_to_sum(float *sum, float rescale, const f32x16 p[BLOCK_VECTORS], size_t count) {
    f32x16 block_sum = count > 1 ? p[0] + p[1] : p[0];
    if (count > 2) block_sum += count > 3 ? p[2] + p[3] : p[2];
    f32x16 *const row_sum = (f32x16 *)sum;
    *row_sum = f32x16_fma(*row_sum, f32x16_splat(rescale), block_sum);
}

/* From `count` vectors of a row's scores, in memory: p, rounded to factors of bfloat16 if asked for, in their place, and
 * the new l. */
QATTN_INLINE void row_softmax(float *scores, size_t count, float reference, float rescale, bool rounds, float *sum) {
    f32x16 p[BLOCK_VECTORS];
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        const f32x16 x = f32x16_load(scores + v * QATTN_LANES) - f32x16_splat(reference);
        p[v] = rounds ? bf16x16_weight(x) : f32x16_exp2(x);
        f32x16_store(scores + v * QATTN_LANES, p[v]);
    }
    add_to_sum(sum, rescale, p, count);
}

/* One row's sums over some of its keys. */
typedef struct row_sums {
    float *maximum, *sum, *out; /* m, l [16], o [value_lanes] */
} row_sums;

QATTN_INLINE row_sums row_of(row_state state, size_t i, size_t value_lanes) {
    return (row_sums){.maximum = state.maximum + number_of_row(state.tile_rows, i),
                      .sum = state.sum + i * QATTN_LANES,
                      .out = state.out + i * value_lanes};
}

/* to = from. */
QATTN_INLINE void copy_row(row_sums to, row_sums from, size_t value_lanes) {
    *to.maximum = *from.maximum;
    memcpy(to.sum, from.sum, QATTN_LANES * sizeof(float));
    memcpy(to.out, from.out, value_lanes * sizeof(float));
}

/* row = row merged with chunk, whose keys are right of the row's; the first chunk with a key is taken as it is. */
QATTN_INLINE void merge_row(row_sums row, bool *started, row_sums chunk, size_t value_lanes) {
    if (!*started) {
        copy_row(row, chunk, value_lanes);
        *started = true;
        return;
    }
    const f32x16 new_max = f32x16_max(f32x16_splat(*chunk.maximum), f32x16_splat(*row.maximum));
    const f32x16 reference = finite_reference(new_max);
    const f32x16 a = f32x16_exp2(f32x16_splat(*row.maximum) - reference);
    const f32x16 b = f32x16_exp2(f32x16_splat(*chunk.maximum) - reference);
    f32x16_store(row.sum, f32x16_fma(f32x16_load(chunk.sum), b, f32x16_load(row.sum) * a));
    for (size_t c = 0; c < value_lanes; c += QATTN_LANES)
        f32x16_store(row.out + c, f32x16_fma(f32x16_load(chunk.out + c), b, f32x16_load(row.out + c) * a));
    *row.maximum = new_max[0];
}

/* What the sums of a tile's rows come to, after number_of_row: what their out is multiplied by, and the rest. */
typedef struct row_totals {
    float maximum[QATTN_LANES], factor[QATTN_LANES], lse[QATTN_LANES], sink_share[QATTN_LANES];
} row_totals;

/* The l of a tile's rows, from their 16 lanes each. */
QATTN_INLINE f32x16 tile_lane_sums(size_t tile_rows, const float *sum) {
    f32x16 lanes[UNIT_ROWS];
    QATTN_UNROLL
    for (size_t i = 0; i < TILE_ROWS; i++) lanes[i] = f32x16_load(sum + i * QATTN_LANES);
    if (tile_rows == TILE_ROWS) return rows_sum(lanes);
    QATTN_UNROLL
    for (size_t i = TILE_ROWS; i < UNIT_ROWS; i++) lanes[i] = f32x16_load(sum + i * QATTN_LANES);
    return sixteen_rows_sum(lanes);
}

/* The sinks join the sums of a tile: l* = l 2^(m - m*) + 2^(s2 - m*), m* = max(m, s2), s2 = sink log2(e). lse and
 * sink_share are computed if asked for. Wide: scores are biased, and m is W(m). */
QATTN_INLINE void tile_totals(const float *maximum, f32x16 sums, const float *sinks, row_totals *totals, bool wide,
                              bool lse, bool sink_share) {
    const f32x16 m = f32x16_load(maximum), zero = f32x16_splat(0);
    f32x16 s2 = f32x16_load(sinks) * QATTN_LOG2E_F;
    if (wide) s2 = wide_sink(s2);
    const f32x16 reference = finite_reference(f32x16_max(m, s2));
    const f32x16 e = f32x16_exp2(m - reference), es = f32x16_exp2(s2 - reference);
    const f32x16 l = f32x16_fma(sums, e, es);
    f32x16_store(totals->maximum, finite_reference(m));
    /* l is 0 only where there is no sink and no score above -inf. */
    f32x16_store(totals->factor, l == 0 ? zero : e / l);
    if (lse) {
        f32x16 x = (reference + f32x16_log2(l)) * QATTN_LN2_F;
        if (wide) x = wide_lse(reference, x);
        f32x16_store(totals->lse, l == 0 ? f32x16_splat(-__builtin_inff()) : x);
    }
    if (sink_share) f32x16_store(totals->sink_share, l == 0 ? zero : es / l);
}

#endif
