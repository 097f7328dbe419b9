/* SPDX-License-Identifier: Apache-2.0 */
/* gradient_products.inl.h - the products of backward.inl.h, as register tiles: of rows with keys, and of weights with
 * rows.
 *
 *     t[i][j]   = rows[i].keys[j]                                       four chains over channels, keys across lanes
 *     out[r][c] = out[r][c] + sum_n weights[n][r] rows[n][c]            dv, dk: n is a query, r a key
 *     out[r][c] = out[r][c] + sum_n weights[r][n] rows[n][c]            dq: n is a key, r a query; columns across lanes
 *
 * The sums over n begin at +0: a pair that is not seen has the weight +0 and adds nothing to them, as long as its row
 * is finite; else it is left out. */
#ifndef QATTN_GRADIENT_PRODUCTS_INL_H
#define QATTN_GRADIENT_PRODUCTS_INL_H

#include "memory/blocks.inl.h"
#include "simd/storage.h"
#include "tile/gradient_layout.h"

enum {
    TILE_STEP = TILE_ROWS * QATTN_CHAINS, /* floats of a tile of rows [dim / 4][6][4] with four channels */
    LAST_ROWS = 4,                        /* of a tile lower than six */
    NARROW_ROWS = 8                       /* of a tile narrower than four vectors, where registers hold so many */
};

/* sum[x][i] += rows[i][d + x] keys[d + x] of the chains x side by side, up to `channels` left. */
QATTN_INLINE void pair_step(const float *rows, const float *keys, size_t chain, size_t channels,
                            f32x16 sum[QATTN_CHAINS][TILE_ROWS]) {
    QATTN_UNROLL
    for (size_t x = chain; x < chain + QATTN_VECTORS; x++) {
        if (x >= channels) continue;
        const f32x16 key = f32x16_load(keys + x * QATTN_LANES);
        QATTN_UNROLL
        for (size_t i = 0; i < TILE_ROWS; i++)
            sum[x][i] = f32x16_fma(f32x16_splat(rows[i * QATTN_CHAINS + x]), key, sum[x][i]);
    }
}

/* out[i][0..16) = t of one tile of rows, [dim / 4][6][4], and 16 keys, [dim][16]: step 2 of the forward pass. */
QATTN_NOINLINE void QATTN_FUNCTION(pair_products)(const float *rows, const float *keys, size_t dim, float *out) {
    f32x16 t[TILE_ROWS];
    for (size_t begin = 0; begin < dim; begin += QATTN_CHANNEL_BLOCK) {
        const size_t channels = qattn_min(dim - begin, QATTN_CHANNEL_BLOCK), steps = channels / QATTN_CHAINS;
        f32x16 sum[QATTN_CHAINS][TILE_ROWS];
        QATTN_UNROLL
        for (size_t x = 0; x < QATTN_CHAINS; x++) {
            QATTN_UNROLL
            for (size_t i = 0; i < TILE_ROWS; i++) sum[x][i] = f32x16_splat(0);
        }
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain += QATTN_VECTORS) {
            const float *row = rows, *key = keys;
            QATTN_UNROLL_2
            for (size_t step = 0; step < steps; step++) {
                QATTN_OWN_POINTERS(row, key);
                pair_step(row, key, chain, QATTN_CHAINS, sum);
                row += TILE_STEP;
                key += QATTN_CHAINS * QATTN_LANES;
            }
            pair_step(row, key, chain, channels % QATTN_CHAINS, sum);
        }
        QATTN_UNROLL
        for (size_t i = 0; i < TILE_ROWS; i++) {
            const f32x16 all = (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]);
            t[i] = begin ? t[i] + all : all;
        }
        rows += steps * TILE_STEP;
        keys += channels * QATTN_LANES;
    }
    QATTN_UNROLL
    for (size_t i = 0; i < TILE_ROWS; i++) f32x16_store(out + i * QATTN_KEY_BLOCK, t[i]);
}

/* What is known of the elements of a block of rows. */
typedef enum finiteness { NOT_LOOKED_AT, ALL_FINITE, SOME_NOT_FINITE } finiteness;

/* Rows of floats, read in whole vectors, whose columns are cut into panels after blocks.inl.h:
 * [panels][height][columns of the panel]. */
typedef struct float_rows {
    const float *base;
    size_t height, count, lanes;       /* rows that there is room for, and that there are; columns */
    finiteness finite[GRADIENT_GROUP]; /* of rows [64 b, 64 b + 64) */
} float_rows;
_Static_assert(GRADIENT_GROUP >= PANEL_BLOCKS, "float_rows serves keys and queries");

/* Whether the block of rows from row `first` on has finite elements alone: looked at when it is asked for the first time. */
QATTN_NOINLINE bool QATTN_FUNCTION(are_finite)(float_rows *rows, size_t first) {
    finiteness *const finite = rows->finite + first / QATTN_KEY_BLOCK;
    if (*finite != NOT_LOOKED_AT) return *finite == ALL_FINITE;
    u32x16 largest = {0};
    const size_t count = qattn_min(rows->count - first, QATTN_KEY_BLOCK);
    for (size_t column = 0, panel; column < rows->lanes; column += panel) {
        panel = panel_lanes(rows->lanes - column);
        const float *const x = rows->base + column * rows->height + first * panel;
        for (size_t i = 0; i < count * panel; i += QATTN_LANES)
            largest = u32x16_larger_magnitude(largest, f32x16_load(x + i));
    }
    *finite = __builtin_reduce_max(largest) < 0x7f800000u ? ALL_FINITE : SOME_NOT_FINITE;
    return *finite == ALL_FINITE;
}

/* One block of weights and the rows [first, first + inner) that they are summed with. */
typedef struct product_task {
    const float *weights; /* [queries][64] */
    float_rows *rows;
    size_t first, inner, columns, out_rows;
    float *out; /* [out_rows][columns] */
    ptrdiff_t out_stride;
    const uint64_t *visible; /* of the queries; or NULL: every pair counts */
} product_task;

/* out[r][c] += sum over n < count, of a tile. */
QATTN_INLINE void product_tile(const float *weights, const float *x, size_t row_stride, size_t count, float *out,
                               ptrdiff_t out_stride, size_t rows, size_t vectors, bool transposed) {
    const size_t row_step = transposed ? 1 : QATTN_KEY_BLOCK, inner_step = transposed ? QATTN_KEY_BLOCK : 1;
    f32x16 sum[NARROW_ROWS][PANEL_VECTORS];
    QATTN_UNROLL
    for (size_t r = 0; r < rows; r++) {
        QATTN_UNROLL
        for (size_t c = 0; c < vectors; c++) sum[r][c] = f32x16_splat(0);
    }
    QATTN_UNROLL_2
    for (size_t n = 0; n < count; n++) {
        QATTN_OWN_POINTERS(weights, x);
        f32x16 row[PANEL_VECTORS];
        QATTN_UNROLL
        for (size_t c = 0; c < vectors; c++) row[c] = f32x16_load(x + c * QATTN_LANES);
        QATTN_UNROLL
        for (size_t r = 0; r < rows; r++) {
            const f32x16 weight = f32x16_splat(weights[r * row_step]);
            QATTN_UNROLL
            for (size_t c = 0; c < vectors; c++) sum[r][c] = f32x16_fma(weight, row[c], sum[r][c]);
        }
        weights += inner_step;
        x += row_stride;
    }
    QATTN_UNROLL
    for (size_t r = 0; r < rows; r++) {
        QATTN_UNROLL
        for (size_t c = 0; c < vectors; c++)
            f32x16_store(out + c * QATTN_LANES, f32x16_load(out + c * QATTN_LANES) + sum[r][c]);
        out += out_stride;
    }
}

#define PRODUCT_TILE(name, rows, vectors, transposed)                                                                  \
    QATTN_NOINLINE void QATTN_FUNCTION(name##_##rows##_##vectors)(                                                     \
        const float *weights, const float *x, size_t row_stride, size_t count, float *out, ptrdiff_t out_stride) {     \
        product_tile(weights, x, row_stride, count, out, out_stride, rows, vectors, transposed);                       \
    }
#if QATTN_VECTORS == 4
#define PRODUCT_TILES(name, transposed)                                                                                \
    PRODUCT_TILE(name, 6, 4, transposed)                                                                               \
    PRODUCT_TILE(name, 4, 4, transposed)                                                                               \
    PRODUCT_TILE(name, 8, 3, transposed)                                                                               \
    PRODUCT_TILE(name, 8, 2, transposed)                                                                               \
    PRODUCT_TILE(name, 8, 1, transposed)
#else
#define PRODUCT_TILES(name, transposed)                                                                                \
    PRODUCT_TILE(name, 6, 1, transposed)                                                                               \
    PRODUCT_TILE(name, 4, 1, transposed)
#endif
PRODUCT_TILES(key_sums, true)
PRODUCT_TILES(query_sums, false)
#undef PRODUCT_TILES
#undef PRODUCT_TILE

typedef void (*product_function)(const float *weights, const float *x, size_t row_stride, size_t count, float *out,
                                 ptrdiff_t out_stride);

#define PRODUCT_FUNCTION(rows, vectors)                                                                                \
    (transposed ? QATTN_FUNCTION(key_sums_##rows##_##vectors) : QATTN_FUNCTION(query_sums_##rows##_##vectors))

/* The function of a tile of so many vectors with `left` rows to go, and its height. */
QATTN_INLINE product_function product_function_of(size_t vectors, size_t left, bool transposed, size_t *height) {
    const bool narrow = QATTN_VECTORS == 4 && vectors < PANEL_VECTORS;
    *height = narrow ? NARROW_ROWS : left <= LAST_ROWS ? LAST_ROWS : TILE_ROWS;
#if QATTN_VECTORS == 4
    switch (vectors) {
    case 1: return PRODUCT_FUNCTION(8, 1);
    case 2: return PRODUCT_FUNCTION(8, 2);
    case 3: return PRODUCT_FUNCTION(8, 3);
    default: return left <= LAST_ROWS ? PRODUCT_FUNCTION(4, 4) : PRODUCT_FUNCTION(6, 4);
    }
#else
    return left <= LAST_ROWS ? PRODUCT_FUNCTION(4, 1) : PRODUCT_FUNCTION(6, 1);
#endif
}
#undef PRODUCT_FUNCTION

/* The n that some of the out rows [r, r + height) see. */
typedef struct inner_range {
    size_t begin, end;
} inner_range;

QATTN_INLINE inner_range seen_range(const product_task *task, size_t r, size_t height, bool transposed) {
    if (!task->visible) return (inner_range){0, task->inner};
    if (transposed) {
        const uint64_t mask = (~UINT64_C(0) >> (QATTN_KEY_BLOCK - height)) << r;
        inner_range seen = {0, task->inner};
        while (seen.begin < seen.end && !(task->visible[seen.begin] & mask)) seen.begin++;
        while (seen.begin < seen.end && !(task->visible[seen.end - 1] & mask)) seen.end--;
        return seen;
    }
    uint64_t any = 0;
    for (size_t i = r; i < qattn_min(r + height, task->out_rows); i++) any |= task->visible[i];
    if (!any) return (inner_range){0, 0};
    return (inner_range){(size_t)__builtin_ctzll(any), QATTN_KEY_BLOCK - (size_t)__builtin_clzll(any)};
}

/* A tile that reaches over the last row or column, by way of one that does not. */
QATTN_INLINE void product_tile_at_edge(product_function function, const float *weights, const float *x,
                                       size_t row_stride, size_t count, float *out, ptrdiff_t out_stride, size_t rows,
                                       size_t columns, size_t lanes) {
    float whole[NARROW_ROWS * PANEL_VECTORS * QATTN_LANES] = {0};
    for (size_t r = 0; r < rows; r++)
        memcpy(whole + r * lanes, out + (ptrdiff_t)r * out_stride, columns * sizeof(float));
    function(weights, x, row_stride, count, whole, (ptrdiff_t)lanes);
    for (size_t r = 0; r < rows; r++)
        memcpy(out + (ptrdiff_t)r * out_stride, whole + r * lanes, columns * sizeof(float));
}

/* The same sums, where rows are not finite: pairs that are not seen are left out. x is row `first` of a panel. */
QATTN_INLINE void add_seen_products(const product_task *task, const float *x, size_t column, size_t lanes,
                                    bool transposed) {
    for (size_t r = 0; r < task->out_rows; r++) {
        for (size_t c = 0; c < lanes; c += QATTN_LANES) {
            f32x16 sum = f32x16_splat(0);
            for (size_t n = 0; n < task->inner; n++) {
                const size_t query = transposed ? n : r, key = transposed ? r : n;
                if (!(task->visible[query] >> key & 1)) continue;
                const f32x16 weight = f32x16_splat(task->weights[query * QATTN_KEY_BLOCK + key]);
                sum = f32x16_fma(weight, f32x16_load(x + n * lanes + c), sum);
            }
            float *const out = task->out + (ptrdiff_t)r * task->out_stride + column + c;
            const size_t left = task->columns - column - c;
            f32x16_store_first(out, left, f32x16_load_first(out, left, QATTN_FLOAT32) + sum, QATTN_FLOAT32);
        }
    }
}

/* The same in tiles, of `lanes` columns of a panel whose rows are `row_stride` apart. */
QATTN_INLINE void add_tile_products(const product_task *task, const float *x, size_t row_stride, size_t column,
                                    size_t lanes, bool transposed) {
    const size_t inner_step = transposed ? QATTN_KEY_BLOCK : 1, row_step = transposed ? 1 : QATTN_KEY_BLOCK;
    for (size_t r = 0, height; r < task->out_rows; r += height) {
        const size_t rows = task->out_rows - r, columns = task->columns - column;
        const product_function function = product_function_of(lanes / QATTN_LANES, rows, transposed, &height);
        const inner_range seen = seen_range(task, r, height, transposed);
        if (seen.begin == seen.end) continue;
        const float *const weights = task->weights + seen.begin * inner_step + r * row_step;
        float *const out = task->out + (ptrdiff_t)r * task->out_stride + column;
        const size_t count = seen.end - seen.begin;
        if (rows >= height && columns >= lanes)
            function(weights, x + seen.begin * row_stride, row_stride, count, out, task->out_stride);
        else
            product_tile_at_edge(function, weights, x + seen.begin * row_stride, row_stride, count, out,
                                 task->out_stride, qattn_min(rows, height), qattn_min(columns, lanes), lanes);
    }
}

/* out += the products of a block; panels outside, so that their part of the rows stays in L1. */
QATTN_INLINE void add_products(const product_task *task, bool transposed) {
    const size_t all_lanes = qattn_round_up(task->columns, QATTN_LANES);
    const bool dense = !task->visible || QATTN_FUNCTION(are_finite)(task->rows, task->first);
    for (size_t column = 0, lanes; column < all_lanes; column += lanes) {
        lanes = panel_lanes(all_lanes - column);
        const float *const x = task->rows->base + column * task->rows->height + task->first * lanes;
        const size_t at_once = QATTN_VECTORS == PANEL_VECTORS ? lanes : QATTN_LANES;
        if (!dense) add_seen_products(task, x, column, lanes, transposed);
        for (size_t c = 0; dense && c < lanes; c += at_once)
            add_tile_products(task, x + c, lanes, column + c, at_once, transposed);
    }
}

QATTN_NOINLINE void QATTN_FUNCTION(add_key_products)(const product_task *task) { add_products(task, true); }
QATTN_NOINLINE void QATTN_FUNCTION(add_query_products)(const product_task *task) { add_products(task, false); }

#endif
