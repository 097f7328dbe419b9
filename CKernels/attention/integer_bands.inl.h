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

/* What a band has in memory between the steps for one block. */
typedef struct integer_band {
    band band;
    band_block block;
    halved_sums sums[UNIT_ROWS];
    float scores[BAND_ROWS][QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
    char weights[BAND_ROWS][HALVES_BYTES] __attribute__((aligned(QATTN_ALIGNMENT)));
    float steps[BAND_ROWS];
} integer_band;

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
    for (size_t i = 0; i < filled_rows(ws); i++) {
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
QATTN_INLINE void halved_products(integer_band *band, const char *halves, size_t row_bytes, size_t segments,
                                  const char *fours, size_t vector_bytes, size_t vectors) {
    const unit_product x = {.a = halves,
                            .a_row = row_bytes,
                            .a_segment = HALVES_BYTES,
                            .a_second = BYTE_SEGMENT,
                            .segments = segments,
                            .second = true,
                            .matrices = 1,
                            .b = {fours},
                            .b_vector = vector_bytes,
                            .vectors = vectors,
                            .c = (char *)band->sums,
                            .c_row = sizeof *band->sums,
                            .c_second = offsetof(halved_sums, lower)};
    unit_sums(x, true);
}

QATTN_INLINE i32x16 joined_sum(const halved_sums *sums, size_t v) {
    return (i32x16)((sums->upper[v] << 8) + sums->lower[v]);
}

/* 1., up to the finished scores. */
QATTN_INLINE void integer_band_scores(const qattn_forward_args *args, const forward_workspace *ws, integer_band *x) {
    const size_t segments = byte_segments(args->blocks.head_dim), row_bytes = ws->head_lanes * sizeof(float);
    for (size_t unit = 0; unit < x->band.count; unit += UNIT_ROWS) {
        const size_t i = x->band.first + unit;
        const char *const halves = (const char *)ws->queries + i * row_bytes;
        for (size_t s = 0; s < segments; s += CHANNEL_SEGMENTS) {
            halved_products(x, halves + s * HALVES_BYTES, row_bytes, qattn_min(segments - s, CHANNEL_SEGMENTS),
                            ws->fours + s * UNIT_TILE_BYTES, segments * UNIT_TILE_BYTES, BLOCK_VECTORS);
            const bool last = s + CHANNEL_SEGMENTS >= segments;
            for (size_t r = 0; r < qattn_min(x->band.count - unit, UNIT_ROWS); r++) {
                QATTN_UNROLL
                for (size_t v = 0; v < BLOCK_VECTORS; v++) {
                    float *const score = x->block.scores[unit + r] + v * QATTN_LANES;
                    f32x16 sum = __builtin_convertvector(joined_sum(&x->sums[r], v), f32x16);
                    if (s) sum = f32x16_load(score) + sum;
                    if (last)
                        sum = integer_scores(sum, f32x16_load(x->block.parts.key_scales + v * QATTN_LANES),
                                             ws->query_steps[i + r]);
                    f32x16_store(score, sum);
                }
            }
        }
    }
    finish_band_scores(args, ws, &x->band, &x->block);
}

/* 2. */
QATTN_INLINE void integer_band_weights(const qattn_forward_args *args, const forward_workspace *ws, integer_band *x) {
    QATTN_FUNCTION(band_weights)(args, ws, &x->band, false, &x->block);
    for (size_t r = 0; r < x->band.count; r++) {
        float *const weights = x->block.scores[r];
        x->steps[r] = quantise_weights(weights, x->block.parts.value_scales, x->block.visible[r]);
        halve_segment((const char *)weights, x->weights[r]);
    }
}

/* 3. */
QATTN_INLINE void integer_band_values(const forward_workspace *ws, const char *fours, integer_band *x) {
    float *const out = ws->chunk.out + x->band.first * ws->value_lanes;
    for (size_t unit = 0; unit < x->band.count; unit += UNIT_ROWS) {
        for (size_t column = 0; column < ws->value_lanes; column += QATTN_KEY_BLOCK) {
            const size_t vectors = qattn_min((ws->value_lanes - column) / QATTN_LANES, BLOCK_VECTORS);
            halved_products(x, x->weights[unit], HALVES_BYTES, 1, fours + column * QATTN_KEY_BLOCK, UNIT_TILE_BYTES,
                            vectors);
            for (size_t r = unit; r < qattn_min(x->band.count, unit + UNIT_ROWS); r++) {
                for (size_t v = 0; v < vectors; v++)
                    add_integer_values(out + r * ws->value_lanes + column + v * QATTN_LANES, x->block.rescale[r],
                                       joined_sum(&x->sums[r - unit], v), x->steps[r]);
            }
        }
    }
}

/* One block against all bands; each asks for `lines` of `next`, the block to come. */
QATTN_NOINLINE void QATTN_FUNCTION(integer_bands)(const qattn_forward_args *args, forward_workspace *ws,
                                                  block_parts parts, size_t first_key, prefetch_cursor *next,
                                                  size_t lines) {
    integer_band x;
    if (ws->rows % UNIT_ROWS) memset(&x, 0, sizeof x); /* also rows that fill up a tile */
    x.block.first_key = first_key;
    x.block.parts = parts;
    x.block.scores = x.scores;
    lay_fours(ws, parts, args->blocks.head_dim);
    const char *const values = ws->fours + BLOCK_VECTORS * byte_segments(args->blocks.head_dim) * UNIT_TILE_BYTES;
    for (size_t first = 0; first < ws->rows; first += BAND_ROWS) {
        x.band = band_at(args, ws, first);
        x.block.all = 0;
        prefetch_lines(next, lines);
        prefetch_lines(&ws->upcoming, 2 * ws->upcoming_share);
        if (!range_bits(x.band.keys.any, first_key) || !band_sees(args, ws, &x.band, &x.block)) continue;
        integer_band_scores(args, ws, &x);
        unit_stay_awake();
        integer_band_weights(args, ws, &x);
        integer_band_values(ws, values, &x);
    }
}

#endif
