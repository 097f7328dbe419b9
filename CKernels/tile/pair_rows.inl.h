/* SPDX-License-Identifier: Apache-2.0 */
/* pair_rows.inl.h - one tile of few rows meets one block of keys and values that stand as rows of bfloat16: the sums of
 * pair_tiles.inl.h, without packing, which takes as long as memory does.
 *
 * Tile instructions multiply keys the other way round: their rows are keys, and their columns are queries, which stand as
 * pairs of channels side by side. As a b = b a, c[key][query] has the bits of c[query][key]. Values meet their weights by
 * fma, 32 columns at a time: even ones in one vector, odd ones in another. */
#ifndef QATTN_PAIR_ROWS_INL_H
#define QATTN_PAIR_ROWS_INL_H

#include "simd/tile_unit.h"
#include "tile/pair_tiles.inl.h"

enum { ROW_SEGMENT_BYTES = SEGMENT * 2 };

/* Whether no number of 64 rows of so many whole segments is a factor only once it is rounded to 0. The rows are read for the first time
 * here, one of each quarter side by side. */
QATTN_INLINE bool rows_are_factors(const char *rows, ptrdiff_t step, size_t dim, block_prefetch *asked) {
    block_prefetch next = *asked;
    u16x32 least = ~(u16x32){0};
    for (size_t n = 0; n < QATTN_KEY_BLOCK / PREFETCH_LINES; n++, rows += step) {
        for (size_t s = 0; s < dim / SEGMENT; s++) {
            if (s % 2)
                block_prefetch_step(&next); /* the rest comes with the values, or too much is asked for at once */
            QATTN_UNROLL
            for (size_t q = 0; q < PREFETCH_LINES; q++) {
                const ptrdiff_t quarter = (ptrdiff_t)q * QATTN_KEY_BLOCK / PREFETCH_LINES * step;
                u16x32 x;
                memcpy(&x, rows + quarter + s * ROW_SEGMENT_BYTES, sizeof x);
                least = __builtin_elementwise_min(least, (u16x32)((x & 0x7fff) - 1)); /* 0 is the largest then */
            }
        }
    }
    *asked = next;
    return __builtin_reduce_min(least) >= bf16_bits(QATTN_LEAST_FACTOR) - 1;
}

/* 1. t = (sum of products) * c. */
QATTN_INLINE void tile_pair_row_scores(const tile_task *task, size_t rows) {
    float sums[QATTN_KEY_BLOCK * TILE_ROWS];
    const size_t row_bytes = rows * sizeof *sums; /* of a pair of channels of all queries, or of a key's scores */
    const ptrdiff_t group = (ptrdiff_t)QATTN_LANES * task->key_step;
    unit_zero(0);
    unit_zero(1);
    unit_zero(2);
    unit_zero(3);
    for (size_t s = 0; s < task->head_dim / SEGMENT; s++) {
        const char *const keys = task->block.keys + s * ROW_SEGMENT_BYTES;
        unit_load(6, task->query_pairs + s * (SEGMENT / 2) * row_bytes, row_bytes);
        unit_load(4, keys, task->key_step);
        unit_multiply(0, 4, 6);
        unit_load(5, keys + group, task->key_step);
        unit_multiply(1, 5, 6);
        unit_load(4, keys + 2 * group, task->key_step);
        unit_multiply(2, 4, 6);
        unit_load(5, keys + 3 * group, task->key_step);
        unit_multiply(3, 5, 6);
    }
    unit_store(0, sums, row_bytes);
    unit_store(1, sums + rows * QATTN_LANES, row_bytes);
    unit_store(2, sums + rows * 2 * QATTN_LANES, row_bytes);
    unit_store(3, sums + rows * 3 * QATTN_LANES, row_bytes);
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < QATTN_KEY_BLOCK; j++)
            task->scratch->weights[i * QATTN_KEY_BLOCK + j] = sums[j * rows + i] * task->query_steps[i];
    }
}

/* The sums of both chains of segment s, of so many times 32 columns from `values` on. */
QATTN_INLINE void pair_row_columns(tile_task *task, size_t rows, size_t s, const char *values, size_t count,
                                   bool sees_some, f32x16 sum[PANEL_VECTORS][2][TILE_ROWS]) {
    f32x16 chain[2][PANEL_VECTORS][2][TILE_ROWS];
    QATTN_UNROLL
    for (size_t n = 0; n < 4 * count * rows; n++)
        chain[n & 1][n / 4 / rows][n >> 1 & 1][n / 4 % rows] = f32x16_splat(0);
    block_prefetch next = task->next;
    for (size_t n = 0; n < SEGMENT; n += 2) {
        if (block_prefetch_due(n / 2, 2 * count * ROW_SEGMENT_BYTES)) block_prefetch_step(&next);
        QATTN_UNROLL
        for (size_t odd = 0; odd < 2; odd++) {
            const size_t j = s * SEGMENT + n + odd;
            f32x16 value[PANEL_VECTORS][2];
            QATTN_UNROLL
            for (size_t v = 0; v < count; v++) {
                u16x32 x;
                memcpy(&x, values + j * task->value_stride * 2 + v * ROW_SEGMENT_BYTES, sizeof x);
                const u32x16 columns = (u32x16)bf16x32_factors_of(x);
                value[v][0] = f32x16_from_bits(columns << 16);
                value[v][1] = f32x16_from_bits(columns & 0xffff0000u);
            }
            QATTN_UNROLL
            for (size_t i = 0; i < rows; i++) {
                if (sees_some && !(task->scratch->visible[i] >> j & 1)) continue;
                const f32x16 weight = f32x16_splat(task->scratch->weights[i * QATTN_KEY_BLOCK + j]);
                QATTN_UNROLL
                for (size_t v = 0; v < 2 * count; v++)
                    chain[odd][v / 2][v % 2][i] = f32x16_fma(weight, value[v / 2][v % 2], chain[odd][v / 2][v % 2][i]);
            }
        }
    }
    task->next = next;
    QATTN_UNROLL
    for (size_t n = 0; n < 2 * count * rows; n++) {
        const size_t v = n / 2 / rows, half = n % 2, i = n / 2 % rows;
        sum[v][half][i] = chain[0][v][half][i] + chain[1][v][half][i];
    }
}

/* 3. of so many times 32 columns from `column` on. */
QATTN_INLINE void pair_row_values(tile_task *task, size_t rows, size_t column, size_t count, bool sees_some) {
    for (size_t s = 0; s < KEY_SEGMENTS; s++) {
        f32x16 sum[PANEL_VECTORS][2][TILE_ROWS];
        pair_row_columns(task, rows, s, task->block.values + 2 * column, count, sees_some, sum);
        QATTN_UNROLL
        for (size_t n = 0; n < count * rows; n++) {
            const size_t v = n / rows, i = n % rows;
            float *const out = task->out + i * task->value_lanes + column + v * SEGMENT;
            const f32x16 even = sum[v][0][i], odd = sum[v][1][i];
            f32x16_store(out, f32x16_load(out) + __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20,
                                                                         5, 21, 6, 22, 7, 23));
            f32x16_store(out + QATTN_LANES,
                         f32x16_load(out + QATTN_LANES) + __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11,
                                                                                  27, 12, 28, 13, 29, 14, 30, 15, 31));
        }
    }
}

/* 3. o = o a + sum of products. Sixteen chains hide what an fma takes, and leave registers for values. */
QATTN_INLINE void tile_pair_row_values(tile_task *task, size_t rows, bool sees_some) {
    const size_t at_once = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    size_t column = 0;
    for (; column + at_once * SEGMENT <= task->value_lanes; column += at_once * SEGMENT)
        pair_row_values(task, rows, column, at_once, sees_some);
    for (; at_once > 1 && column < task->value_lanes; column += SEGMENT)
        pair_row_values(task, rows, column, 1, sees_some);
}

#define TILE_PAIR_ROWS(rows)                                                                                           \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_pair_row_scores), rows)(tile_task * task) {  \
        tile_pair_row_scores(task, rows);                                                                              \
    }                                                                                                                  \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_pair_row_values), rows)(tile_task * task) {  \
        rescale_pair_rows(task, rows);                                                                                 \
        if (task->scratch->all == ~UINT64_C(0)) tile_pair_row_values(task, rows, false);                               \
        else tile_pair_row_values(task, rows, true);                                                                   \
    }
TILE_HEIGHTS(TILE_PAIR_ROWS)
#undef TILE_PAIR_ROWS

#endif
