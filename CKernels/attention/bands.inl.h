/* SPDX-License-Identifier: Apache-2.0 */
/* bands.inl.h - forward over bfloat16 pairs by tile instructions: five tiles of six rows, a band, are multiplied at once,
 * as twice fifteen rows of the tile unit. The bits are those of pair_tiles.inl.h. */
#ifndef QATTN_BANDS_INL_H
#define QATTN_BANDS_INL_H

#include "attention/steps.inl.h"
#include "simd/tile_unit.h"

enum { BAND_ROWS = BAND_TILES * TILE_ROWS };
_Static_assert(BAND_ROWS == 2 * UNIT_ROWS && SEGMENT_BYTES == 16 * UNIT_ROW_BYTES, "the geometry of tiles");

/* c = c + sums of products of UNIT_ROWS or twice as many rows, and of all vectors of columns, as in pair_tiles.inl.h. */
typedef struct band_product {
    const char *a; /* bfloat16 */
    size_t a_bytes, segments;
    bool tall; /* more than UNIT_ROWS rows */
    const char *b;
    size_t b_bytes, vectors;
    float *c;
    size_t c_step;
    bool adds;
} band_product;

/* One or two vectors of columns, from vector v on. */
QATTN_INLINE void band_columns(const band_product *x, size_t v) {
    const bool wide = v + 1 < x->vectors;
    const size_t c_bytes = x->c_step * sizeof(float);
    char *const c = (char *)(x->c + v * QATTN_LANES), *const below = c + UNIT_ROWS * c_bytes;
    if (x->adds) {
        unit_load(0, c, c_bytes);
        if (wide) unit_load(1, c + UNIT_ROW_BYTES, c_bytes);
        if (x->tall) unit_load(2, below, c_bytes);
        if (x->tall && wide) unit_load(3, below + UNIT_ROW_BYTES, c_bytes);
    } else {
        unit_zero(0);
        unit_zero(1);
        unit_zero(2);
        unit_zero(3);
    }
    for (size_t s = 0; s < x->segments; s++) {
        const char *const a = x->a + s * UNIT_ROW_BYTES, *const b = x->b + v * x->b_bytes + s * SEGMENT_BYTES;
        unit_load(4, a, x->a_bytes);
        unit_load(6, b, UNIT_ROW_BYTES);
        unit_multiply(0, 4, 6);
        if (x->tall) {
            unit_load(5, a + UNIT_ROWS * x->a_bytes, x->a_bytes);
            unit_multiply(2, 5, 6);
        }
        if (!wide) continue;
        unit_load(7, b + x->b_bytes, UNIT_ROW_BYTES);
        unit_multiply(1, 4, 7);
        if (x->tall) unit_multiply(3, 5, 7);
    }
    unit_store(0, c, c_bytes);
    if (wide) unit_store(1, c + UNIT_ROW_BYTES, c_bytes);
    if (x->tall) unit_store(2, below, c_bytes);
    if (x->tall && wide) unit_store(3, below + UNIT_ROW_BYTES, c_bytes);
}

QATTN_INLINE void band_products(const band_product *x) {
    for (size_t v = 0; v < x->vectors; v += 2) band_columns(x, v);
}

/* The rounded weights of a band, and before them its scores. Rows that fill up the second tile keep weights of 0. */
typedef struct band_weights {
    float scores[BAND_ROWS * QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
    uint16_t weights[BAND_ROWS * QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
} band_weights;

/* Queries as the tile unit takes them: in the first half of every row, in place. */
QATTN_INLINE void narrow_queries(const forward_workspace *ws) {
    for (size_t i = 0; i < ws->tiles * TILE_ROWS; i++) {
        float *const query = ws->queries + i * ws->head_lanes;
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES)
            f32x16_store_storage((char *)query + 2 * d, f32x16_load(query + d), QATTN_BFLOAT16_PAIRS);
    }
}

/* 2. of one tile of a band, from its sums of products to its weights. Values that are not finite are multiplied here. */
QATTN_INLINE void band_tile(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t i,
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
QATTN_INLINE void band_block(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t first,
                             size_t end, size_t block_first) {
    band_weights band;
    const size_t row = first * TILE_ROWS;
    const bool tall = (end - first) * TILE_ROWS > UNIT_ROWS;
    const band_product scores = {.a = (const char *)(ws->queries + row * ws->head_lanes),
                                 .a_bytes = ws->head_lanes * sizeof(float),
                                 .segments = ws->head_lanes / SEGMENT,
                                 .tall = tall,
                                 .b = task->block.keys,
                                 .b_bytes = ws->head_lanes / SEGMENT * SEGMENT_BYTES,
                                 .vectors = BLOCK_VECTORS,
                                 .c = band.scores,
                                 .c_step = QATTN_KEY_BLOCK};
    band_products(&scores);
    memset(band.weights, 0, sizeof band.weights);
    bool some = false;
    for (size_t tile = first; tile < end; tile++) {
        const size_t i = tile * TILE_ROWS, count = tile_height(ws, tile);
        if (!tile_sees(task, args, ws, tile, block_first)) continue;
        const size_t at = (tile - first) * TILE_ROWS * QATTN_KEY_BLOCK;
        band_tile(task, args, ws, i, count, block_first, band.scores + at, band.weights + at);
        some = true;
    }
    if (!some || *not_finite(task->block)) return;
    const band_product values = {.a = (const char *)band.weights,
                                 .a_bytes = QATTN_KEY_BLOCK * sizeof *band.weights,
                                 .segments = KEY_SEGMENTS,
                                 .tall = tall,
                                 .b = task->block.values,
                                 .b_bytes = VALUE_BYTES,
                                 .vectors = ws->value_lanes / QATTN_LANES,
                                 .c = ws->chunk.out + row * ws->value_lanes,
                                 .c_step = ws->value_lanes,
                                 .adds = true};
    band_products(&values);
}

/* One block against all bands that may see a key of it. */
static __attribute__((noinline)) void QATTN_FUNCTION(bands)(tile_task *task, const qattn_forward_args *args,
                                                            forward_workspace *ws, size_t block_first) {
    for (size_t first = 0; first < ws->tiles; first += BAND_TILES) {
        const size_t end = qattn_min(first + BAND_TILES, ws->tiles), last = qattn_min(end * TILE_ROWS, ws->rows) - 1;
        prefetch_lines(&ws->upcoming, (end - first) * ws->upcoming_share);
        const run_keys keys = keys_of_run(&args->problem, ws->places[first * TILE_ROWS], ws->places[last]);
        if (range_bits(keys.any, block_first)) band_block(task, args, ws, first, end, block_first);
    }
}

#endif
