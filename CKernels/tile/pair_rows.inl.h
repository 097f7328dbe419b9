/* SPDX-License-Identifier: Apache-2.0 */
/* pair_rows.inl.h - one tile of few rows meets one block of keys and values that stand as rows of bfloat16: the sums of
 * pair_tiles.inl.h, without packing, which takes as long as memory does.
 *
 * Tile instructions multiply keys the other way round: their rows are keys, and their columns are queries, which stand as
 * pairs of channels side by side. As a b = b a, c[key][query] has the bits of c[query][key]. Values meet their weights by
 * fma. */
#ifndef QATTN_PAIR_ROWS_INL_H
#define QATTN_PAIR_ROWS_INL_H

#include "simd/tile_unit.h"
#include "tile/pair_tiles.inl.h"

enum { ROW_SEGMENT_BYTES = SEGMENT * 2 };

/* Up to 32 numbers of bfloat16, of which there are whole halves: 0 behind them. */
QATTN_INLINE u16x32 bf16x32_load_rows(const char *row, size_t numbers) {
    u16x32 x = {0};
    if (numbers >= SEGMENT) memcpy(&x, row, sizeof x);
    else memcpy(&x, row, sizeof x / 2);
    return x;
}

/* Whether no number of 64 rows is a factor only once it is rounded to 0. The rows are read for the first time here, one of each
 * quarter side by side. Every other time the next ones are asked for: more at once is slower, and hardware follows. */
QATTN_INLINE bool rows_are_factors(const char *rows, ptrdiff_t step, size_t dim, block_prefetch *asked) {
    block_prefetch next = *asked;
    u16x32 least = ~(u16x32){0};
    for (size_t n = 0; n < QATTN_KEY_BLOCK / PREFETCH_LINES; n++, rows += step) {
        for (size_t d = 0; d < dim; d += SEGMENT) {
            if (d / SEGMENT % 2) block_prefetch_step(&next);
            QATTN_UNROLL
            for (size_t q = 0; q < PREFETCH_LINES; q++) {
                const ptrdiff_t quarter = (ptrdiff_t)q * QATTN_KEY_BLOCK / PREFETCH_LINES * step;
                const u16x32 x = bf16x32_load_rows(rows + quarter + 2 * d, dim - d);
                least = __builtin_elementwise_min(least, (u16x32)((x & 0x7fff) - 1)); /* 0 is the largest then */
            }
        }
    }
    *asked = next;
    return __builtin_reduce_min(least) >= bf16_bits(QATTN_LEAST_FACTOR) - 1;
}

/* Adds the products of tile a, 16 keys at a time, and tile b to the sums of all keys. */
#define UNIT_KEYS(a, b, keys, step)                                                                                    \
    unit_load(a, keys, step);                                                                                          \
    unit_multiply(0, a, b);                                                                                            \
    unit_load(a, (keys) + QATTN_LANES * (step), step);                                                                 \
    unit_multiply(1, a, b);                                                                                            \
    unit_load(a, (keys) + 2 * QATTN_LANES * (step), step);                                                             \
    unit_multiply(2, a, b);                                                                                            \
    unit_load(a, (keys) + 3 * QATTN_LANES * (step), step);                                                             \
    unit_multiply(3, a, b)

/* 1. t = (sum of products) * c. */
QATTN_INLINE void tile_pair_row_scores(const tile_task *task, size_t rows) {
    float sums[QATTN_KEY_BLOCK * TILE_ROWS];
    const size_t row_bytes = rows * sizeof *sums; /* of a pair of channels of all queries, or of a key's scores */
    const ptrdiff_t step = task->key_step;
    const char *keys = task->block.keys, *queries = task->query_pairs;
    unit_zero(0);
    unit_zero(1);
    unit_zero(2);
    unit_zero(3);
    for (size_t s = 0; s < task->head_dim / SEGMENT; s++) {
        unit_load(6, queries, row_bytes);
        UNIT_KEYS(4, 6, keys, step);
        queries += SEGMENT / 2 * row_bytes;
        keys += ROW_SEGMENT_BYTES;
    }
    if (task->head_dim % SEGMENT) {
        unit_load(7, queries, row_bytes);
        UNIT_KEYS(5, 7, keys, step);
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

/* A pass over the values: constants, all of them. */
typedef struct row_pass {
    size_t rows, words; /* of 32 columns each, even ones in vector 2 w, odd ones in 2 w + 1 */
    bool ends;          /* the word is 16 columns, the last ones */
    bool sees_some;     /* whether the scratch's visible counts */
} row_pass;

enum { MOST_WORDS = 4 };

/* vectors[2 w], vectors[2 w + 1]: the factors of one key's values. */
QATTN_INLINE void load_row_words(const char *row, row_pass pass, f32x16 vectors[2 * MOST_WORDS]) {
    QATTN_UNROLL
    for (size_t w = 0; w < pass.words; w++) {
        const u16x32 x = bf16x32_load_rows(row + w * ROW_SEGMENT_BYTES, pass.ends ? QATTN_LANES : SEGMENT);
        const u16x32 factors = bf16x32_factors_of(x);
        vectors[2 * w] = bf16x32_widen_half(&factors, false);
        vectors[2 * w + 1] = bf16x32_widen_half(&factors, true);
    }
}

/* sum[v][i]: both chains of segment s, of vector v and row i; values begin at the pass's first column. */
QATTN_INLINE void row_pass_sums(tile_task *task, row_pass pass, size_t s, const char *values,
                                f32x16 sum[2 * MOST_WORDS][TILE_ROWS]) {
    const size_t vectors = 2 * pass.words;
    f32x16 chain[2][2 * MOST_WORDS][TILE_ROWS];
    QATTN_UNROLL
    for (size_t n = 0; n < vectors * pass.rows; n++)
        chain[0][n / pass.rows][n % pass.rows] = chain[1][n / pass.rows][n % pass.rows] = f32x16_splat(0);
    block_prefetch next = task->next;
    for (size_t n = 0; n < SEGMENT; n += 2) {
        if (block_prefetch_due(n / 2, 2 * pass.words * ROW_SEGMENT_BYTES)) block_prefetch_step(&next);
        QATTN_UNROLL
        for (size_t odd = 0; odd < 2; odd++) {
            const size_t j = s * SEGMENT + n + odd;
            f32x16 value[2 * MOST_WORDS];
            load_row_words(values + (ptrdiff_t)j * (ptrdiff_t)task->value_stride * 2, pass, value);
            QATTN_UNROLL
            for (size_t i = 0; i < pass.rows; i++) {
                if (pass.sees_some && !(task->scratch->visible[i] >> j & 1)) continue;
                const f32x16 weight = f32x16_splat(task->scratch->weights[i * QATTN_KEY_BLOCK + j]);
                QATTN_UNROLL
                for (size_t v = 0; v < vectors; v++) chain[odd][v][i] = f32x16_fma(weight, value[v], chain[odd][v][i]);
            }
        }
    }
    task->next = next;
    QATTN_UNROLL
    for (size_t n = 0; n < vectors * pass.rows; n++) {
        const size_t v = n / pass.rows, i = n % pass.rows;
        sum[v][i] = chain[0][v][i] + chain[1][v][i];
    }
}

QATTN_INLINE void add_to(float *out, f32x16 sum) { f32x16_store(out, f32x16_load(out) + sum); }

/* 3. of a pass from `column` on. */
QATTN_INLINE void row_pass_values(tile_task *task, row_pass pass, size_t column) {
    for (size_t s = 0; s < KEY_SEGMENTS; s++) {
        f32x16 sum[2 * MOST_WORDS][TILE_ROWS];
        row_pass_sums(task, pass, s, task->block.values + 2 * column, sum);
        QATTN_UNROLL
        for (size_t n = 0; n < pass.words * pass.rows; n++) {
            const size_t w = n / pass.rows, i = n % pass.rows;
            float *const out = task->out + i * task->value_lanes + column + w * SEGMENT;
            const f32x16 even = sum[2 * w][i], odd = sum[2 * w + 1][i];
            add_to(out, __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
            if (!pass.ends)
                add_to(out + QATTN_LANES, __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                                  29, 14, 30, 15, 31));
        }
    }
}

/* 3. o = o a + sum of products. Twelve chains to 24 hide what an fma takes, and leave registers for values. */
QATTN_INLINE void tile_pair_row_values(tile_task *task, size_t rows, bool sees_some) {
    const size_t words = rows == 1 ? MOST_WORDS : rows == 2 ? 2 : 1;
    size_t column = 0;
    for (; column + words * SEGMENT <= task->value_lanes; column += words * SEGMENT)
        row_pass_values(task, (row_pass){rows, words, false, sees_some}, column);
    for (; words > 1 && column + SEGMENT <= task->value_lanes; column += SEGMENT)
        row_pass_values(task, (row_pass){rows, 1, false, sees_some}, column);
    if (column < task->value_lanes) row_pass_values(task, (row_pass){rows, 1, true, sees_some}, column);
}

#define TILE_PAIR_ROWS(rows)                                                                                           \
    TILE_INSTANCE(tile_pair_row_scores, rows)(tile_task * task) { tile_pair_row_scores(task, rows); }                  \
    TILE_INSTANCE(tile_pair_row_values, rows)(tile_task * task) {                                                      \
        rescale_pair_rows(task, rows);                                                                                 \
        if (task->scratch->all == ~UINT64_C(0)) tile_pair_row_values(task, rows, false);                               \
        else tile_pair_row_values(task, rows, true);                                                                   \
    }
TILE_HEIGHTS(TILE_PAIR_ROWS)
#undef TILE_PAIR_ROWS

#endif
