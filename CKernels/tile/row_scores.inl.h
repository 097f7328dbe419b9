/* SPDX-License-Identifier: Apache-2.0 */
/* row_scores.inl.h - step 1 of forward.inl.h for few rows of queries, from keys that stand as rows: laying 16 keys side
 * by side would cost more than their products.
 *
 * The lanes of a sum are the four chains of four keys, so that four channels of a key are loaded without transposing. */
#ifndef QATTN_ROW_SCORES_INL_H
#define QATTN_ROW_SCORES_INL_H

#include "tile/products.inl.h"

enum { KEYS_AT_ONCE = QATTN_LANES / QATTN_CHAINS };

/* scores[i]: that of each of four keys in the lanes of its chains. */
QATTN_INLINE void four_scores(const tile_task *task, tile_kind kind, const char *const keys[KEYS_AT_ONCE],
                              f32x16 scores[TILE_ROWS]) {
    for (size_t begin = 0; begin < task->head_dim; begin += QATTN_CHANNEL_BLOCK) {
        const size_t end = qattn_min(begin + QATTN_CHANNEL_BLOCK, task->head_dim);
        f32x16 sum[TILE_ROWS];
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) sum[i] = f32x16_splat(0);
        for (size_t d = begin; d < end; d += QATTN_CHAINS) {
            const f32x16 key = f32x16_load_fours(keys, d, kind.storage);
            QATTN_UNROLL
            for (size_t i = 0; i < kind.rows; i++)
                sum[i] = f32x16_fma(f32x16_repeat_four(task->queries + i * task->head_lanes + d), key, sum[i]);
        }
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) {
            const f32x16 all = f32x16_sums_of_fours(sum[i]);
            scores[i] = begin ? scores[i] + all : all;
        }
    }
}

/* The scores of a block, in memory. Past the last key, it is read again. */
QATTN_INLINE void tile_row_scores(const tile_task *from, tile_kind kind) {
    const tile_task copy = *from, *const task = &copy; /* whose fields no store can change: they stay in registers */
    float *const weights = copy.scratch->weights;
    for (size_t j = 0; j < QATTN_KEY_BLOCK; j += KEYS_AT_ONCE) {
        const char *keys[KEYS_AT_ONCE];
        QATTN_UNROLL
        for (size_t k = 0; k < KEYS_AT_ONCE; k++)
            keys[k] = task->block.keys + (ptrdiff_t)qattn_min(j + k, task->last_key) * task->key_step;
        f32x16 scores[TILE_ROWS];
        four_scores(task, kind, keys, scores);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) f32x16_store_every_fourth(weights + i * QATTN_KEY_BLOCK + j, scores[i]);
    }
}

#define TILE_ROW_SCORES(storage, rows)                                                                                 \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_row_scores_##storage),                       \
                                                      rows)(tile_task * task) {                                        \
        tile_row_scores(task, (tile_kind){rows, storage, .masked = false});                                            \
    }
#define TILE_ROW_SCORES_OF(storage)                                                                                    \
    TILE_ROW_SCORES(storage, 1)                                                                                        \
    TILE_ROW_SCORES(storage, 4)
TILE_ROW_SCORES_OF(QATTN_FLOAT32)
TILE_ROW_SCORES_OF(QATTN_FLOAT16)
TILE_ROW_SCORES_OF(QATTN_BFLOAT16)
#undef TILE_ROW_SCORES_OF
#undef TILE_ROW_SCORES

/* Of so many rows, at most STREAMING_ROWS. */
#define TILE_CALL_ROW_SCORES(storage, rows, task)                                                                      \
    ((rows) > 1 ? QATTN_PASTE(QATTN_FUNCTION(tile_row_scores_##storage), 4)(task)                                      \
                : QATTN_PASTE(QATTN_FUNCTION(tile_row_scores_##storage), 1)(task))

QATTN_INLINE void tile_row_products(tile_task *task, qattn_storage storage, size_t rows) {
    if (storage == QATTN_FLOAT32) TILE_CALL_ROW_SCORES(QATTN_FLOAT32, rows, task);
    else if (storage == QATTN_FLOAT16) TILE_CALL_ROW_SCORES(QATTN_FLOAT16, rows, task);
    else TILE_CALL_ROW_SCORES(QATTN_BFLOAT16, rows, task);
}
#undef TILE_CALL_ROW_SCORES

#endif
