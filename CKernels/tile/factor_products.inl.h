/* SPDX-License-Identifier: Apache-2.0 */
/* factor_products.inl.h - the products of backward.inl.h where factors are of bfloat16: sums over segments of 32 elements in
 * two chains, after pair_tiles.inl.h, by tile instructions where the set has them.
 *
 *     c[i][n] = sum over d of a[i][d] b[d][n]
 *
 * a is a matrix of factors, bfloat16 for tile instructions and float32 for multiply-adds; b stands in pairs of bfloat16, as
 * packed keys or values do. */
#ifndef QATTN_FACTOR_PRODUCTS_INL_H
#define QATTN_FACTOR_PRODUCTS_INL_H

#include "tile/pair_tiles.inl.h"
#if defined(QATTN_TILE_UNIT)
#include "tile/unit_products.inl.h"
#endif

#if defined(QATTN_TILE_UNIT)
typedef uint16_t factor;
enum { SUM_ROWS = 2 * UNIT_BLOCK_ROWS, SUM_VECTORS = 2 /* of c at once */ };
#else
typedef float factor;
enum { SUM_ROWS = TILE_ROWS, SUM_VECTORS = PANEL_VECTORS };
#endif

/* What is proportional to the gradient of the output stands so much higher until it is summed. */
#define QATTN_GRADIENT_RAISE 0x1p48f
#define QATTN_GRADIENT_LOWER 0x1p-48f

/* Factors, so many from row to row and from element to element; tile instructions want elements side by side. */
typedef struct factor_matrix {
    const factor *base;
    size_t row, element;
} factor_matrix;

typedef struct factor_product {
    factor_matrix a;
    size_t segments;
    const char *b;
    size_t b_vector, vectors; /* bytes from 16 columns to the next 16, and how many of those */
} factor_product;

#if !defined(QATTN_TILE_UNIT)
/* SUM_ROWS rows; of an unpacked a elements side by side are a constant. */
static __attribute__((noinline)) void QATTN_FUNCTION(row_factor_products)(const pair_product *product) {
    pair_product x = *product;
    x.a_element = 1;
    pair_products(&x, SUM_ROWS, false);
}

static __attribute__((noinline)) void QATTN_FUNCTION(column_factor_products)(const pair_product *product) {
    pair_product x = *product;
    x.a_step = 1;
    x.a_element = QATTN_KEY_BLOCK;
    pair_products(&x, SUM_ROWS, false);
}
#endif

/* c of rows [r, r + SUM_ROWS), or as many of them as there are, in whole vectors [v, v + SUM_VECTORS): rows that fill the last
 * tile are written, too. */
QATTN_INLINE void make_factor_products(const factor_product *product, size_t r, size_t rows, size_t v, float *c,
                                       size_t c_step) {
    const size_t vectors = qattn_min(product->vectors - v, SUM_VECTORS);
    const factor *const a = product->a.base + r * product->a.row;
    const char *const b = product->b + v * product->b_vector;
#if defined(QATTN_TILE_UNIT)
    const unit_product x = {.a = (const char *)a,
                            .a_row = product->a.row * sizeof(factor),
                            .a_segment = UNIT_ROW_BYTES,
                            .a_second = UNIT_BLOCK_ROWS * product->a.row * sizeof(factor),
                            .segments = product->segments,
                            .second = rows - r > UNIT_BLOCK_ROWS,
                            .b = b,
                            .b_vector = product->b_vector,
                            .vectors = vectors,
                            .c = (char *)c,
                            .c_row = c_step * sizeof(float),
                            .c_second = UNIT_BLOCK_ROWS * c_step * sizeof(float)};
    unit_columns(&x, false, 0);
#else
    (void)rows;
    const pair_product x = {.a = a,
                            .a_step = product->a.row,
                            .segments = product->segments,
                            .b = b,
                            .b_bytes = product->b_vector,
                            .vectors = vectors,
                            .c = c,
                            .c_step = c_step};
    if (product->a.element == 1) QATTN_FUNCTION(row_factor_products)(&x);
    else QATTN_FUNCTION(column_factor_products)(&x);
#endif
}

/* Sums that join the caller's: out[i][n] = out[i][n] + c[i][n] * 2^-48. */
typedef struct factor_sums {
    factor_product product;
    size_t rows, columns;
    float *out;
    ptrdiff_t out_stride;
} factor_sums;

/* Of rows [r, r + rows) and the columns of `vectors` vectors from v on. */
QATTN_INLINE void join_factor_sums(const factor_sums *sums, size_t r, size_t rows, size_t v, size_t vectors,
                                   const float *c, size_t c_step) {
    const size_t first = v * QATTN_LANES, columns = qattn_min(sums->columns - first, vectors * QATTN_LANES);
    const f32x16 lower = f32x16_splat(QATTN_GRADIENT_LOWER);
    float *out = sums->out + (ptrdiff_t)r * sums->out_stride + first;
    for (size_t i = 0; i < rows; i++, out += sums->out_stride, c += c_step) {
        size_t n = 0;
        for (; n + QATTN_LANES <= columns; n += QATTN_LANES)
            f32x16_store(out + n, f32x16_load(out + n) + f32x16_load(c + n) * lower);
        if (n == columns) continue;
        const f32x16 before = f32x16_load_first(out + n, columns - n, QATTN_FLOAT32);
        f32x16_store_first(out + n, columns - n, before + f32x16_load(c + n) * lower, QATTN_FLOAT32);
    }
}

/* Sums of SUM_ROWS x SUM_VECTORS vectors at a time. The next are made before the last ones join, since tile instructions take
 * long to finish. */
static __attribute__((noinline)) void QATTN_FUNCTION(add_factor_sums)(const factor_sums *sums) {
    enum { STEP = SUM_VECTORS * QATTN_LANES };
    float c[2][SUM_ROWS * STEP] __attribute__((aligned(QATTN_ALIGNMENT)));
    const size_t vectors = sums->product.vectors;
    size_t last_r = 0, last_v = 0, last_rows = 0;
    for (size_t r = 0, n = 0; r < sums->rows; r += SUM_ROWS) {
        for (size_t v = 0; v < vectors; v += SUM_VECTORS, n ^= 1) {
            make_factor_products(&sums->product, r, sums->rows, v, c[n], STEP);
            join_factor_sums(sums, last_r, last_rows, last_v, qattn_min(vectors - last_v, SUM_VECTORS), c[n ^ 1], STEP);
            last_r = r;
            last_v = v;
            last_rows = qattn_min(sums->rows - r, SUM_ROWS);
        }
        if (r + SUM_ROWS >= sums->rows)
            join_factor_sums(sums, last_r, last_rows, last_v, qattn_min(vectors - last_v, SUM_VECTORS), c[n ^ 1], STEP);
    }
}

/* The same where some of b is not finite: what is not seen is left out. a is Float on all sets: [row][64], or with
 * `by_elements` [element][64], and bit j of visible[i] stands for a[i][j]. */
static __attribute__((noinline)) void QATTN_FUNCTION(add_seen_factor_sums)(const factor_sums *sums, const float *a,
                                                                           const uint64_t *visible, bool by_elements) {
    enum { STEP = PANEL_VECTORS * QATTN_LANES };
    float c[TILE_ROWS * STEP] __attribute__((aligned(QATTN_ALIGNMENT)));
    for (size_t r = 0; r < sums->rows; r += TILE_ROWS) {
        const size_t rows = qattn_min(sums->rows - r, TILE_ROWS);
        uint64_t seen[TILE_ROWS] = {0};
        for (size_t i = 0; i < rows; i++) {
            if (!by_elements) seen[i] = visible[r + i];
            for (size_t n = 0; n < QATTN_KEY_BLOCK && by_elements; n++) seen[i] |= (visible[n] >> (r + i) & 1) << n;
        }
        for (size_t v = 0, vectors; v < sums->product.vectors; v += vectors) {
            vectors = qattn_min(sums->product.vectors - v, PANEL_VECTORS);
            const pair_product x = {.a = by_elements ? a + r : a + r * QATTN_KEY_BLOCK,
                                    .a_step = by_elements ? 1 : QATTN_KEY_BLOCK,
                                    .a_element = by_elements ? QATTN_KEY_BLOCK : 1,
                                    .segments = sums->product.segments,
                                    .b = sums->product.b + v * sums->product.b_vector,
                                    .b_bytes = sums->product.b_vector,
                                    .vectors = vectors,
                                    .visible = seen,
                                    .c = c,
                                    .c_step = STEP};
            pair_products(&x, TILE_ROWS, true);
            join_factor_sums(sums, r, rows, v, vectors, c, STEP);
        }
    }
}

#endif
