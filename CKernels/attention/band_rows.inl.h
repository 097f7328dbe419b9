/* SPDX-License-Identifier: Apache-2.0 */
/* band_rows.inl.h - forward by instructions that multiply pairs or fours: up to 32 rows, a band, meet a block at once. Here is
 * what they see of a block, and their softmax; the bits are those of tiles of six. */
#ifndef QATTN_BAND_ROWS_INL_H
#define QATTN_BAND_ROWS_INL_H

#include "attention/steps.inl.h"

/* The rows [first, first + count) of a call, and the keys that they see. */
typedef struct band {
    size_t first, count;
    run_keys keys;
} band;

/* What they have in memory between the steps for one block. */
typedef struct band_block {
    size_t first_key;
    block_parts parts;
    float (*scores)[QATTN_KEY_BLOCK]; /* of its rows, or weights */
    float references[BAND_ROWS], rescale[BAND_ROWS];
    uint64_t visible[BAND_ROWS]; /* after mask.inl.h */
    uint64_t all;                /* the keys that all see; 0 before the first block */
} band_block;

QATTN_INLINE band band_at(const qattn_forward_args *args, const forward_workspace *ws, size_t first) {
    const size_t count = qattn_min(ws->rows - first, BAND_ROWS);
    return (band){first, count, keys_of_run(&args->problem, ws->places[first], ws->places[first + count - 1])};
}

/* Whether its rows see some key of the block, and which. While the band sees blocks whole, one after another, x->visible stays
 * as it is. */
QATTN_INLINE bool band_sees(const qattn_forward_args *args, const forward_workspace *ws, const band *band,
                            band_block *x) {
    if (ws->ranges_only && range_covers(band->keys.all, x->first_key)) {
        if (x->all == ~UINT64_C(0)) return true;
        x->all = ~UINT64_C(0);
        memset(x->visible, 0xff, sizeof x->visible);
        for (size_t r = 0; r < band->count; r++) ws->chunk.started[band->first + r] = true;
        return true;
    }
    uint64_t any = 0;
    x->all = ~UINT64_C(0);
    for (size_t r = 0; r < band->count; r++) {
        const size_t i = band->first + r;
        x->visible[r] = visible_bits(&args->problem, ws->places[i], x->first_key);
        any |= x->visible[r];
        x->all &= x->visible[r];
        ws->chunk.started[i] |= x->visible[r] != 0;
    }
    return any != 0;
}

/* Between products and weights, of scores that are multiplied out. */
QATTN_INLINE void finish_band_scores(const qattn_forward_args *args, const forward_workspace *ws, const band *band,
                                     band_block *x) {
    finish_rows(args, ws->places + band->first, x->visible, x->all, band->count, x->first_key, x->scores[0]);
}

/* The first half of 2. of 16 rows from row `first` of the band on, by the normalisers with a running maximum: of scores times
 * `factors`, which are positive. */
QATTN_INLINE void unit_compared(const forward_workspace *ws, const band *band, size_t first, f32x16 factors,
                                band_block *x) {
    f32x16 largest[UNIT_ROWS];
    QATTN_UNROLL
    for (size_t r = 0; r < UNIT_ROWS; r++) {
        largest[r] = f32x16_splat(-__builtin_inff());
        QATTN_UNROLL
        for (size_t j = 0; j < QATTN_KEY_BLOCK; j += QATTN_LANES)
            largest[r] = f32x16_max(f32x16_load(x->scores[first + r] + j), largest[r]);
    }
    f32x16_store(x->references + first, tile_maximum(sixteen_rows_max(largest) * factors,
                                                     ws->chunk.maximum + band->first + first, x->rescale + first));
}

/* 2., of finished scores, in their place. */
QATTN_NOINLINE void QATTN_FUNCTION(band_weights)(const qattn_forward_args *args, const forward_workspace *ws,
                                                 const band *band, bool rounds, band_block *x) {
    const bool has_maximum = ws->normaliser == QATTN_SOFTMAX || ws->normaliser == QATTN_SOFTPICK;
    for (size_t r = 0; r < band->count; r++) {
        float *const row = x->scores[r], *const sum = ws->chunk.sum + (band->first + r) * QATTN_LANES;
        if (has_maximum && r % UNIT_ROWS == 0) unit_compared(ws, band, r, f32x16_splat(1), x);
        if (ws->normaliser == QATTN_SOFTMAX)
            row_softmax(row, BLOCK_VECTORS, x->references[r], x->rescale[r], rounds, sum);
        else if (ws->normaliser == QATTN_SOFTPICK)
            softpick_weights(row, sum, x->visible[r], x->references[r], x->rescale[r], rounds);
        else {
            x->rescale[r] = 1;
            unscaled_row_weights(args, ws, band->first + r, row, rounds);
        }
    }
}

#endif
