/* SPDX-License-Identifier: Apache-2.0 */
/* factor_rows.inl.h - a block of rows of queries or of output gradients, and of weights, as the factors of bfloat16 that
 * factor_products.inl.h multiplies. */
#ifndef QATTN_FACTOR_ROWS_INL_H
#define QATTN_FACTOR_ROWS_INL_H

#include "memory/pack.inl.h"
#include "tile/factor_products.inl.h"

/* At most 64 rows of a tensor, and where they go, 0 beyond the last row and channel. */
typedef struct factor_rows_task {
    const void *rows;
    ptrdiff_t stride;
    qattn_storage storage;
    size_t count, dim;
    float scale;     /* a power of two that rows are multiplied by */
    factor *factors; /* [66][dim rounded up to a segment]: six rows at a time */
    char *pairs;     /* as values of a block: [lanes / 16][32][16][2] */
    bool *finite;    /* whether all are */
} factor_rows_task;

QATTN_INLINE void store_factors(factor *to, f32x16 x) {
#if defined(QATTN_TILE_UNIT)
    f32x16_store_storage(to, x, QATTN_BFLOAT16_PAIRS);
#else
    f32x16_store(to, x);
#endif
}

/* Rows i and i + 1. */
QATTN_INLINE u32x16 take_factor_rows_of(const factor_rows_task *task, size_t i, qattn_storage storage, u32x16 largest) {
    const size_t lanes = qattn_round_up(task->dim, QATTN_PAIR_SEGMENT);
    const char *const first = storage_at(task->rows, (ptrdiff_t)i * task->stride, storage);
    const char *const second = i + 1 < task->count ? storage_at(first, task->stride, storage) : first;
    const f32x16 second_scale = f32x16_splat(i + 1 < task->count ? task->scale : 0);
    for (size_t d = 0; d < lanes; d += QATTN_LANES) {
        const size_t left = task->dim > d ? task->dim - d : 0;
        f32x16 x = f32x16_load_first(storage_at(first, (ptrdiff_t)d, storage), left, storage);
        f32x16 y = f32x16_load_first(storage_at(second, (ptrdiff_t)d, storage), left, storage);
        x = bf16x16_factor(x * task->scale);
        y = i + 1 < task->count ? bf16x16_factor(y * second_scale) : f32x16_splat(0);
        largest = u32x16_larger_magnitude(u32x16_larger_magnitude(largest, x), y);
        store_factors(task->factors + i * lanes + d, x);
        store_factors(task->factors + (i + 1) * lanes + d, y);
        bf16x32_store_pairs(task->pairs + d / QATTN_LANES * VALUE_BYTES + i / 2 * UNIT_PAIR_BYTES, x, y);
    }
    return largest;
}

static __attribute__((noinline)) void QATTN_FUNCTION(take_factor_rows)(const factor_rows_task *task) {
    const size_t lanes = qattn_round_up(task->dim, QATTN_PAIR_SEGMENT), rows = qattn_round_up(QATTN_KEY_BLOCK, TILE_ROWS);
    const size_t taken = qattn_round_up(task->count, 2);
    u32x16 largest = {0};
    for (size_t i = 0; i < task->count; i += 2) {
        switch (task->storage) {
        case QATTN_FLOAT32: largest = take_factor_rows_of(task, i, QATTN_FLOAT32, largest); break;
        case QATTN_FLOAT16: largest = take_factor_rows_of(task, i, QATTN_FLOAT16, largest); break;
        default: largest = take_factor_rows_of(task, i, QATTN_BFLOAT16, largest); break;
        }
    }
    memset(task->factors + taken * lanes, 0, (rows - taken) * lanes * sizeof(factor));
    for (size_t d = 0; d < lanes && taken < QATTN_KEY_BLOCK; d += QATTN_LANES)
        memset(task->pairs + d / QATTN_LANES * VALUE_BYTES + taken / 2 * UNIT_PAIR_BYTES, 0,
               (QATTN_KEY_BLOCK - taken) / 2 * UNIT_PAIR_BYTES);
    *task->finite = __builtin_reduce_max(largest) < 0x7f800000u;
}

/* 64 rows of 64, rounded in place. */
static __attribute__((noinline)) void QATTN_FUNCTION(round_to_factors)(float *rows) {
    for (size_t n = 0; n < QATTN_KEY_BLOCK * QATTN_KEY_BLOCK; n += QATTN_LANES)
        f32x16_store(rows + n, bf16x16_factor(f32x16_load(rows + n)));
}

#if defined(QATTN_TILE_UNIT)
/* to[j][i] of 16 columns j, from 16 rows of pairs, [pair][16][2]: two rows i beside each other. */
QATTN_INLINE void transpose_pairs(const char *pairs, factor *to, size_t step) {
    const char *rows[QATTN_LANES];
    for (size_t lane = 0; lane < QATTN_LANES; lane++) rows[place_of_lane(lane)] = pairs + lane * UNIT_PAIR_BYTES;
    QATTN_UNROLL
    for (size_t column = 0; column < QATTN_LANES; column += 4) {
        f32x16 x[4];
        QATTN_UNROLL
        for (size_t i = 0; i < 4; i++) x[i] = f32x16_load_fours(rows + 4 * i, column, QATTN_FLOAT32);
        f32x16_transpose_quarters(x);
        QATTN_UNROLL
        for (size_t i = 0; i < 4; i++) memcpy(to + (column + i) * step, &x[i], sizeof x[i]);
    }
}

/* columns[j][i] = factor of rows[i][j], and the same in rows if asked for. */
static __attribute__((noinline)) void QATTN_FUNCTION(turn_factors)(const float *rows, factor *columns, factor *by_rows) {
    char pairs[QATTN_LANES * UNIT_PAIR_BYTES] __attribute__((aligned(QATTN_ALIGNMENT)));
    for (size_t i = 0; i < QATTN_KEY_BLOCK; i += SEGMENT) {
        for (size_t j = 0; j < QATTN_KEY_BLOCK; j += QATTN_LANES) {
            for (size_t pair = 0; pair < QATTN_LANES; pair++) {
                const size_t at = (i + 2 * pair) * QATTN_KEY_BLOCK + j;
                const f32x16 x = bf16x16_factor(f32x16_load(rows + at));
                const f32x16 y = bf16x16_factor(f32x16_load(rows + at + QATTN_KEY_BLOCK));
                bf16x32_store_pairs(pairs + pair * UNIT_PAIR_BYTES, x, y);
                if (!by_rows) continue;
                store_factors(by_rows + at, x);
                store_factors(by_rows + at + QATTN_KEY_BLOCK, y);
            }
            transpose_pairs(pairs, columns + j * QATTN_KEY_BLOCK + i, QATTN_KEY_BLOCK);
        }
    }
}
#endif

#endif
