/* SPDX-License-Identifier: Apache-2.0 */
/* pair_bands.inl.h - bands of rows over bfloat16 pairs by tile instructions. The bits are those of pair_tiles.inl.h. */
#ifndef QATTN_PAIR_BANDS_INL_H
#define QATTN_PAIR_BANDS_INL_H

#include "attention/steps.inl.h"
#include "tile/unit_products.inl.h"

_Static_assert(SEGMENT_BYTES == UNIT_TILE_BYTES, "segments of a block are tiles");

/* c = c + sums of products of the rows of a band, one half of it below the other, and of all vectors of columns. */
QATTN_INLINE void pair_unit_products(unit_product x) {
    x.a_segment = UNIT_ROW_BYTES;
    x.a_second = UNIT_ROWS * x.a_row;
    x.c_second = UNIT_ROWS * x.c_row;
    unit_products(&x, false);
}

/* The rounded weights of a band, and before them its scores. Rows that fill up the second tile keep weights of 0. */
typedef struct pair_weights {
    float scores[BAND_ROWS * QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
    uint16_t weights[BAND_ROWS * QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
} pair_weights;

/* Queries as the tile unit takes them: in the first half of every row, in place. */
QATTN_INLINE void narrow_queries(const forward_workspace *ws) {
    for (size_t i = 0; i < ws->tiles * TILE_ROWS; i++) {
        float *const query = ws->queries + i * ws->head_lanes;
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES)
            f32x16_store_storage((char *)query + 2 * d, f32x16_load(query + d), QATTN_BFLOAT16_PAIRS);
    }
}

/* 2. of one tile of a band, from its sums of products to its weights. Values that are not finite are multiplied here. */
QATTN_INLINE void pair_band_tile(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t i,
                                 size_t count, size_t block_first, const float *sums, uint16_t *weights) {
    for (size_t r = 0; r < TILE_ROWS; r++)
        scale_pair_scores(task->scratch->weights + r * QATTN_KEY_BLOCK, sums + r * QATTN_KEY_BLOCK,
                          task->query_steps[r]);
    finish_tile_scores(task, args, ws->places + i, count, block_first);
    tile_weights(task, args, ws, i, count);
    if (*not_finite(task->block)) {
        TILE_CALL(tile_values_QATTN_BFLOAT16_PAIRS, count, task);
        return;
    }
    for (size_t r = 0; r < TILE_ROWS; r++)
        rescale_pair_sums(task->out + r * ws->value_lanes, ws->value_lanes, task->scratch->rescale[row_lane(r)]);
    for (size_t j = 0; j < TILE_ROWS * QATTN_KEY_BLOCK; j += QATTN_LANES)
        f32x16_store_storage(weights + j, f32x16_load(task->scratch->weights + j), QATTN_BFLOAT16_PAIRS);
}

/* One block against the band of tiles [first, end). */
static __attribute__((noinline)) void QATTN_FUNCTION(pair_band)(tile_task *task, const qattn_forward_args *args,
                                                                const forward_workspace *ws, size_t first, size_t end,
                                                                size_t block_first) {
    pair_weights band;
    const size_t row = first * TILE_ROWS;
    const bool tall = (end - first) * TILE_ROWS > UNIT_ROWS;
    pair_unit_products((unit_product){.a = (const char *)(ws->queries + row * ws->head_lanes),
                                      .a_row = ws->head_lanes * sizeof(float),
                                      .segments = ws->head_lanes / SEGMENT,
                                      .second = tall,
                                      .b = task->block.keys,
                                      .b_vector = ws->head_lanes / SEGMENT * SEGMENT_BYTES,
                                      .vectors = BLOCK_VECTORS,
                                      .c = (char *)band.scores,
                                      .c_row = QATTN_KEY_BLOCK * sizeof(float)});
    memset(band.weights, 0, sizeof band.weights);
    bool some = false;
    for (size_t tile = first; tile < end; tile++) {
        const size_t i = tile * TILE_ROWS, count = tile_height(ws, tile);
        if (!tile_sees(task, args, ws, tile, block_first)) continue;
        const size_t at = (tile - first) * TILE_ROWS * QATTN_KEY_BLOCK;
        pair_band_tile(task, args, ws, i, count, block_first, band.scores + at, band.weights + at);
        some = true;
    }
    if (!some || *not_finite(task->block)) return;
    pair_unit_products((unit_product){.a = (const char *)band.weights,
                                      .a_row = QATTN_KEY_BLOCK * sizeof *band.weights,
                                      .segments = KEY_SEGMENTS,
                                      .second = tall,
                                      .b = task->block.values,
                                      .b_vector = VALUE_BYTES,
                                      .vectors = ws->value_lanes / QATTN_LANES,
                                      .c = (char *)(ws->chunk.out + row * ws->value_lanes),
                                      .c_row = ws->value_lanes * sizeof(float),
                                      .adds = true});
}

#endif
