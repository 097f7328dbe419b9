/* SPDX-License-Identifier: Apache-2.0 */
/* steps.inl.h - the steps of forward.inl.h for one tile of rows and one block of keys, by way of scores in memory. */
#ifndef QATTN_STEPS_INL_H
#define QATTN_STEPS_INL_H

#include "attention/rows.inl.h"
#include "attention/tiles.inl.h"
#include "tile/integer_tiles.inl.h"
#include "tile/pair_tiles.inl.h"
#include "tile/row_scores.inl.h"
#if defined(QATTN_TILE_UNIT)
#include "tile/pair_rows.inl.h"
#endif

/* What stands between the products of `count` rows and their weights, of scores in memory, [count][64]. Nothing does where
 * scores are plain and a row sees all, as all rows do if `all` has every bit. */
QATTN_INLINE void finish_rows(const qattn_forward_args *args, const row_place *places, const uint64_t *visible,
                              uint64_t all, size_t count, size_t block_first, float *scores) {
    const bool plain = scores_are_plain(&args->problem);
    if (plain && all == ~UINT64_C(0)) return;
    const score_finish finish = begin_finish(&args->problem);
    for (size_t r = 0; r < count; r++, scores += QATTN_KEY_BLOCK) {
        if (plain && visible[r] == ~UINT64_C(0)) continue;
        f32x16 t[1][BLOCK_VECTORS];
        tile_load(t, scores, 1, BLOCK_VECTORS);
        finish_scores(&finish, begin_row_finish(&finish, places[r], visible[r], block_first), BLOCK_VECTORS, t[0]);
        tile_store(scores, t, 1);
    }
}

/* 1. of keys that stand as rows. */
QATTN_INLINE void tile_products_in_place(tile_task *task, const qattn_forward_args *args, size_t count) {
#if defined(QATTN_TILE_UNIT)
    if (in_pairs(args->blocks.storage)) {
        TILE_CALL(tile_pair_row_scores, count, task);
        return;
    }
#endif
    tile_row_products(task, args->unpacked->key_storage, count);
}

/* 1., up to the finished scores, in memory: of `count` rows. */
QATTN_INLINE void tile_finished_scores(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                       size_t count, size_t block_first) {
    if (task->key_step) tile_products_in_place(task, args, count);
    else TILE_CALL_STORAGE(tile_products, args->blocks.storage, count, task)
    finish_rows(args, places, task->scratch->visible, task->scratch->all, count, block_first, task->scratch->weights);
}

/* 2. of row i, whose scores are in memory, by a normaliser that leaves sums as they are. */
QATTN_INLINE void unscaled_row_weights(const qattn_forward_args *args, const forward_workspace *ws, size_t i,
                                       float *weights, bool rounds) {
    const float c = row_constant(args, ws->places[i]);
    if (ws->normaliser == QATTN_SIGMOID) {
        sigmoid_weights(weights, c, rounds);
    } else if (ws->normaliser == QATTN_CLIPPED_SOFTMAX) {
        const row_totals *const totals = &ws->totals[i / ws->tile_rows];
        const size_t lane = tile_lane(ws->tile_rows, i % ws->tile_rows);
        clipped_weights(weights, (clipped_row){totals->maximum[lane], totals->factor[lane], c, args->problem.zeta},
                        rounds);
    } else relu_squared_weights(weights, ws->chunk.sum + i * QATTN_LANES, rounds);
}

/* 2., from scores in memory: the rows from row i on. */
QATTN_INLINE void tile_weights(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t i,
                               size_t count) {
    const bool rounds = ws->value_storage == QATTN_BFLOAT16_PAIRS;
    if (ws->normaliser == QATTN_SOFTMAX) {
        TILE_CALL(tile_softmax, count, task, rounds);
        return;
    }
    if (ws->normaliser == QATTN_SOFTPICK) {
        TILE_CALL(tile_softpick, count, task, rounds);
        return;
    }
    f32x16_store(task->scratch->rescale, f32x16_splat(1));
    for (size_t r = 0; r < count; r++)
        unscaled_row_weights(args, ws, i + r, task->scratch->weights + r * QATTN_KEY_BLOCK, rounds);
}

/* One tile of `count` rows from row i on against one block, with scores that have to be finished. */
QATTN_INLINE void tile_finished(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t i,
                                size_t count, size_t block_first) {
    tile_finished_scores(task, args, ws->places + i, count, block_first);
    tile_weights(task, args, ws, i, count);
    if (!ws->value_lanes) return;
#if defined(QATTN_TILE_UNIT)
    if (task->value_stride && in_pairs(ws->value_storage)) {
        TILE_CALL(tile_pair_row_values, count, task);
        return;
    }
#endif
    TILE_CALL_STORAGE(tile_values, ws->value_storage, count, task)
}

QATTN_INLINE block_parts block_number(const qattn_forward_args *args, const forward_workspace *ws, size_t block) {
    return block_cut(&args->blocks, block_at(&args->blocks, block, ws->block_bytes), args->blocks.storage);
}

/* What tiles of a call share, whatever the block. Made once: clearing a task, 30 cache lines, for every block took 2 %
 * of the time of four rows that stream blocks from memory, and 13 % of one. */
QATTN_INLINE tile_task begin_task(const qattn_forward_args *args, const forward_workspace *ws) {
    return (tile_task){.head_dim = args->blocks.head_dim,
                       .head_lanes = ws->head_lanes,
                       .scratch = ws->scratch,
                       .value_lanes = ws->value_lanes,
                       .query_pairs = ws->fours,
                       .in_quarters = ws->in_quarters,
                       .short_passes = args->blocks.storage == QATTN_FLOAT32 && ws->tiles == 1 &&
                                       (args->beyond_caches || ws->rows == 2)};
}

/* The rows of a tile and their sums. */
QATTN_INLINE void take_rows(tile_task *task, const forward_workspace *ws, size_t tile) {
    const size_t i = tile * TILE_ROWS;
    task->queries = ws->queries + i * ws->head_lanes;
    task->query_steps = ws->query_steps + i;
    task->maximum = ws->chunk.maximum + tile * QATTN_LANES;
    task->sum = ws->chunk.sum + i * QATTN_LANES;
    task->out = ws->chunk.out + i * ws->value_lanes;
}

/* Takes a tile's rows: which keys of the block they see, and whether any. */
QATTN_INLINE bool tile_sees(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t tile,
                            size_t block_first) {
    const size_t i = tile * TILE_ROWS, count = tile_height(ws, tile);
    take_rows(task, ws, tile);
    bool whole = ws->ranges_only && range_covers(ws->keys.all, block_first);
    if (!whole) {
        const run_keys keys = keys_of_run(&args->problem, ws->places[i], ws->places[i + count - 1]);
        task->scratch->any = 0;
        if (!range_bits(keys.any, block_first)) return false;
        whole = ws->ranges_only && range_covers(keys.all, block_first);
    }
    if (!whole) return tile_sees_some(task, args, ws->places + i, ws->chunk.started + i, count, block_first);
    tile_sees_all(task, ws->chunk.started + i, count);
    return true;
}

/* By phases: 1. and the first half of 2. of tile `tile`. */
QATTN_INLINE void phase_scores(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws,
                               size_t tile, size_t block_first) {
    const row_place *const places = ws->places + tile * TILE_ROWS;
    const size_t count = tile_height(ws, tile);
    if (ws->plain) {
        if (task->scratch->all == ~UINT64_C(0)) TILE_CALL(tile_scored_whole, count, task);
        else TILE_CALL(tile_scored_masked, count, task);
        return;
    }
    if (count <= STREAMING_ROWS) {
        tile_finished_scores(task, args, places, count, block_first);
        TILE_CALL(tile_compared, count, task);
        return;
    }
    switch (BLOCK_VECTORS - (size_t)__builtin_clzll(task->scratch->any) / QATTN_LANES) {
    case 1: QATTN_PASTE(QATTN_FUNCTION(tile_scored_finished), 1)(task, args, places, block_first); break;
    case 2: QATTN_PASTE(QATTN_FUNCTION(tile_scored_finished), 2)(task, args, places, block_first); break;
    case 3: QATTN_PASTE(QATTN_FUNCTION(tile_scored_finished), 3)(task, args, places, block_first); break;
    default: QATTN_PASTE(QATTN_FUNCTION(tile_scored_finished), 4)(task, args, places, block_first); break;
    }
}

/* By phases: the second half of 2. of tile `tile`. */
QATTN_INLINE void phase_weights(const forward_workspace *ws, size_t tile) {
    TILE_CALL(tile_weighed, tile_height(ws, tile), ws->scratch + tile, ws->chunk.sum + tile * TILE_ROWS * QATTN_LANES);
}

/* By phases: 3. of all tiles, panel by panel, so that each stays in L1 for all of them. */
QATTN_INLINE void phase_values(tile_task *task, forward_workspace *ws, size_t first) {
    const char *panel = task->block.values;
    for (size_t column = 0, lanes; column < ws->value_lanes; column += lanes) {
        lanes = panel_lanes(ws->value_lanes - column);
        for (size_t tile = first; tile < ws->tiles; tile++) {
            if (column == 0) prefetch_lines(&ws->upcoming, ws->upcoming_share);
            if (!ws->scratch[tile].any) continue;
            take_rows(task, ws, tile);
            task->scratch = ws->scratch + tile;
            if (task->scratch->all == ~UINT64_C(0))
                TILE_CALL(tile_panel_whole, tile_height(ws, tile), task, panel, column, lanes);
            else TILE_CALL(tile_panel_masked, tile_height(ws, tile), task, panel, column, lanes);
        }
        panel = panel_after(task, QATTN_FLOAT32, panel, lanes);
    }
}

#endif
