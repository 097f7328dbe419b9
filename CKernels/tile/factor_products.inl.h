/* SPDX-License-Identifier: Apache-2.0 */
/* factor_products.inl.h - the products of backward.inl.h where factors are of bfloat16, and of forward where some of b is not
 * finite: sums over segments of 32 elements in two chains, after pair_tiles.inl.h, in bands where the set has them.
 *
 *     c[i][n] = sum over d of a[i][d] b[d][n]
 *
 * a is a matrix of factors, bfloat16 for bands and float32 for multiply-adds; b stands in pairs of bfloat16, as
 * packed keys or values do. */
#ifndef QATTN_FACTOR_PRODUCTS_INL_H
#define QATTN_FACTOR_PRODUCTS_INL_H

#if defined(QATTN_BANDS)
#include "tile/band_products.inl.h"
#else
#include "tile/pair_tiles.inl.h"
#endif

#if defined(QATTN_BANDS)
typedef uint16_t factor;
enum { SUM_ROWS = BAND_ROWS }; /* of c at once */
#else
typedef float factor;
enum { SUM_ROWS = TILE_ROWS };
#endif

/* What is proportional to the gradient of the output, and its sums, stand so much higher. */
#define QATTN_GRADIENT_RAISE 0x1p48f
#define QATTN_GRADIENT_LOWER 0x1p-48f

/* Factors, so many from row to row and from element to element; bands want elements side by side. */
typedef struct factor_matrix {
    const factor *base;
    size_t row, element;
} factor_matrix;

typedef struct factor_product {
    factor_matrix a;
    size_t rows, segments;
    const char *b;
    size_t b_vector, vectors; /* bytes from 16 columns to the next 16, and how many of those */
    float *c;                 /* rows that fill the last SUM_ROWS are written, too */
    size_t c_step;
    bool adds; /* to what is in c, or to 0 */
} factor_product;

#if !defined(QATTN_BANDS)
QATTN_INLINE void make_factor_products(const factor_product *x, bool by_columns) {
    for (size_t r = 0; r < x->rows; r += SUM_ROWS) {
        const pair_product product = {.a = x->a.base + r * x->a.row,
                                      .a_step = by_columns ? 1 : x->a.row,
                                      .a_element = by_columns ? QATTN_KEY_BLOCK : 1,
                                      .segments = x->segments,
                                      .b = x->b,
                                      .b_bytes = x->b_vector,
                                      .vectors = x->vectors,
                                      .c = x->c + r * x->c_step,
                                      .c_step = x->c_step,
                                      .adds = x->adds};
        pair_products(&product, SUM_ROWS, false);
    }
}
#endif

QATTN_NOINLINE void QATTN_FUNCTION(factor_products)(const factor_product *x) {
#if defined(QATTN_BANDS)
    for (size_t r = 0; r < x->rows; r += SUM_ROWS) {
        band_sums((band_product){.a = (const char *)(x->a.base + r * x->a.row),
                                 .a_row = x->a.row * sizeof(factor),
                                 .rows = qattn_min(x->rows - r, SUM_ROWS),
                                 .segments = x->segments,
                                 .matrices = 1,
                                 .b = {x->b},
                                 .b_vector = x->b_vector,
                                 .vectors = x->vectors,
                                 .c = x->c + r * x->c_step,
                                 .c_step = x->c_step,
                                 .adds = x->adds});
    }
#else
    if (x->a.element == 1) make_factor_products(x, false);
    else make_factor_products(x, true);
#endif
}

/* The same, but what is not seen is left out: where some of b is not finite. Rows that fill the last TILE_ROWS are written,
 * too. a is Float on all sets: [row][64], or with `by_columns` [element][64], and bit j of visible[i] stands for a[i][j]. */
QATTN_NOINLINE void QATTN_FUNCTION(seen_factor_products)(const factor_product *x, const float *a,
                                                         const uint64_t *visible, bool by_columns) {
    for (size_t r = 0; r < x->rows; r += TILE_ROWS) {
        uint64_t seen[TILE_ROWS] = {0};
        for (size_t i = 0; i < qattn_min(x->rows - r, TILE_ROWS); i++) {
            if (!by_columns) seen[i] = visible[r + i];
            for (size_t n = 0; n < QATTN_KEY_BLOCK && by_columns; n++) seen[i] |= (visible[n] >> (r + i) & 1) << n;
        }
        const pair_product product = {.a = by_columns ? a + r : a + r * QATTN_KEY_BLOCK,
                                      .a_step = by_columns ? 1 : QATTN_KEY_BLOCK,
                                      .a_element = by_columns ? QATTN_KEY_BLOCK : 1,
                                      .segments = x->segments,
                                      .b = x->b,
                                      .b_bytes = x->b_vector,
                                      .vectors = x->vectors,
                                      .visible = seen,
                                      .c = x->c + r * x->c_step,
                                      .c_step = x->c_step,
                                      .adds = x->adds};
        pair_products(&product, TILE_ROWS, true);
    }
}

#endif
