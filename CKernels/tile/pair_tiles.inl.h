/* SPDX-License-Identifier: Apache-2.0 */
/* pair_tiles.inl.h - one tile of rows meets one block of QATTN_BFLOAT16_PAIRS: steps 1 and 3 of forward.inl.h by products
 * of bfloat16. Both are sums over segments of 32, channels in scores and keys in values:
 *
 *     c = c + (e + o),  e = sum of a[2n] b[2n],  o = sum of a[2n + 1] b[2n + 1]      by fma from +0, n ascending
 *
 * which is what tile instructions of x86-64 compute by themselves, and so do dots of AVX512-BF16 whose pairs are of one
 * chain, and fma of widened numbers elsewhere. Factors below 2^-56 are 0: then all products are multiples of 2^-126, and no sum is subnormal. A sum is never -0, so that a key
 * with a weight of 0 may be added or left out, unless its value is not finite. */
#ifndef QATTN_PAIR_TILES_INL_H
#define QATTN_PAIR_TILES_INL_H

#include "tile/values.inl.h"

enum {
    SEGMENT = QATTN_PAIR_SEGMENT,
    SEGMENT_BYTES = SEGMENT * QATTN_LANES * 2, /* of 16 columns */
    UNIT_PAIR_BYTES = 2 * QATTN_LANES * 2,     /* of a pair of elements */
    KEY_SEGMENTS = QATTN_KEY_BLOCK / SEGMENT,
    VALUE_BYTES = KEY_SEGMENTS * SEGMENT_BYTES /* of a block, 16 columns of values */
};

/* What the sums of a tile are made of: rows of factors a, and columns of b in vectors of 16. */
typedef struct pair_product {
    const float *a;
    size_t a_step, a_element, segments; /* floats from row to row and from element to element */
    const char *b;
    size_t b_bytes, vectors; /* bytes from one vector of columns to the next */
    const uint64_t *visible; /* of each row, bit j for element j of a; or NULL: all are added */
    float *c;
    size_t c_step;
    bool adds;       /* to what is in c, or to 0 */
    tile_task *task; /* whose blocks to come are asked for where few rows wait for memory; NULL where rows are many */
} pair_product;

/* sum[v][i]: the chain of the even or the odd elements of segment s, for `count` vectors from vector `first` on. */
QATTN_INLINE void pair_chain(const pair_product *x, size_t rows, size_t s, size_t first, size_t count, size_t odd,
                             bool sees_some, f32x16 sum[PANEL_VECTORS][TILE_ROWS]) {
    f32x16 part[PANEL_VECTORS][TILE_ROWS];
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) part[v][i] = f32x16_splat(0);
    }
    const float *const a = x->a + (s * SEGMENT + odd) * x->a_element;
    const char *const b = x->b + first * x->b_bytes + s * SEGMENT_BYTES;
    const tile_kind kind = {.rows = rows, .storage = QATTN_BFLOAT16_PAIRS, .streams = rows <= STREAMING_ROWS && !odd};
    QATTN_UNROLL_2
    for (size_t n = 0; n < SEGMENT; n += 2) {
        if (kind.streams) tile_prefetch(kind, &x->task->next, n / 2, count * CACHE_LINE);
        f32x16 column[PANEL_VECTORS];
        QATTN_UNROLL
        for (size_t v = 0; v < count; v++)
            column[v] = bf16x32_widen_half(b + v * x->b_bytes + n * QATTN_LANES * 2, odd);
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) {
            if (sees_some && !(x->visible[i] >> (s * SEGMENT + n + odd) & 1)) continue;
            const f32x16 factor = f32x16_splat(a[i * x->a_step + n * x->a_element]);
            QATTN_UNROLL
            for (size_t v = 0; v < count; v++) part[v][i] = f32x16_fma(factor, column[v], part[v][i]);
        }
    }
    copy_sums(sum, part, rows, count);
}

/* Whether the registers hold both chains of so few rows that they wait for memory. */
QATTN_INLINE bool chains_together(size_t rows) { return rows <= 2 || (rows <= STREAMING_ROWS && QATTN_VECTORS == 4); }

/* Both chains of one vector, side by side: memory is read in order, each line once. */
QATTN_INLINE void pair_chains(const pair_product *x, size_t rows, size_t s, size_t vector, bool sees_some,
                              f32x16 even[1][TILE_ROWS], f32x16 odd[1][TILE_ROWS]) {
    f32x16 part[2][TILE_ROWS];
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) part[0][i] = part[1][i] = f32x16_splat(0);
    const float *const a = x->a + s * SEGMENT * x->a_element;
    const char *const b = x->b + vector * x->b_bytes + s * SEGMENT_BYTES;
    const tile_kind kind = {.rows = rows, .storage = QATTN_BFLOAT16_PAIRS, .streams = true};
    QATTN_UNROLL_2
    for (size_t n = 0; n < SEGMENT; n += 2) {
        tile_prefetch(kind, &x->task->next, n / 2, CACHE_LINE);
        QATTN_UNROLL
        for (size_t half = 0; half < 2; half++) {
            const f32x16 column = bf16x32_widen_half(b + n * QATTN_LANES * 2, half);
            QATTN_UNROLL
            for (size_t i = 0; i < rows; i++) {
                if (sees_some && !(x->visible[i] >> (s * SEGMENT + n + half) & 1)) continue;
                part[half][i] =
                    f32x16_fma(f32x16_splat(a[i * x->a_step + (n + half) * x->a_element]), column, part[half][i]);
            }
        }
    }
    copy_sums(even, part, rows, 1);
    copy_sums(odd, part + 1, rows, 1);
}

/* The sums of `count` vectors of columns from vector `first` on. */
QATTN_INLINE void pair_columns(const pair_product *x, size_t rows, size_t first, size_t count, bool sees_some) {
    for (size_t s = 0; s < x->segments; s++) {
        f32x16 even[PANEL_VECTORS][TILE_ROWS], odd[PANEL_VECTORS][TILE_ROWS];
        if (chains_together(rows)) pair_chains(x, rows, s, first, sees_some, even, odd);
        else {
            pair_chain(x, rows, s, first, count, 0, sees_some, even);
            f32x16_stay_in_memory(even[0]);
            pair_chain(x, rows, s, first, count, 1, sees_some, odd);
        }
        QATTN_UNROLL
        for (size_t v = 0; v < count; v++) {
            QATTN_UNROLL
            for (size_t i = 0; i < rows; i++) {
                float *const c = x->c + i * x->c_step + (first + v) * QATTN_LANES;
                const f32x16 sum = even[v][i] + odd[v][i];
                f32x16_store(c, s || x->adds ? f32x16_load(c) + sum : sum);
            }
        }
    }
}

QATTN_INLINE void pair_products(const pair_product *x, size_t rows, bool sees_some) {
    const size_t at_once = chains_together(rows) ? 1 : vectors_at_once(rows);
    size_t v = 0;
    for (; v + at_once <= x->vectors; v += at_once) pair_columns(x, rows, v, at_once, sees_some);
    for (; at_once > 1 && v < x->vectors; v++) pair_columns(x, rows, v, 1, sees_some);
}

/* A row's sums after its reference has moved by a factor of `a`: multiples of 2^-126 again. */
QATTN_INLINE void rescale_pair_sums(float *sums, size_t count, float a) {
    for (size_t c = 0; c < count; c += QATTN_LANES) {
        const f32x16 product = f32x16_load(sums + c) * f32x16_splat(a);
        f32x16_store(sums + c, f32x16_abs(product) < 0x1p-102f ? f32x16_splat(0) : product);
    }
}

/* The same of those rows of a tile whose references have moved: one in five. */
QATTN_INLINE void rescale_pair_rows(const tile_task *task, size_t rows) {
    const float *const rescale = task->scratch->rescale;
    uint32_t same = f32x16_equal_bits(f32x16_load(rescale), 1), moved = 0;
    for (size_t i = 0; i < rows; i++) moved |= (~same >> row_lane(i) & 1) << i;
    for (; moved; moved &= moved - 1) {
        const size_t i = (size_t)__builtin_ctz(moved);
        rescale_pair_sums(task->out + i * task->value_lanes, task->value_lanes, rescale[row_lane(i)]);
    }
}

/* A row's scores of a block, from the sums of its products and its factor. */
QATTN_INLINE void scale_pair_scores(float *scores, const float *sums, float factor) {
    QATTN_UNROLL
    for (size_t j = 0; j < QATTN_KEY_BLOCK; j += QATTN_LANES)
        f32x16_store(scores + j, f32x16_load(sums + j) * f32x16_splat(factor));
}

/* 1. t = (sum of products) * c, c the row's factor of scores. */
QATTN_INLINE void tile_pair_scores(tile_task *task, size_t rows) {
    const size_t channels = packed_channels(task->head_dim, QATTN_BFLOAT16_PAIRS);
    const pair_product x = {.a = task->queries,
                            .a_step = task->head_lanes,
                            .a_element = 1,
                            .segments = channels / SEGMENT,
                            .b = task->block.keys,
                            .b_bytes = channels / SEGMENT * SEGMENT_BYTES,
                            .vectors = BLOCK_VECTORS,
                            .c = task->scratch->weights,
                            .c_step = QATTN_KEY_BLOCK,
                            .task = task};
    pair_products(&x, rows, false);
    for (size_t i = 0; i < rows; i++)
        scale_pair_scores(task->scratch->weights + i * QATTN_KEY_BLOCK, task->scratch->weights + i * QATTN_KEY_BLOCK,
                          task->query_steps[i]);
}

/* 3. o = o a + sum of products, in the order above. Weights are rounded already. */
QATTN_INLINE void tile_pair_values(tile_task *task, size_t rows) {
    const pair_product x = {.a = task->scratch->weights,
                            .a_step = QATTN_KEY_BLOCK,
                            .a_element = 1,
                            .segments = KEY_SEGMENTS,
                            .b = task->block.values,
                            .b_bytes = VALUE_BYTES,
                            .vectors = task->value_lanes / QATTN_LANES,
                            .visible = task->scratch->visible,
                            .c = task->out,
                            .c_step = task->value_lanes,
                            .adds = true,
                            .task = task};
    rescale_pair_rows(task, rows);
    if (*not_finite(task->block)) pair_products(&x, rows, true);
    else pair_products(&x, rows, false);
}

#define TILE_PAIRS(rows)                                                                                               \
    TILE_INSTANCE(tile_products_QATTN_BFLOAT16_PAIRS, rows)(tile_task * task) { tile_pair_scores(task, rows); }        \
    TILE_INSTANCE(tile_values_QATTN_BFLOAT16_PAIRS, rows)(tile_task * task) { tile_pair_values(task, rows); }
TILE_HEIGHTS(TILE_PAIRS)
#undef TILE_PAIRS

#endif
