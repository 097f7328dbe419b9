/* SPDX-License-Identifier: Apache-2.0 */
/* tile_unit.h - the tile instructions of x86-64 (AMX), or with QATTN_EMULATED_TILES the same in plain C, for tests on
 * machines without them. A tile is up to 16 rows of 64 bytes; its number is a literal.
 *
 *     unit_load(t, p, step), unit_store(t, p, step)   rows `step` bytes apart
 *     unit_stream(t, p, step)                         a load of what is not used again soon, and need not stay in L1
 *     unit_zero(t)
 *     unit_multiply(c, a, b)     c[m][n] += e + o, e = sum of a[m][2k] b[k][2n], o = sum of a[m][2k + 1] b[k][2n + 1]
 *
 * of bfloat16 into float32, the chains from +0 by fma, k ascending. The instruction takes subnormal numbers for 0 and
 * ignores the floating-point mode otherwise: with factors of tile/pair_tiles.inl.h there are none.
 *
 *     unit_multiply_signed(c, a, b), unit_multiply_unsigned(c, a, b)     c[m][n] += sum of a[m][4k + i] b[k][4n + i]
 *
 * of bytes into 32 bits, i < 4, modulo 2^32: a is signed (TDPBSSD) or unsigned (TDPBUSD), b is signed. */
#ifndef QATTN_TILE_UNIT_H
#define QATTN_TILE_UNIT_H

#include "simd/storage.h"
#include "tile/tile_size.h"

/* Tiles 0 to 3 are sums; 4 and 5 factors, of as many rows; 6 and 7 are 16 pairs, or fours, of factors, of as many columns as
 * the sums. With a `rest`, 5 and 7 are what is left of a sum behind its whole segments. */
enum { UNIT_ROW_BYTES = 64, UNIT_COLUMN_BYTES = 4, UNIT_SUMS = 4, UNIT_FACTORS = 6, UNIT_TILES = 8 };

typedef struct unit_shape {
    size_t rows, columns; /* of sums, UNIT_ROWS and QATTN_LANES at most */
    size_t rest;          /* an even number of factors, or 0 */
} unit_shape;

QATTN_INLINE size_t unit_tile_rows(unit_shape shape, size_t tile) {
    if (tile < UNIT_FACTORS) return shape.rows;
    return tile > UNIT_FACTORS && shape.rest ? shape.rest / 2 : 16;
}

QATTN_INLINE size_t unit_tile_bytes(unit_shape shape, size_t tile) {
    if (tile < UNIT_SUMS || tile >= UNIT_FACTORS) return shape.columns * UNIT_COLUMN_BYTES;
    return tile > UNIT_SUMS && shape.rest ? shape.rest * 2 : UNIT_ROW_BYTES;
}

#if defined(QATTN_EMULATED_TILES)
/* The state of a thread, and what would be a fault of the CPU: tiles that are used without being configured. */
static _Thread_local struct {
    unit_shape shape; /* no rows before */
    size_t products;  /* so far */
    uint8_t bytes[UNIT_TILES][16][UNIT_ROW_BYTES];
} QATTN_FUNCTION(tiles);

static void QATTN_FUNCTION(unit_move)(size_t tile, char *p, ptrdiff_t step, bool stores) {
    const unit_shape shape = QATTN_FUNCTION(tiles).shape;
    if (!shape.rows) __builtin_trap();
    const size_t bytes = unit_tile_bytes(shape, tile);
    for (size_t r = 0; r < unit_tile_rows(shape, tile); r++, p += step) {
        uint8_t *const row = QATTN_FUNCTION(tiles).bytes[tile][r];
        memcpy(stores ? p : (char *)row, stores ? (char *)row : p, bytes);
    }
}

static void QATTN_FUNCTION(unit_multiply)(size_t c, size_t a, size_t b) {
    const unit_shape shape = QATTN_FUNCTION(tiles).shape;
    const size_t pairs = unit_tile_rows(shape, b);
    QATTN_FUNCTION(tiles).products++;
    if (!shape.rows || unit_tile_bytes(shape, a) != pairs * UNIT_COLUMN_BYTES) __builtin_trap();
    for (size_t m = 0; m < shape.rows; m++) {
        f32x16 even = f32x16_splat(0), odd = f32x16_splat(0);
        for (size_t k = 0; k < pairs; k++) {
            uint32_t pair;
            memcpy(&pair, QATTN_FUNCTION(tiles).bytes[a][m] + k * sizeof pair, sizeof pair);
            const uint8_t *const columns = QATTN_FUNCTION(tiles).bytes[b][k];
            even = f32x16_fma(f32x16_from_bits((u32x16)(pair << 16)), bf16x32_widen_half(columns, false), even);
            odd = f32x16_fma(f32x16_from_bits((u32x16)(pair & 0xffff0000u)), bf16x32_widen_half(columns, true), odd);
        }
        float *const sums = (float *)QATTN_FUNCTION(tiles).bytes[c][m];
        f32x16_store(sums, f32x16_load(sums) + (even + odd));
    }
}

static void QATTN_FUNCTION(unit_multiply_bytes)(size_t c, size_t a, size_t b, bool a_has_signs) {
    const unit_shape shape = QATTN_FUNCTION(tiles).shape;
    QATTN_FUNCTION(tiles).products++;
    if (!shape.rows || shape.rest) __builtin_trap();
    for (size_t m = 0; m < shape.rows; m++) {
        uint32_t sums[QATTN_LANES];
        memcpy(sums, QATTN_FUNCTION(tiles).bytes[c][m], sizeof sums);
        for (size_t d = 0; d < UNIT_ROW_BYTES; d++) {
            const uint8_t byte = QATTN_FUNCTION(tiles).bytes[a][m][d];
            const int factor = a_has_signs ? (int8_t)byte : byte;
            const uint8_t *const columns = QATTN_FUNCTION(tiles).bytes[b][d / 4] + d % 4;
            for (size_t n = 0; factor && n < QATTN_LANES; n++) sums[n] += (uint32_t)(factor * (int8_t)columns[4 * n]);
        }
        memcpy(QATTN_FUNCTION(tiles).bytes[c][m], sums, sizeof sums);
    }
}

#define unit_load(t, p, step)           QATTN_FUNCTION(unit_move)(t, (char *)(p), (ptrdiff_t)(step), false)
#define unit_stream(t, p, step)         unit_load(t, p, step)
#define unit_store(t, p, step)          QATTN_FUNCTION(unit_move)(t, (char *)(p), (ptrdiff_t)(step), true)
#define unit_zero(t)                    memset(QATTN_FUNCTION(tiles).bytes[t], 0, sizeof QATTN_FUNCTION(tiles).bytes[t])
#define unit_multiply(c, a, b)          QATTN_FUNCTION(unit_multiply)(c, a, b)
#define unit_multiply_signed(c, a, b)   QATTN_FUNCTION(unit_multiply_bytes)(c, a, b, true)
#define unit_multiply_unsigned(c, a, b) QATTN_FUNCTION(unit_multiply_bytes)(c, a, b, false)
#define unit_stay_awake()               ((void)0)

QATTN_INLINE void tile_unit_begin(unit_shape shape) { QATTN_FUNCTION(tiles).shape = shape; }
QATTN_INLINE void tile_unit_end(void) { QATTN_FUNCTION(tiles).shape.rows = 0; }
#else
#define unit_load(t, p, step)           _tile_loadd(t, p, step)
#define unit_stream(t, p, step)         _tile_stream_loadd(t, p, step)
#define unit_store(t, p, step)          _tile_stored(t, p, step)
#define unit_zero(t)                    _tile_zero(t)
#define unit_multiply(c, a, b)          _tile_dpbf16ps(c, a, b)
#define unit_multiply_signed(c, a, b)   _tile_dpbssd(c, a, b)
#define unit_multiply_unsigned(c, a, b) _tile_dpbusd(c, a, b)
#define unit_stay_awake()               _tile_dpbf16ps(0, 4, 6)

/* Of the calling thread, for one call: a thread that keeps tiles takes longer to switch. */
QATTN_INLINE void tile_unit_begin(unit_shape shape) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (size_t t = 0; t < UNIT_TILES; t++) {
        shapes.row_bytes[t] = (uint16_t)unit_tile_bytes(shape, t);
        shapes.rows[t] = (uint8_t)unit_tile_rows(shape, t);
    }
    _tile_loadconfig(&shapes);
}

QATTN_INLINE void tile_unit_end(void) { _tile_release(); }
#endif

/* Factors of bytes, made of what integer_tiles.inl.h multiplies. */
typedef int8_t i8x32 __attribute__((ext_vector_type(32)));

QATTN_INLINE i16x32 i16x32_load(const void *p) {
    i16x32 x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* n = 256 upper + lower, of 32 integers: the upper byte has the sign, the lower one none. */
QATTN_INLINE void i16x32_store_halves(i16x32 n, void *upper, void *lower) {
    *(i8x32_unaligned *)upper = __builtin_convertvector(n >> 8, i8x32);
    *(i8x32_unaligned *)lower = __builtin_convertvector(n, i8x32); /* which keeps the lower bytes */
}

/* fours[4r + i]: of 32 pairs of bytes, pair r for i < 2, and pair 16 + r behind it. */
QATTN_INLINE void i8x64_store_fours(void *fours, const void *pairs) {
    const i16x32 x = i16x32_load(pairs);
    const i16x32 y = __builtin_shufflevector(x, x, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                             10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    memcpy(fours, &y, sizeof y);
}

#endif
