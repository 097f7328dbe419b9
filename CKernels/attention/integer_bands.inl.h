/* SPDX-License-Identifier: Apache-2.0 */
/* integer_bands.inl.h - bands of rows over int8 by tile instructions. The bits are those of integer_tiles.inl.h, whose
 * sums are exact in any order.
 *
 *     n = 256 h + l,  h from -128 to 127, l from 0 to 255:       sum of n x = 256 (sum of h x) + (sum of l x)
 *
 * Keys and values stand in pairs in a block, the unit takes them in fours: a block is laid out anew for all its bands. */
#ifndef QATTN_INTEGER_BANDS_INL_H
#define QATTN_INTEGER_BANDS_INL_H

#include "attention/band_rows.inl.h"
#include "attention/steps.inl.h"
#include "tile/unit_products.inl.h"

enum {
    BYTE_SEGMENT = UNIT_ROW_BYTES,   /* channels, or keys, of a product */
    HALVES_BYTES = 2 * BYTE_SEGMENT, /* the upper, then the lower halves of a segment's integers */
    CHANNEL_SEGMENTS = QATTN_INTEGER_CHANNELS / BYTE_SEGMENT
};
_Static_assert(BYTE_SEGMENT == QATTN_KEY_BLOCK, "the keys of a block are one segment");

/* The sums of a row with 64 columns: of the upper halves of its integers, and of the lower ones. */
typedef struct halved_sums {
    u32x16 upper[BLOCK_VECTORS], lower[BLOCK_VECTORS];
} halved_sums;

/* What a band leaves in memory between the steps for one block. */
typedef struct integer_rows {
    halved_sums sums[UNIT_ROWS];
    float scores[BAND_ROWS][QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT))); /* but for their factors */
    char weights[BAND_ROWS][HALVES_BYTES] __attribute__((aligned(QATTN_ALIGNMENT)));    /* 0 where a tile sees no key */
    float rescale[BAND_ROWS], steps[BAND_ROWS];
} integer_rows;

QATTN_INLINE size_t byte_segments(size_t head_dim) {
    return (packed_channels(head_dim, QATTN_INT8) + BYTE_SEGMENT - 1) / BYTE_SEGMENT;
}

/* The halves of a segment of integers, also in their place. */
QATTN_INLINE void halve_segment(const char *integers, char *halves) {
    const i16x32 first = i16x32_load(integers), second = i16x32_load(integers + BYTE_SEGMENT);
    i16x32_store_halves(first, halves, halves + BYTE_SEGMENT);
    i16x32_store_halves(second, halves + BYTE_SEGMENT / 2, halves + BYTE_SEGMENT + BYTE_SEGMENT / 2);
}

/* The integers of all queries, in place; 0 up to a whole segment. */
QATTN_INLINE void halve_queries(const qattn_forward_args *args, const forward_workspace *ws) {
    const size_t bytes = byte_segments(args->blocks.head_dim) * HALVES_BYTES, used = ws->head_lanes * sizeof(int16_t);
    for (size_t i = 0; i < ws->tiles * TILE_ROWS; i++) {
        char *const query = (char *)(ws->queries + i * ws->head_lanes);
        memset(query + used, 0, bytes - used);
        for (size_t at = 0; at < bytes; at += HALVES_BYTES) halve_segment(query + at, query + at);
    }
}

/* `count` pairs of 16 columns in fours; 0 up to a whole segment. */
QATTN_INLINE char *fours_of_pairs(char *fours, const char *pairs, size_t count) {
    char *const end = fours + qattn_round_up(count * PAIR_BYTES, UNIT_TILE_BYTES);
    for (; count > 1; count -= 2, pairs += UNIT_ROW_BYTES, fours += UNIT_ROW_BYTES) i8x64_store_fours(fours, pairs);
    if (count) {
        char last[UNIT_ROW_BYTES] = {0};
        memcpy(last, pairs, PAIR_BYTES);
        i8x64_store_fours(fours, last);
        fours += UNIT_ROW_BYTES;
    }
    memset(fours, 0, (size_t)(end - fours));
    return end;
}

/* A block as the unit takes it: keys [4 groups][segments][16 fours of channels][16 keys][4], then values
 * [16 columns][16 fours of keys][16 columns][4]. */
QATTN_INLINE void lay_fours(const forward_workspace *ws, block_parts block, size_t head_dim) {
    const size_t pairs = packed_channels(head_dim, QATTN_INT8) / 2;
    char *fours = ws->fours;
    for (size_t v = 0; v < BLOCK_VECTORS; v++)
        fours = fours_of_pairs(fours, block.keys + v * pairs * PAIR_BYTES, pairs);
    fours_of_pairs(fours, block.values, ws->value_lanes / QATTN_LANES * KEY_PAIRS);
}

/* The sums of UNIT_ROWS rows with up to 64 columns, over at most QATTN_INTEGER_CHANNELS channels. */
QATTN_INLINE void halved_products(integer_rows *band, const char *halves, size_t row_bytes, size_t segments,
                                  const char *fours, size_t vector_bytes, size_t vectors) {
    const unit_product x = {.a = halves,
                            .a_row = row_bytes,
                            .a_segment = HALVES_BYTES,
                            .a_second = BYTE_SEGMENT,
                            .segments = segments,
                            .second = true,
                            .b = fours,
                            .b_vector = vector_bytes,
                            .vectors = vectors,
                            .c = (char *)band->sums,
                            .c_row = sizeof *band->sums,
                            .c_second = offsetof(halved_sums, lower)};
    for (size_t v = 0; v < vectors; v += 2) unit_columns(&x, true, v);
}

QATTN_INLINE i32x16 joined_sum(const halved_sums *sums, size_t v) {
    return (i32x16)((sums->upper[v] << 8) + sums->lower[v]);
}

/* 1. of the `rows` rows from row i on. */
QATTN_INLINE void band_scores(integer_rows *band, const forward_workspace *ws, size_t segments, size_t i, size_t rows) {
    const size_t row_bytes = ws->head_lanes * sizeof(float);
    for (size_t unit = 0; unit < rows; unit += UNIT_ROWS) {
        const char *const halves = (const char *)ws->queries + (i + unit) * row_bytes;
        for (size_t s = 0; s < segments; s += CHANNEL_SEGMENTS) {
            halved_products(band, halves + s * HALVES_BYTES, row_bytes, qattn_min(segments - s, CHANNEL_SEGMENTS),
                            ws->fours + s * UNIT_TILE_BYTES, segments * UNIT_TILE_BYTES, BLOCK_VECTORS);
            for (size_t r = 0; r < qattn_min(rows - unit, UNIT_ROWS); r++) {
                QATTN_UNROLL
                for (size_t v = 0; v < BLOCK_VECTORS; v++) {
                    float *const score = band->scores[unit + r] + v * QATTN_LANES;
                    const f32x16 channels = __builtin_convertvector(joined_sum(&band->sums[r], v), f32x16);
                    f32x16_store(score, s ? f32x16_load(score) + channels : channels);
                }
            }
        }
    }
}

/* 2. of a tile of `count` rows from row i on, the first of which is row `at` of the band. */
QATTN_INLINE void band_weights(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws,
                               integer_rows *band, size_t at, size_t i, size_t count, size_t block_first) {
    for (size_t r = 0; r < count; r++) {
        QATTN_UNROLL
        for (size_t j = 0; j < QATTN_KEY_BLOCK; j += QATTN_LANES)
            f32x16_store(task->scratch->weights + r * QATTN_KEY_BLOCK + j,
                         integer_scores(f32x16_load(band->scores[at + r] + j), f32x16_load(task->block.key_scales + j),
                                        task->query_steps[r]));
    }
    finish_tile_scores(task, args, ws->places + i, count, block_first);
    tile_weights(task, args, ws, i, count);
    for (size_t r = 0; r < count; r++) {
        float *const weights = task->scratch->weights + r * QATTN_KEY_BLOCK;
        band->rescale[at + r] = task->scratch->rescale[row_lane(r)];
        band->steps[at + r] = quantise_weights(weights, task->block.value_scales, task->scratch->visible[r]);
        halve_segment((const char *)weights, band->weights[at + r]);
    }
}

/* 3. of the `rows` rows whose sums begin at `out`. */
QATTN_INLINE void band_values(integer_rows *band, const forward_workspace *ws, const char *fours, float *out,
                              size_t rows) {
    for (size_t unit = 0; unit < rows; unit += UNIT_ROWS) {
        for (size_t column = 0; column < ws->value_lanes; column += QATTN_KEY_BLOCK) {
            const size_t vectors = qattn_min((ws->value_lanes - column) / QATTN_LANES, BLOCK_VECTORS);
            halved_products(band, band->weights[unit], HALVES_BYTES, 1, fours + column * QATTN_KEY_BLOCK,
                            UNIT_TILE_BYTES, vectors);
            for (size_t r = unit; r < qattn_min(rows, unit + UNIT_ROWS); r++) {
                for (size_t v = 0; v < vectors; v++)
                    add_integer_values(out + r * ws->value_lanes + column + v * QATTN_LANES, band->rescale[r],
                                       joined_sum(&band->sums[r - unit], v), band->steps[r]);
            }
        }
    }
}

/* One block against the band of tiles [first, end). */
static __attribute__((noinline)) void QATTN_FUNCTION(integer_band)(tile_task *task, const qattn_forward_args *args,
                                                                   const forward_workspace *ws, size_t first,
                                                                   size_t end, size_t block_first) {
    integer_rows band;
    const size_t row = first * TILE_ROWS, rows = qattn_min(end * TILE_ROWS, ws->rows) - row;
    const size_t segments = byte_segments(args->blocks.head_dim);
    band_scores(&band, ws, segments, row, rows);
    memset(band.weights, 0, sizeof band.weights);
    for (size_t r = 0; r < BAND_ROWS; r++)
        band.rescale[r] = 1, band.steps[r] = -0.0f; /* which leave sums as they are */
    bool some = false;
    for (size_t tile = first; tile < end; tile++) {
        if (!tile_sees(task, args, ws, tile, block_first)) continue;
        const size_t i = tile * TILE_ROWS;
        unit_stay_awake();
        band_weights(task, args, ws, &band, i - row, i, tile_height(ws, tile), block_first);
        some = true;
    }
    if (some)
        band_values(&band, ws, ws->fours + BLOCK_VECTORS * segments * UNIT_TILE_BYTES,
                    ws->chunk.out + row * ws->value_lanes, rows);
}

/* One block against all bands; each tile asks for `share` lines of `next`, the block to come. */
static __attribute__((noinline)) void QATTN_FUNCTION(integer_bands)(tile_task *task, const qattn_forward_args *args,
                                                                    forward_workspace *ws, size_t block_first,
                                                                    prefetch_cursor *next, size_t share) {
    lay_fours(ws, task->block, args->blocks.head_dim);
    for (size_t first = next_band(args, ws, 0, block_first); first < ws->tiles;
         first = next_band(args, ws, first + BAND_TILES, block_first)) {
        prefetch_lines(next, BAND_TILES * share);
        prefetch_lines(&ws->upcoming, BAND_TILES * ws->upcoming_share);
        QATTN_FUNCTION(integer_band)(task, args, ws, first, band_end(ws, first), block_first);
    }
}

#endif
