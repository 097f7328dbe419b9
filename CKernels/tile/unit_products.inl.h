/* SPDX-License-Identifier: Apache-2.0 */
/* unit_products.inl.h - products of many rows and columns by tile instructions, of bfloat16 or of bytes:
 *
 *     c = c + a b        c' = c' + a' b
 *
 * Each of a and a' is UNIT_ROWS rows: of bfloat16 one below the other, of bytes the upper and the lower halves of the
 * same integers. Four tiles of sums are two such pairs of 16 columns, and take four products for four loads. b may be two
 * matrices, one below the other: then what a has for the second stands behind what it has for the first. */
#ifndef QATTN_UNIT_PRODUCTS_INL_H
#define QATTN_UNIT_PRODUCTS_INL_H

#include "simd/tile_unit.h"
#include "tile/tile_size.h"

enum {
    UNIT_TILE_BYTES = 16 * UNIT_ROW_BYTES, /* of b: 16 columns of a segment */
    UNIT_MATRICES = 2                      /* of b, at most */
};

typedef struct unit_product {
    const char *a;                     /* a segment of a row is UNIT_ROW_BYTES */
    size_t a_row, a_segment, a_second; /* bytes from a row, or a segment, to the next, and from a to a' */
    size_t segments;                   /* of each matrix of b */
    bool second;                       /* whether there is a' */
    size_t matrices;
    const char *b[UNIT_MATRICES];
    size_t b_vector, vectors; /* bytes from 16 columns to the next 16, and how many of those */
    char *c;                  /* of 32 bits */
    size_t c_row, c_second;
    bool adds; /* to what is in c and c', or to 0 */
} unit_product;

/* Constants of the code that sums one or two vectors of columns. */
typedef struct unit_kind {
    bool bytes, second, wide; /* whether there is a', and a second vector */
} unit_kind;

/* The sums in tiles and the products of so many segments, where a and b begin. */
QATTN_INLINE void unit_segments(const unit_product *x, unit_kind kind, const char *a, const char *b) {
    for (size_t s = 0; s < x->segments; s++, a += x->a_segment, b += UNIT_TILE_BYTES) {
        unit_load(4, a, x->a_row);
        unit_stream(6, b, UNIT_ROW_BYTES);
        if (kind.bytes) unit_multiply_signed(0, 4, 6);
        else unit_multiply(0, 4, 6);
        if (kind.second) {
            unit_load(5, a + x->a_second, x->a_row);
            if (kind.bytes) unit_multiply_unsigned(2, 5, 6);
            else unit_multiply(2, 5, 6);
        }
        if (!kind.wide) continue;
        unit_stream(7, b + x->b_vector, UNIT_ROW_BYTES);
        if (kind.bytes) unit_multiply_signed(1, 4, 7);
        else unit_multiply(1, 4, 7);
        if (!kind.second) continue;
        if (kind.bytes) unit_multiply_unsigned(3, 5, 7);
        else unit_multiply(3, 5, 7);
    }
}

/* From vector v on. */
QATTN_INLINE void unit_columns_of(const unit_product *x, unit_kind kind, size_t v) {
    char *const c = x->c + v * UNIT_ROW_BYTES, *const below = c + x->c_second;
    if (x->adds) {
        unit_load(0, c, x->c_row);
        if (kind.wide) unit_load(1, c + UNIT_ROW_BYTES, x->c_row);
        if (kind.second) unit_load(2, below, x->c_row);
        if (kind.second && kind.wide) unit_load(3, below + UNIT_ROW_BYTES, x->c_row);
    } else {
        unit_zero(0);
        if (kind.wide) unit_zero(1);
        if (kind.second) unit_zero(2);
        if (kind.second && kind.wide) unit_zero(3);
    }
    for (size_t n = 0; n < x->matrices; n++)
        unit_segments(x, kind, x->a + n * x->segments * x->a_segment, x->b[n] + v * x->b_vector);
    unit_store(0, c, x->c_row);
    if (kind.wide) unit_store(1, c + UNIT_ROW_BYTES, x->c_row);
    if (kind.second) unit_store(2, below, x->c_row);
    if (kind.second && kind.wide) unit_store(3, below + UNIT_ROW_BYTES, x->c_row);
}

/* All columns. */
QATTN_INLINE void unit_sums(unit_product product, bool bytes) {
    const unit_product *const x = &product;
    for (size_t v = 0; v < x->vectors; v += 2) {
        const bool wide = v + 1 < x->vectors;
        if (x->second && wide) unit_columns_of(x, (unit_kind){bytes, true, true}, v);
        else if (x->second) unit_columns_of(x, (unit_kind){bytes, true, false}, v);
        else if (wide) unit_columns_of(x, (unit_kind){bytes, false, true}, v);
        else unit_columns_of(x, (unit_kind){bytes, false, false}, v);
    }
}

#endif
