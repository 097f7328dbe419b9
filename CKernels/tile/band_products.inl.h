/* SPDX-License-Identifier: Apache-2.0 */
/* band_products.inl.h - products of the rows of a band by instructions that multiply pairs of bfloat16:
 *
 *     c = c + a b, of each segment of 32 elements as in pair_tiles.inl.h
 *
 * Tile instructions do by themselves what that asks for. A dot of AVX512-BF16 (pair_dot) adds two products to a sum, one
 * after the other, so pairs become those of two elements of one chain. b may be two matrices, one below the other: then what a
 * has for the second stands behind what it has for the first. */
#ifndef QATTN_BAND_PRODUCTS_INL_H
#define QATTN_BAND_PRODUCTS_INL_H

#include "tile/pair_tiles.inl.h"
#if defined(QATTN_TILE_UNIT)
#include "tile/unit_products.inl.h"
#else
#include "simd/pair_dot.h"
#endif

enum { BAND_MATRICES = 2 /* of b, at most */, FACTOR_SEGMENT_BYTES = SEGMENT * 2 /* of a row of a */ };

typedef struct band_product {
    const char *a;      /* of bfloat16 */
    size_t a_row, rows; /* bytes from row to row; rows that fill the last UNIT_ROWS are read, and written, too */
    size_t segments;    /* of each matrix of b */
    size_t matrices;
    const char *b[BAND_MATRICES]; /* in pairs */
    size_t b_vector, vectors;     /* bytes from 16 columns to the next 16, and how many of those */
    float *c;
    size_t c_step;
    bool adds; /* to what is in c, or to 0 */
} band_product;

#if defined(QATTN_TILE_UNIT)
_Static_assert(SEGMENT_BYTES == UNIT_TILE_BYTES && FACTOR_SEGMENT_BYTES == UNIT_ROW_BYTES, "segments are tiles");
_Static_assert(BAND_MATRICES == UNIT_MATRICES, "as many matrices");

QATTN_INLINE void band_sums(band_product x) {
    const size_t c_row = x.c_step * sizeof(float);
    const unit_product product = {.a = x.a,
                                  .a_row = x.a_row,
                                  .a_segment = FACTOR_SEGMENT_BYTES,
                                  .a_second = UNIT_ROWS * x.a_row,
                                  .segments = x.segments,
                                  .second = x.rows > UNIT_ROWS,
                                  .matrices = x.matrices,
                                  .b = {x.b[0], x.b[1]},
                                  .b_vector = x.b_vector,
                                  .vectors = x.vectors,
                                  .c = (char *)x.c,
                                  .c_row = c_row,
                                  .c_second = UNIT_ROWS * c_row,
                                  .adds = x.adds};
    unit_sums(product, false);
}
#else
#define unit_stay_awake() ((void)0)

/* Both chains of 8 rows and 16 columns take 16 registers, which is more than the 6 cycles that a dot takes. */
enum { DOT_ROWS = 8, DOT_SEGMENTS = 8 /* at once */, SEGMENT_PAIRS = SEGMENT / 2 };

_Static_assert(UNIT_ROWS % DOT_ROWS == 0, "rows that fill up are there, as for tiles");

/* The operands of up to 256 elements in the order of dots: all rows, and 16 columns. */
typedef struct dot_operands {
    uint32_t rows[BAND_ROWS][DOT_SEGMENTS][SEGMENT_PAIRS] __attribute__((aligned(QATTN_ALIGNMENT)));
    u32x16 columns[DOT_SEGMENTS][SEGMENT_PAIRS];
} dot_operands;

/* Segments [first, first + count) of all matrices, one behind the other. */
QATTN_INLINE void take_dot_rows(const band_product *x, size_t first, size_t count, dot_operands *to) {
    for (size_t i = 0; i < qattn_round_up(x->rows, DOT_ROWS); i++) {
        const char *row = x->a + i * x->a_row + first * FACTOR_SEGMENT_BYTES;
        for (size_t s = 0; s < count; s++, row += FACTOR_SEGMENT_BYTES) store_dot_order(to->rows[i][s], row);
    }
}

QATTN_INLINE void take_dot_columns(const band_product *x, size_t first, size_t count, size_t v, dot_operands *to) {
    for (size_t s = 0; s < count; s++) {
        const size_t matrix = (first + s) / x->segments, segment = (first + s) % x->segments;
        const char *const pairs = x->b[matrix] + v * x->b_vector + segment * SEGMENT_BYTES;
        QATTN_UNROLL
        for (size_t n = 0; n < SEGMENT_PAIRS; n += 2) {
            const u32x16 upper = *(const u32x16_unaligned *)(pairs + n * UNIT_PAIR_BYTES);
            const u32x16 lower = *(const u32x16_unaligned *)(pairs + (n + 1) * UNIT_PAIR_BYTES);
            to->columns[s][n] = upper << 16 | (lower & 0xffff);
            to->columns[s][n + 1] = (upper & 0xffff0000u) | lower >> 16;
        }
    }
}

/* sums = sums + (e + o) of DOT_ROWS rows from row r on, and 16 columns, of segment s. */
QATTN_INLINE void add_dot_segment(const dot_operands *x, size_t r, size_t s, f32x16 sums[DOT_ROWS]) {
    f32x16 even[DOT_ROWS], odd[DOT_ROWS];
    QATTN_UNROLL
    for (size_t i = 0; i < DOT_ROWS; i++) even[i] = odd[i] = f32x16_splat(0);
    QATTN_UNROLL
    for (size_t n = 0; n < SEGMENT_PAIRS; n += 2) {
        QATTN_UNROLL
        for (size_t i = 0; i < DOT_ROWS; i++) {
            even[i] = pair_dot(even[i], &x->rows[r + i][s][n], x->columns[s][n]);
            odd[i] = pair_dot(odd[i], &x->rows[r + i][s][n + 1], x->columns[s][n + 1]);
        }
    }
    QATTN_UNROLL
    for (size_t i = 0; i < DOT_ROWS; i++) sums[i] += even[i] + odd[i];
}

/* The same of `count` segments, to what is in c, or to 0: +0 + (e + o) is e + o, as neither chain is ever -0. */
QATTN_INLINE void add_dot_segments(const dot_operands *x, size_t r, size_t count, bool adds, float *c, size_t c_step) {
    f32x16 sums[DOT_ROWS];
    QATTN_UNROLL
    for (size_t i = 0; i < DOT_ROWS; i++) sums[i] = adds ? f32x16_load(c + i * c_step) : f32x16_splat(0);
    for (size_t s = 0; s < count; s++) add_dot_segment(x, r, s, sums);
    QATTN_UNROLL
    for (size_t i = 0; i < DOT_ROWS; i++) f32x16_store(c + i * c_step, sums[i]);
}

QATTN_NOINLINE void QATTN_FUNCTION(dot_products)(const band_product *x) {
    const size_t segments = x->segments * x->matrices;
    dot_operands operands;
    if (!x->vectors) return; /* of clipped softmax's first pass */
    for (size_t first = 0; first < segments; first += DOT_SEGMENTS) {
        const size_t count = qattn_min(segments - first, DOT_SEGMENTS);
        take_dot_rows(x, first, count, &operands);
        for (size_t v = 0; v < x->vectors; v++) {
            take_dot_columns(x, first, count, v, &operands);
            for (size_t r = 0; r < x->rows; r += DOT_ROWS) {
                float *const c = x->c + r * x->c_step + v * QATTN_LANES;
                add_dot_segments(&operands, r, count, x->adds || first, c, x->c_step);
            }
        }
    }
}

QATTN_INLINE void band_sums(band_product x) { QATTN_FUNCTION(dot_products)(&x); }
#endif

#endif
