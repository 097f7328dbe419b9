/* SPDX-License-Identifier: Apache-2.0 */
/* tile_unit.h - the tile instructions of x86-64 (AMX), or with QATTN_EMULATED_TILES the same in plain C, for tests on
 * machines without them. A tile is up to 16 rows of 64 bytes; its number is a literal.
 *
 *     unit_load(t, p, step), unit_store(t, p, step)   rows `step` bytes apart
 *     unit_zero(t)
 *     unit_multiply(c, a, b)     c[m][n] += e + o, e = sum of a[m][2k] b[k][2n], o = sum of a[m][2k + 1] b[k][2n + 1]
 *
 * of bfloat16 into float32, the chains from +0 by fma, k ascending. The instruction takes subnormal numbers for 0 and
 * ignores the floating-point mode otherwise: with factors of tile/pair_tiles.inl.h there are none. */
#ifndef QATTN_TILE_UNIT_H
#define QATTN_TILE_UNIT_H

#include "simd/storage.h"

/* Tiles 0 to 3 are sums and 4 and 5 factors of UNIT_ROWS rows, 6 and 7 are 16 pairs of factors of 16 columns. */
enum { UNIT_ROWS = 15, UNIT_ROW_BYTES = 64, UNIT_SUMS = 4, UNIT_FACTORS = 6, UNIT_TILES = 8 };

QATTN_INLINE size_t unit_rows(size_t tile) { return tile < UNIT_FACTORS ? UNIT_ROWS : 16; }

#if defined(QATTN_EMULATED_TILES)
/* The state of a thread, and what would be a fault of the CPU: tiles that are used without being configured. */
static _Thread_local struct {
    bool configured;
    size_t products; /* so far */
    uint8_t bytes[UNIT_TILES][16][UNIT_ROW_BYTES];
} QATTN_FUNCTION(tiles);

static void QATTN_FUNCTION(unit_move)(size_t tile, char *p, size_t step, bool stores) {
    if (!QATTN_FUNCTION(tiles).configured) __builtin_trap();
    for (size_t r = 0; r < unit_rows(tile); r++) {
        uint8_t *const row = QATTN_FUNCTION(tiles).bytes[tile][r];
        memcpy(stores ? p + r * step : (char *)row, stores ? (char *)row : p + r * step, UNIT_ROW_BYTES);
    }
}

static void QATTN_FUNCTION(unit_multiply)(size_t c, size_t a, size_t b) {
    QATTN_FUNCTION(tiles).products++;
    if (!QATTN_FUNCTION(tiles).configured) __builtin_trap();
    for (size_t m = 0; m < UNIT_ROWS; m++) {
        f32x16 even = f32x16_splat(0), odd = f32x16_splat(0);
        for (size_t k = 0; k < 16; k++) {
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

#define unit_load(t, p, step)  QATTN_FUNCTION(unit_move)(t, (char *)(p), step, false)
#define unit_store(t, p, step) QATTN_FUNCTION(unit_move)(t, (char *)(p), step, true)
#define unit_zero(t)           memset(QATTN_FUNCTION(tiles).bytes[t], 0, sizeof QATTN_FUNCTION(tiles).bytes[t])
#define unit_multiply(c, a, b) QATTN_FUNCTION(unit_multiply)(c, a, b)

QATTN_INLINE void tile_unit_begin(void) { QATTN_FUNCTION(tiles).configured = true; }
QATTN_INLINE void tile_unit_end(void) { QATTN_FUNCTION(tiles).configured = false; }
#else
#define unit_load(t, p, step)  _tile_loadd(t, p, step)
#define unit_store(t, p, step) _tile_stored(t, p, step)
#define unit_zero(t)           _tile_zero(t)
#define unit_multiply(c, a, b) _tile_dpbf16ps(c, a, b)

/* Of the calling thread, for one call: a thread that keeps tiles takes longer to switch. */
QATTN_INLINE void tile_unit_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (size_t t = 0; t < UNIT_TILES; t++) {
        shapes.row_bytes[t] = UNIT_ROW_BYTES;
        shapes.rows[t] = (uint8_t)unit_rows(t);
    }
    _tile_loadconfig(&shapes);
}

QATTN_INLINE void tile_unit_end(void) { _tile_release(); }
#endif

#endif
