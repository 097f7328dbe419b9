/* SPDX-License-Identifier: Apache-2.0 */
/* factor_rows.inl.h - a block of rows of queries or of output gradients, and of weights, as the factors of bfloat16 that
 * factor_products.inl.h multiplies. */
#ifndef QATTN_FACTOR_ROWS_INL_H
#define QATTN_FACTOR_ROWS_INL_H

#include "memory/pack.inl.h"
#include "tile/factor_products.inl.h"
#include "tile/gradient_layout.h"

/* At most 64 rows of a tensor, and where they go, 0 beyond the last row and channel. */
typedef struct factor_rows_task {
    const void *rows;
    ptrdiff_t stride;
    qattn_storage storage;
    size_t count, dim;
    float scale, least; /* a power of two that rows are multiplied by, and the least factor */
    factor *factors;    /* [66][dim rounded up to a segment]: six rows at a time */
    char *pairs;        /* as values of a block: [lanes / 16][32][16][2] */
    bool *finite;       /* whether all are */
} factor_rows_task;

QATTN_INLINE void store_factors(factor *to, f32x16 x) {
#if defined(QATTN_BANDS)
    *(u16x16_unaligned *)to = __builtin_convertvector(f32x16_bits(x) >> 16, u16x16);
#else
    f32x16_store(to, x);
#endif
}

/* Rows i and i + 1. */
QATTN_INLINE u32x16 take_factor_rows_of(const factor_rows_task *task, size_t i, qattn_storage storage, u32x16 largest) {
    const size_t lanes = qattn_round_up(task->dim, QATTN_PAIR_SEGMENT);
    const char *const first = storage_at(task->rows, (ptrdiff_t)i * task->stride, storage);
    const char *const second = i + 1 < task->count ? storage_at(first, task->stride, storage) : first;
    for (size_t d = 0; d < lanes; d += QATTN_LANES) {
        const size_t left = task->dim > d ? task->dim - d : 0;
        f32x16 x = f32x16_load_first(storage_at(first, (ptrdiff_t)d, storage), left, storage);
        f32x16 y = f32x16_load_first(storage_at(second, (ptrdiff_t)d, storage), left, storage);
        x = bf16x16_factor_from(x * task->scale, task->least);
        y = i + 1 < task->count ? bf16x16_factor_from(y * task->scale, task->least) : f32x16_splat(0);
        largest = u32x16_larger_magnitude(u32x16_larger_magnitude(largest, x), y);
        store_factors(task->factors + i * lanes + d, x);
        store_factors(task->factors + (i + 1) * lanes + d, y);
        bf16x32_store_pairs(task->pairs + d / QATTN_LANES * VALUE_BYTES + i / 2 * UNIT_PAIR_BYTES, x, y);
    }
    return largest;
}

QATTN_NOINLINE void QATTN_FUNCTION(take_factor_rows)(const factor_rows_task *task) {
    const size_t lanes = qattn_round_up(task->dim, QATTN_PAIR_SEGMENT);
    const size_t taken = qattn_round_up(task->count, 2);
    u32x16 largest = {0};
    for (size_t i = 0; i < task->count; i += 2) {
        switch (task->storage) {
        case QATTN_FLOAT32: largest = take_factor_rows_of(task, i, QATTN_FLOAT32, largest); break;
        case QATTN_FLOAT16: largest = take_factor_rows_of(task, i, QATTN_FLOAT16, largest); break;
        default: largest = take_factor_rows_of(task, i, QATTN_BFLOAT16, largest); break;
        }
    }
    memset(task->factors + taken * lanes, 0, (SUM_BLOCK_ROWS - taken) * lanes * sizeof(factor));
    for (size_t d = 0; d < lanes && taken < QATTN_KEY_BLOCK; d += QATTN_LANES)
        memset(task->pairs + d / QATTN_LANES * VALUE_BYTES + taken / 2 * UNIT_PAIR_BYTES, 0,
               (QATTN_KEY_BLOCK - taken) / 2 * UNIT_PAIR_BYTES);
    *task->finite = __builtin_reduce_max(largest) < 0x7f800000u;
}

/* 64 rows of 64, rounded in place. */
QATTN_NOINLINE void QATTN_FUNCTION(round_to_factors)(float *rows, float least) {
    for (size_t n = 0; n < QATTN_KEY_BLOCK * QATTN_KEY_BLOCK; n += QATTN_LANES)
        f32x16_store(rows + n, bf16x16_factor_from(f32x16_load(rows + n), least));
}

#if defined(QATTN_BANDS)
/* The factors of 32 numbers; those below `least`, a power of two, are +0. */
QATTN_INLINE u16x32 bf16x32_factors(f32x16 first, f32x16 second, float least) {
#if defined(QATTN_AVX512)
    const u16x32 nearest = (u16x32)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (nearest << 1) < (uint16_t)(2 * bf16_bits(least)) ? (u16x32)0 : nearest; /* without their signs */
#else
    const u16x16 a = bf16x16_round(bf16x16_factor_from(first, least));
    const u16x16 b = bf16x16_round(bf16x16_factor_from(second, least));
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                   22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
#endif
}

/* A segment of 32 rows of 64 factors, two rows beside each other. The columns of a group of 16 are those that single
 * instructions put there: lane 4 q + i of group 2 h + g is column 32 h + 8 q + 4 g + i. */
typedef struct factor_pairs {
    uint32_t rows[SEGMENT / 2][BLOCK_VECTORS][QATTN_LANES] __attribute__((aligned(QATTN_ALIGNMENT)));
} factor_pairs;

/* Columns [32 h, 32 h + 32) of two rows. */
QATTN_INLINE void store_factor_pairs(factor_pairs *pairs, size_t pair, size_t h, u16x32 x, u16x32 y) {
    const u16x32 low = __builtin_shufflevector(x, y, 0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9, 41, 10, 42, 11, 43, 16, 48,
                                               17, 49, 18, 50, 19, 51, 24, 56, 25, 57, 26, 58, 27, 59);
    const u16x32 high = __builtin_shufflevector(x, y, 4, 36, 5, 37, 6, 38, 7, 39, 12, 44, 13, 45, 14, 46, 15, 47, 20,
                                                52, 21, 53, 22, 54, 23, 55, 28, 60, 29, 61, 30, 62, 31, 63);
    memcpy(pairs->rows[pair][2 * h], &low, sizeof low);
    memcpy(pairs->rows[pair][2 * h + 1], &high, sizeof high);
}

/* to[column][row], columns 64 apart. */
QATTN_INLINE void transpose_factor_pairs(const factor_pairs *pairs, factor *to) {
    for (size_t group = 0; group < BLOCK_VECTORS; group++) {
        const char *rows[QATTN_LANES];
        for (size_t lane = 0; lane < QATTN_LANES; lane++)
            rows[place_of_lane(lane)] = (const char *)pairs->rows[lane][group];
        QATTN_UNROLL
        for (size_t lane = 0; lane < QATTN_LANES; lane += 4) {
            const size_t column = group / 2 * 32 + 2 * lane + group % 2 * 4;
            f32x16 x[4];
            QATTN_UNROLL
            for (size_t i = 0; i < 4; i++) x[i] = f32x16_load_fours(rows + 4 * i, lane, QATTN_FLOAT32);
            f32x16_transpose_quarters(x);
            QATTN_UNROLL
            for (size_t i = 0; i < 4; i++) memcpy(to + (column + i) * QATTN_KEY_BLOCK, &x[i], sizeof x[i]);
        }
        unit_stay_awake();
    }
}

/* columns[j][i] = factor of rows[i][j] of 64 rows and columns, and the same in by_rows if asked for. */
QATTN_NOINLINE void QATTN_FUNCTION(turn_factors)(const float *rows, float least, factor *columns, factor *by_rows) {
    factor_pairs pairs;
    for (size_t i = 0; i < QATTN_KEY_BLOCK; i += SEGMENT) {
        for (size_t pair = 0; pair < SEGMENT / 2; pair++) {
            for (size_t j = 0; j < QATTN_KEY_BLOCK; j += 2 * QATTN_LANES) {
                const size_t at = (i + 2 * pair) * QATTN_KEY_BLOCK + j;
                u16x32 x[2];
                for (size_t r = 0; r < 2; r++) {
                    const float *const row = rows + at + r * QATTN_KEY_BLOCK;
                    x[r] = bf16x32_factors(f32x16_load(row), f32x16_load(row + QATTN_LANES), least);
                    if (by_rows) memcpy(by_rows + at + r * QATTN_KEY_BLOCK, &x[r], sizeof x[r]);
                }
                store_factor_pairs(&pairs, pair, j / 32, x[0], x[1]);
            }
        }
        transpose_factor_pairs(&pairs, columns + i);
    }
}
#endif

#endif
