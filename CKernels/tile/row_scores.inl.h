/* SPDX-License-Identifier: Apache-2.0 */
/* row_scores.inl.h - step 1 of forward.inl.h for few rows of queries, from keys that stand as rows: laying 16 keys side
 * by side would cost more than their products.
 *
 * The lanes of a sum are the four chains of four keys, so that four channels of a key are loaded without transposing. */
#ifndef QATTN_ROW_SCORES_INL_H
#define QATTN_ROW_SCORES_INL_H

#include "tile/products.inl.h"

enum {
    KEYS_AT_ONCE = QATTN_LANES / QATTN_CHAINS,
    QUARTER_KEYS = QATTN_KEY_BLOCK / KEYS_AT_ONCE,
    EVERY_FOURTH_LANE = 0x1111
};

/* sum[i] += q'[i][c] k[c] of the channels d, ..., d + 3, one in each chain. */
QATTN_INLINE void four_channels(const tile_task *task, tile_kind kind, f32x16 keys, size_t d, f32x16 sum[TILE_ROWS]) {
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++)
        sum[i] = f32x16_fma(f32x16_repeat_four(task->queries + i * task->head_lanes + d), keys, sum[i]);
}

/* The same of the channels d, ..., d + 15, four after another; bfloat16 is loaded by eights, which takes half the shuffles. */
QATTN_INLINE void sixteen_channels(const tile_task *task, tile_kind kind, const char *const keys[KEYS_AT_ONCE],
                                   size_t d, f32x16 sum[TILE_ROWS]) {
    QATTN_UNROLL
    for (size_t n = 0; n < QATTN_LANES / (2 * QATTN_CHAINS); n++) {
        const size_t c = d + n * 2 * QATTN_CHAINS;
        if (kind.storage == QATTN_BFLOAT16) {
            const u16x32 eights = (u16x32)f32x16_load_fours(keys, c / 2, QATTN_FLOAT32);
            four_channels(task, kind, bf16x32_widen_fours(eights, false), c, sum);
            four_channels(task, kind, bf16x32_widen_fours(eights, true), c + QATTN_CHAINS, sum);
        } else {
            four_channels(task, kind, f32x16_load_fours(keys, c, kind.storage), c, sum);
            four_channels(task, kind, f32x16_load_fours(keys, c + QATTN_CHAINS, kind.storage), c + QATTN_CHAINS, sum);
        }
    }
}

/* scores[i]: that of each of four keys in the lanes of its chains. The next block is asked for on the way. */
QATTN_INLINE void four_scores(const tile_task *task, tile_kind kind, const char *const keys[KEYS_AT_ONCE],
                              block_prefetch *next, f32x16 scores[TILE_ROWS]) {
    for (size_t begin = 0; begin < task->head_dim; begin += QATTN_CHANNEL_BLOCK) {
        const size_t end = qattn_min(begin + QATTN_CHANNEL_BLOCK, task->head_dim);
        f32x16 sum[TILE_ROWS];
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) sum[i] = f32x16_splat(0);
        size_t d = begin;
        for (; d + QATTN_LANES <= end; d += QATTN_LANES) {
            if (block_prefetch_due(d / QATTN_LANES, KEYS_AT_ONCE * QATTN_LANES * storage_size(kind.storage)))
                block_prefetch_step(next);
            sixteen_channels(task, kind, keys, d, sum);
        }
        for (; d < end; d += QATTN_CHAINS) four_channels(task, kind, f32x16_load_fours(keys, d, kind.storage), d, sum);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) {
            const f32x16 all = f32x16_sums_of_fours(sum[i]);
            scores[i] = begin ? scores[i] + all : all;
        }
    }
}

/* The scores of a block, in memory, of four keys at a time: one of each quarter of the block where memory answers four runs of
 * reads faster than one, else one behind the other. Past the last key, it is read again. */
QATTN_INLINE void tile_row_scores(tile_task *from, tile_kind kind) {
    const tile_task copy = *from, *const task = &copy; /* whose fields no store can change: they stay in registers */
    const bool in_quarters = asks_in_quarters(task->in_quarters);
    const size_t group_step = in_quarters ? 1 : KEYS_AT_ONCE, key_step = in_quarters ? QUARTER_KEYS : 1;
    block_prefetch next = from->next;
    for (size_t j = 0; j < QUARTER_KEYS; j += QATTN_CHAINS) {
        f32x16 all[TILE_ROWS]; /* lane 4 k + n: key k of group j + n */
        QATTN_NO_UNROLL
        for (size_t n = 0; n < QATTN_CHAINS; n++) {
            const char *keys[KEYS_AT_ONCE];
            QATTN_UNROLL
            for (size_t k = 0; k < KEYS_AT_ONCE; k++) {
                const size_t key = qattn_min((j + n) * group_step + k * key_step, task->last_key);
                keys[k] = task->block.keys + (ptrdiff_t)key * task->key_step;
            }
            f32x16 scores[TILE_ROWS];
            four_scores(task, kind, keys, &next, scores);
            QATTN_UNROLL
            for (size_t i = 0; i < kind.rows; i++)
                all[i] = n ? f32x16_select(EVERY_FOURTH_LANE << n, scores[i], all[i]) : scores[i];
        }
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) {
            float *const weights = task->scratch->weights + i * QATTN_KEY_BLOCK + j * group_step;
            if (in_quarters) f32x16_store_fours(weights, QUARTER_KEYS, all[i]);
            else f32x16_store(weights, f32x16_transposed_fours(all[i]));
        }
    }
    from->next = next;
}

#define TILE_ROW_SCORES(storage, rows)                                                                                 \
    TILE_INSTANCE(tile_row_scores_##storage, rows)(tile_task * task) {                                                 \
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
