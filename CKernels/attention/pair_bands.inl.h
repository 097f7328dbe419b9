/* SPDX-License-Identifier: Apache-2.0 */
/* pair_bands.inl.h - bands of rows over bfloat16 pairs by tile instructions. The bits are those of pair_tiles.inl.h. */
#ifndef QATTN_PAIR_BANDS_INL_H
#define QATTN_PAIR_BANDS_INL_H

#include "attention/band_rows.inl.h"
#include "attention/steps.inl.h"
#include "simd/bf16_weights.h"
#include "tile/unit_products.inl.h"

_Static_assert(SEGMENT_BYTES == UNIT_TILE_BYTES, "segments of a block are tiles");

/* The scores of a band, then its rounded weights, each row's in the place of its scores. Rows that fill up the second
 * tile have any. */
typedef struct score_rows {
    float rows[BAND_ROWS][QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
} score_rows;

/* 1. of one tile of a band, behind its products, and the first half of 2., where nothing but a mask finishes scores. */
QATTN_INLINE void pair_scored(tile_task *task, float (*scores)[QATTN_KEY_BLOCK], bool masked) {
    f32x16 row_max[TILE_ROWS];
    QATTN_UNROLL
    for (size_t r = 0; r < TILE_ROWS; r++) {
        const f32x16 factor = f32x16_splat(task->query_steps[r]);
        row_max[r] = f32x16_splat(-__builtin_inff());
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++) {
            float *const score = scores[r] + v * QATTN_LANES;
            f32x16 t = f32x16_load(score) * factor;
            if (masked)
                t = f32x16_select((uint32_t)(task->scratch->visible[r] >> v * QATTN_LANES) & 0xffff, t,
                                  f32x16_splat(-__builtin_inff()));
            row_max[r] = f32x16_max(t, row_max[r]);
            f32x16_store(score, t);
        }
    }
    tile_begin_softmax(task, row_max);
}

static __attribute__((noinline)) void QATTN_FUNCTION(pair_scored_whole)(tile_task *task,
                                                                        float (*scores)[QATTN_KEY_BLOCK]) {
    pair_scored(task, scores, false);
}

static __attribute__((noinline)) void QATTN_FUNCTION(pair_scored_masked)(tile_task *task,
                                                                         float (*scores)[QATTN_KEY_BLOCK]) {
    pair_scored(task, scores, true);
}

/* The second half of 2. of one tile of a band: its rounded weights, and l. */
static __attribute__((noinline)) void QATTN_FUNCTION(pair_weighed)(const tile_scratch *scratch,
                                                                   float (*scores)[QATTN_KEY_BLOCK], float *sum) {
    QATTN_UNROLL
    for (size_t r = 0; r < TILE_ROWS; r++) {
        const f32x16 reference = f32x16_splat(scratch->reference[row_lane(r)]);
        f32x16 p[BLOCK_VECTORS];
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++) p[v] = f32x16_load(scores[r] + v * QATTN_LANES) - reference;
        bf16x64_weights(p, scores[r]);
        add_to_sum(sum + r * QATTN_LANES, scratch->rescale[row_lane(r)], p, BLOCK_VECTORS);
    }
}

/* 2. of one tile of a band by way of scratch, for all that pair_scored and pair_weighed do not know. */
QATTN_INLINE void pair_finished(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws,
                                size_t tile, size_t block_first, float (*scores)[QATTN_KEY_BLOCK]) {
    float *const t = task->scratch->weights;
    const size_t i = tile * TILE_ROWS, count = tile_height(ws, tile);
    for (size_t r = 0; r < TILE_ROWS; r++) scale_pair_scores(t + r * QATTN_KEY_BLOCK, scores[r], task->query_steps[r]);
    finish_tile_scores(task, args, ws->places + i, count, block_first);
    tile_weights(task, args, ws, i, count);
    for (size_t r = 0; r < TILE_ROWS; r++) {
        for (size_t j = 0; j < QATTN_KEY_BLOCK; j += QATTN_LANES)
            f32x16_store_storage((char *)scores[r] + 2 * j, f32x16_load(t + r * QATTN_KEY_BLOCK + j),
                                 QATTN_BFLOAT16_PAIRS);
    }
}

/* Products of two bands, made a pair of vectors of columns at a time between other work: a turn. */
typedef struct unit_turns {
    unit_product products[2];
    size_t at, vector; /* of the next turn */
} unit_turns;

QATTN_INLINE void begin_turns(unit_turns *turns, unit_product first, unit_product second) {
    *turns = (unit_turns){.products = {first, second}};
}

QATTN_INLINE bool turns_left(unit_turns *turns) {
    while (turns->at < 2 && turns->vector >= turns->products[turns->at].vectors) turns->at++, turns->vector = 0;
    return turns->at < 2;
}

/* The next of them, if there is any; the unit stays awake in any case. */
static __attribute__((noinline)) void QATTN_FUNCTION(take_turn)(unit_turns *turns) {
    if (!turns_left(turns)) {
        unit_stay_awake();
        return;
    }
    unit_columns(&turns->products[turns->at], false, turns->vector);
    turns->vector += 2;
}

QATTN_INLINE void take_all_turns(unit_turns *turns) {
    while (turns_left(turns)) QATTN_FUNCTION(take_turn)(turns);
}

/* A band that meets a block. */
typedef struct band_step {
    size_t first, block; /* the band's first tile, or ws->tiles behind the last step */
    block_parts parts;
} band_step;

/* The first step from that of tile `first` and block `block` on in which a row may see a key: all blocks of [begin, end) for
 * one band, which stays in L1, before the next. */
QATTN_INLINE band_step next_step(const qattn_forward_args *args, const forward_workspace *ws, size_t first,
                                 size_t block, size_t begin, size_t end) {
    for (; first < ws->tiles; first += BAND_TILES, block = begin) {
        const key_range keys = band_keys(args, ws, first);
        for (; block < end; block++) {
            if (range_bits(keys, block * QATTN_KEY_BLOCK))
                return (band_step){first, block, block_number(args, ws, args->unpacked ? 0 : block)};
        }
    }
    return (band_step){.first = ws->tiles};
}

/* Sums of products of all rows of a band. */
QATTN_INLINE unit_product pair_product_of_band(unit_product x, const forward_workspace *ws, size_t first) {
    x.a_segment = UNIT_ROW_BYTES;
    x.a_second = UNIT_ROWS * x.a_row;
    x.c_second = UNIT_ROWS * x.c_row;
    x.second = band_end(ws, first) - first > UNIT_ROWS / TILE_ROWS;
    return x;
}

QATTN_INLINE unit_product pair_scores(const forward_workspace *ws, band_step step, score_rows *scores) {
    const unit_product x = {.a = (const char *)(ws->queries + step.first * TILE_ROWS * ws->head_lanes),
                            .a_row = ws->head_lanes * sizeof(float),
                            .segments = ws->head_lanes / SEGMENT,
                            .b = step.parts.keys,
                            .b_vector = ws->head_lanes / SEGMENT * SEGMENT_BYTES,
                            .vectors = BLOCK_VECTORS,
                            .c = (char *)scores,
                            .c_row = sizeof *scores->rows};
    return pair_product_of_band(x, ws, step.first);
}

QATTN_INLINE unit_product pair_values(const forward_workspace *ws, band_step step, const score_rows *weights) {
    const unit_product x = {.a = (const char *)weights,
                            .a_row = sizeof *weights->rows,
                            .segments = KEY_SEGMENTS,
                            .b = step.parts.values,
                            .b_vector = VALUE_BYTES,
                            .vectors = ws->value_lanes / QATTN_LANES,
                            .c = (char *)(ws->chunk.out + step.first * TILE_ROWS * ws->value_lanes),
                            .c_row = ws->value_lanes * sizeof(float),
                            .adds = true};
    return pair_product_of_band(x, ws, step.first);
}

/* 2. of a step, and turns of products between: all maxima, which are long chains of shuffles, before all weights. Returns
 * whether any row sees a key. */
QATTN_INLINE bool step_weights(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws,
                               band_step step, score_rows *scores, unit_turns *turns) {
    const bool simple = !*not_finite(step.parts) && ws->normaliser == QATTN_SOFTMAX && scores_are_plain(&args->problem);
    const size_t end = band_end(ws, step.first), block_first = step.block * QATTN_KEY_BLOCK;
    bool some = false;
    for (size_t tile = step.first; tile < end; tile++) {
        float (*const rows)[QATTN_KEY_BLOCK] = scores->rows + (tile - step.first) * TILE_ROWS;
        task->scratch = ws->scratch + tile;
        if (!tile_sees(task, args, ws, tile, block_first)) {
            memset(rows, 0, TILE_ROWS * sizeof *rows);
            continue;
        }
        some = true;
        if (!simple) {
            QATTN_FUNCTION(take_turn)(turns);
            pair_finished(task, args, ws, tile, block_first, rows);
        } else if (task->scratch->all == ~UINT64_C(0)) QATTN_FUNCTION(pair_scored_whole)(task, rows);
        else QATTN_FUNCTION(pair_scored_masked)(task, rows);
    }
    for (size_t tile = step.first; tile < end && simple; tile++) {
        QATTN_FUNCTION(take_turn)(turns);
        if (ws->scratch[tile].any)
            QATTN_FUNCTION(pair_weighed)(ws->scratch + tile, scores->rows + (tile - step.first) * TILE_ROWS,
                                         ws->chunk.sum + tile * TILE_ROWS * QATTN_LANES);
    }
    return some;
}

/* Makes 3. of a step ready: the sums of rows whose references have moved. Values that are not finite are multiplied here,
 * others are left to turns. */
QATTN_INLINE unit_product begin_values(tile_task *task, const forward_workspace *ws, band_step step,
                                       const score_rows *weights) {
    const bool finite = !*not_finite(step.parts);
    for (size_t tile = step.first; tile < band_end(ws, step.first); tile++) {
        take_rows(task, ws, tile);
        task->scratch = ws->scratch + tile;
        task->block = step.parts;
        if (!task->scratch->any) continue;
        if (finite) rescale_pair_rows(task, TILE_ROWS);
        else TILE_CALL(tile_values_QATTN_BFLOAT16_PAIRS, tile_height(ws, tile), task);
    }
    return finite ? pair_values(ws, step, weights) : (unit_product){0};
}

/* Blocks [begin, end) against all bands. While the vector units turn scores of one step into weights, the tile unit makes
 * the products of those beside it: values of the step before, scores of the next. */
static __attribute__((noinline)) void QATTN_FUNCTION(pair_bands)(tile_task *task, const qattn_forward_args *args,
                                                                 forward_workspace *ws, size_t begin, size_t end) {
    score_rows scores[2];
    band_step step = next_step(args, ws, 0, begin, begin, end);
    unit_turns turns;
    unit_product values = {0};
    if (step.first < ws->tiles) values = pair_scores(ws, step, scores);
    begin_turns(&turns, (unit_product){0}, values);
    take_all_turns(&turns);
    values = (unit_product){0};
    for (size_t n = 0; step.first < ws->tiles; n ^= 1) {
        const band_step next = next_step(args, ws, step.first, step.block + 1, begin, end);
        unit_product next_scores = {0};
        if (next.first < ws->tiles) next_scores = pair_scores(ws, next, scores + (n ^ 1));
        begin_turns(&turns, values, next_scores); /* in this order: scores take the place of weights */
        prefetch_lines(&ws->upcoming, BAND_TILES * ws->upcoming_share);
        const bool some = step_weights(task, args, ws, step, scores + n, &turns);
        take_all_turns(&turns);
        values = some ? begin_values(task, ws, step, scores + n) : (unit_product){0};
        step = next;
    }
    begin_turns(&turns, values, (unit_product){0});
    take_all_turns(&turns);
}

#endif
