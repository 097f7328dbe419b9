/* SPDX-License-Identifier: Apache-2.0 */
/* tile_size.h - the sizes that the kernels are cut to. Bits depend on QATTN_CHAINS alone, and on the sizes
 * of CKernels.h that are the arithmetic contract: QATTN_LANES, QATTN_CHANNEL_BLOCK, QATTN_INTEGER_CHANNELS,
 * QATTN_PAIR_SEGMENT, QATTN_KEY_BLOCK and QATTN_KEY_CHUNK. */
#ifndef QATTN_TILE_SIZE_H
#define QATTN_TILE_SIZE_H

#include "CKernels.h"

enum {
    /* Query rows of a register tile. With QATTN_VECTORS values of 16 keys beside each other it takes
     * 6 * 4 of 32 registers (AVX-512), 6 * 2 of 16 (AVX2), 6 * 4 of 32 (NEON). Lost: 4 rows, which take as long per row
     * (571 and 569 cycles at d 64) and read every block of keys and values half as often again. QATTN_QUERY_BLOCK is
     * 22 of them: with 16, 128 rows take two calls (2 % slower at d 32); with 32, d 256 loses 2 %; else no difference.
     * More in Documentation/Experiments.md. */
    TILE_ROWS = 6,
    BLOCK_VECTORS = QATTN_KEY_BLOCK / QATTN_LANES,
    PANEL_VECTORS = 4, /* columns of values, or of gradients, side by side */
    QUERY_TILES = QATTN_QUERY_BLOCK / TILE_ROWS,
    /* Tile instructions multiply 16 rows, of which two make a band, and dots 8, of which four do. Rows in bands are not cut
     * into tiles of six. */
    UNIT_ROWS = 16,
    BAND_ROWS = 2 * UNIT_ROWS,
    QUERY_UNITS = (QATTN_QUERY_BLOCK + UNIT_ROWS - 1) / UNIT_ROWS,
    /* Rows of a call, from which on they do. Caches in pairs: fewer rows are no faster by tiles where few keys begin a call. A
     * block of int8 is laid out anew for them. */
    LEAST_PAIR_BAND_ROWS = 3,
    LEAST_INTEGER_BAND_ROWS = TILE_ROWS + 1,
    /* Up to so many rows are bound by memory: 4 multiply-adds take less time than 4 bytes. */
    STREAMING_ROWS = 4,
    LEAST_DOT_BAND_ROWS = TILE_ROWS, /* five take as long by multiply-adds */
    /* A score is the sum of four chains: side by side where the registers hold them for all rows, else one after
     * another. */
    QATTN_CHAINS = 4
};

static inline size_t qattn_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t qattn_max(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t qattn_round_up(size_t x, size_t multiple) { return (x + multiple - 1) / multiple * multiple; }

/* Takes so many floats, in whole vectors, off a workspace of which `*floats` are taken: where they begin. */
static inline size_t qattn_take(size_t *floats, size_t count) {
    const size_t begin = *floats;
    *floats += qattn_round_up(count, QATTN_LANES);
    return begin;
}

/* Channels with which a packed key is filled up: those of int8 come in pairs, those of bfloat16 pairs in segments. */
static inline size_t qattn_channel_padding(size_t head_dim, qattn_storage storage) {
    if (storage == QATTN_BFLOAT16_PAIRS) return (size_t)-head_dim % QATTN_PAIR_SEGMENT;
    return storage == QATTN_INT8 ? head_dim % 2 : 0;
}

#endif
