/* SPDX-License-Identifier: Apache-2.0 */
/* pair_bands.inl.h - bands of rows over bfloat16 pairs by tile instructions or dots. The bits are those of pair_tiles.inl.h.
 *
 * A band meets the blocks of a chunk two at a time: scores and weights of the one, scores and weights of the other, and then
 * the values of both, whose sums are loaded and stored once. What it has in memory stays in L1. */
#ifndef QATTN_PAIR_BANDS_INL_H
#define QATTN_PAIR_BANDS_INL_H

#include "attention/band_rows.inl.h"
#include "simd/bf16_weights.h"
#include "tile/factor_products.inl.h"

enum { BAND_BLOCKS = BAND_MATRICES, MOST_BYTES_ASKED_FOR = 16384 };

/* What a band has in memory between the steps for two blocks. */
typedef struct pair_band {
    band band;
    bool scales_first;
    float factors[BAND_ROWS]; /* of scores; 1 where these have to be finished first */
    size_t count;             /* of blocks */
    bool has_sums;            /* of values; else what stands in their place is anything */
    band_block blocks[BAND_BLOCKS];
    float scores[BAND_ROWS][QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT))); /* of the block at hand */
    uint16_t weights[BAND_ROWS][BAND_BLOCKS][QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
} pair_band;

/* The band that begins with row `first`. Scores may be compared before they are scaled where the largest is that of the
 * largest sum. */
QATTN_INLINE void begin_pair_band(const qattn_forward_args *args, const forward_workspace *ws, size_t first,
                                  pair_band *x) {
    const float *const factors = ws->query_steps + first;
    x->band = band_at(args, ws, first);
    x->scales_first = ws->normaliser != QATTN_SOFTMAX || !scores_are_plain(&args->problem);
    for (size_t r = 0; r < x->band.count; r++) x->scales_first |= !(factors[r] > 0 && factors[r] < __builtin_inff());
    for (size_t r = 0; r < BAND_ROWS; r++) x->factors[r] = x->scales_first || r >= x->band.count ? 1 : factors[r];
    x->count = 0;
    for (size_t n = 0; n < BAND_BLOCKS; n++) x->blocks[n].all = 0, x->blocks[n].scores = x->scores;
}

/* 1. of a block, but for factors. */
QATTN_INLINE void pair_band_products(const forward_workspace *ws, const band *band, band_block *x) {
    const size_t segments = ws->head_lanes / SEGMENT;
    band_sums((band_product){.a = (const char *)(ws->queries + band->first * ws->head_lanes),
                             .a_row = ws->head_lanes * sizeof(float),
                             .rows = band->count,
                             .segments = segments,
                             .matrices = 1,
                             .b = {x->parts.keys},
                             .b_vector = segments * SEGMENT_BYTES,
                             .vectors = BLOCK_VECTORS,
                             .c = x->scores[0],
                             .c_step = QATTN_KEY_BLOCK});
}

/* Scores as they are compared: finished, or still without their factors. */
QATTN_INLINE void finish_pair_scores(const qattn_forward_args *args, const forward_workspace *ws, const pair_band *x,
                                     band_block *block) {
    for (size_t r = 0; r < x->band.count && x->scales_first; r++)
        scale_pair_scores(block->scores[r], block->scores[r], ws->query_steps[x->band.first + r]);
    finish_band_scores(args, ws, &x->band, block);
}

/* A run of memory to be asked for into L1, so many lines with each row. */
typedef struct lines_to_come {
    const char *at;
    size_t lines;
} lines_to_come;

/* The second half of 2. by softmax, of rows [first, end) against block n, rounded. */
QATTN_NOINLINE void QATTN_FUNCTION(pair_weights)(const forward_workspace *ws, pair_band *x, size_t n, size_t first,
                                                 size_t end, lines_to_come next) {
    const band_block *const block = &x->blocks[n];
    float *sum = ws->chunk.sum + (x->band.first + first) * QATTN_LANES;
    const char *at = next.at + first * next.lines * CACHE_LINE;
    for (size_t r = first; r < end; r++, sum += QATTN_LANES) {
        QATTN_NO_UNROLL
        for (size_t line = 0; line < next.lines; line++, at += CACHE_LINE) __builtin_prefetch(at, 0, 3);
        const f32x16 factor = f32x16_splat(x->factors[r]), reference = f32x16_splat(block->references[r]);
        f32x16 p[BLOCK_VECTORS];
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++)
            p[v] = f32x16_load(x->scores[r] + v * QATTN_LANES) * factor - reference;
        bf16x64_weights(p, x->weights[r][n]);
        add_to_sum(sum, block->rescale[r], p, BLOCK_VECTORS);
    }
}

/* 2. of block n by softmax: all maxima, which are long chains, before all weights. */
QATTN_INLINE void pair_band_softmax(const forward_workspace *ws, pair_band *x, size_t n, lines_to_come next) {
    const size_t rows = x->band.count;
    for (size_t r = 0; r < rows; r += UNIT_ROWS)
        unit_compared(ws, &x->band, r, f32x16_load(x->factors + r), &x->blocks[n]);
    for (size_t r = 0; r < rows; r += UNIT_ROWS) {
        unit_stay_awake();
        QATTN_FUNCTION(pair_weights)(ws, x, n, r, qattn_min(r + UNIT_ROWS, rows), next);
    }
}

/* 2. by another normaliser, of block n. */
QATTN_INLINE void pair_band_weights(const qattn_forward_args *args, const forward_workspace *ws, pair_band *x,
                                    size_t n) {
    band_block *const block = &x->blocks[n];
    QATTN_FUNCTION(band_weights)(args, ws, &x->band, true, block);
    for (size_t r = 0; r < x->band.count; r++) {
        for (size_t j = 0; j < QATTN_KEY_BLOCK; j += QATTN_LANES)
            f32x16_store_storage(x->weights[r][n] + j, f32x16_load(block->scores[r] + j), QATTN_BFLOAT16_PAIRS);
    }
}

/* The rows whose references have moved with a block, as bits. */
QATTN_INLINE uint32_t moved_rows(const band *band, const band_block *block) {
    uint32_t moved = 0;
    for (size_t r = 0; r < band->count; r += UNIT_ROWS)
        moved |= (~f32x16_equal_bits(f32x16_load(block->rescale + r), 1) & 0xffff) << r;
    return moved & ~(uint32_t)0 >> (BAND_ROWS - band->count);
}

/* 3. of blocks [first, end), whose values are finite. */
QATTN_INLINE void pair_band_values(const forward_workspace *ws, pair_band *x, size_t first, size_t end) {
    band_sums((band_product){.a = (const char *)x->weights[0][first],
                             .a_row = sizeof *x->weights,
                             .rows = x->band.count,
                             .segments = KEY_SEGMENTS,
                             .matrices = end - first,
                             .b = {x->blocks[first].parts.values, x->blocks[end - 1].parts.values},
                             .b_vector = VALUE_BYTES,
                             .vectors = ws->value_lanes / QATTN_LANES,
                             .c = ws->chunk.out + x->band.first * ws->value_lanes,
                             .c_step = ws->value_lanes,
                             .adds = x->has_sums});
    x->has_sums = true;
}

/* 3. of block n with values that are not finite: of each row what it sees. */
QATTN_NOINLINE void QATTN_FUNCTION(seen_band_values)(const forward_workspace *ws, pair_band *x, size_t n) {
    band_block *const block = &x->blocks[n];
    for (size_t r = 0; r < x->band.count; r++) {
        for (size_t j = 0; j < QATTN_KEY_BLOCK; j += QATTN_LANES)
            f32x16_store(block->scores[r] + j, f32x16_load_storage(x->weights[r][n] + j, QATTN_BFLOAT16));
    }
    const factor_product product = {.rows = x->band.count,
                                    .segments = KEY_SEGMENTS,
                                    .b = block->parts.values,
                                    .b_vector = VALUE_BYTES,
                                    .vectors = ws->value_lanes / QATTN_LANES,
                                    .c = ws->chunk.out + x->band.first * ws->value_lanes,
                                    .c_step = ws->value_lanes,
                                    .adds = x->has_sums};
    QATTN_FUNCTION(seen_factor_products)(&product, block->scores[0], block->visible, false);
    x->has_sums = true;
}

/* 3. of all blocks at hand: together, but for rows whose references have moved between them. */
QATTN_INLINE void pair_band_sums(const forward_workspace *ws, pair_band *x) {
    size_t first = 0; /* of those that are not summed yet */
    for (size_t n = 0; n < x->count; n++) {
        const band_block *const block = &x->blocks[n];
        const bool finite = !*not_finite(block->parts);
        uint32_t moved = moved_rows(&x->band, block);
        if (first < n && (moved || !finite)) {
            pair_band_values(ws, x, first, n);
            first = n;
        }
        for (; moved && x->has_sums; moved &= moved - 1) {
            const size_t r = (size_t)__builtin_ctz(moved);
            rescale_pair_sums(ws->chunk.out + (x->band.first + r) * ws->value_lanes, ws->value_lanes,
                              block->rescale[r]);
        }
        if (finite) continue;
        QATTN_FUNCTION(seen_band_values)(ws, x, n);
        first = n + 1;
    }
    if (first < x->count) pair_band_values(ws, x, first, x->count);
    x->count = 0;
}

/* The sums of a band that sees no key. */
QATTN_INLINE void clear_band_sums(const forward_workspace *ws, const band *band) {
    memset(ws->chunk.out + band->first * ws->value_lanes, 0, band->count * ws->value_lanes * sizeof(float));
}

/* 1. and 2. of block n. */
QATTN_INLINE void meet_pair_block(const qattn_forward_args *args, const forward_workspace *ws, pair_band *x, size_t n,
                                  lines_to_come next) {
    pair_band_products(ws, &x->band, &x->blocks[n]);
    finish_pair_scores(args, ws, x, &x->blocks[n]);
    if (ws->normaliser == QATTN_SOFTMAX) pair_band_softmax(ws, x, n, next);
    else pair_band_weights(args, ws, x, n);
}

/* What a block asks for while it is weighed, of the two that meet a band together: the first for the keys of the second, the
 * last for the values of the first. Nothing where L1 has no room for them beside what the band has in memory. */
QATTN_INLINE lines_to_come lines_after(const forward_workspace *ws, const band *band, const char *keys,
                                       const char *values) {
    const size_t key_bytes = ws->head_lanes / SEGMENT * SEGMENT_BYTES * BLOCK_VECTORS;
    const size_t value_bytes = ws->value_lanes / QATTN_LANES * VALUE_BYTES;
    const size_t bytes = key_bytes + value_bytes > MOST_BYTES_ASKED_FOR ? 0 : keys ? key_bytes : value_bytes;
    return (lines_to_come){keys ? keys : values, (bytes / CACHE_LINE + band->count - 1) / band->count};
}

/* Blocks [begin, end) against all bands; every band meets all of them before the next one does. With `fresh` they are the
 * first ones, and sums of values are not there yet. */
QATTN_NOINLINE void QATTN_FUNCTION(pair_bands)(const qattn_forward_args *args, forward_workspace *ws, size_t begin,
                                               size_t end, bool fresh) {
    pair_band x;
    if (ws->rows % UNIT_ROWS) memset(&x, 0, sizeof x); /* also rows that fill up a tile */
    for (size_t first = 0; first < ws->rows; first += BAND_ROWS) {
        begin_pair_band(args, ws, first, &x);
        x.has_sums = !fresh;
        for (size_t block = begin; block < end; block++) {
            band_block *const at = &x.blocks[x.count];
            at->first_key = block * QATTN_KEY_BLOCK;
            if (!range_bits(x.band.keys.any, at->first_key) || !band_sees(args, ws, &x.band, at)) continue;
            at->parts = block_number(args, ws, args->unpacked ? 0 : block);
            const bool more = x.count + 1 < BAND_BLOCKS && block + 1 < end;
            const char *const keys = more ? block_number(args, ws, block + 1).keys : NULL;
            prefetch_lines(&ws->upcoming, ws->upcoming_share);
            meet_pair_block(args, ws, &x, x.count, lines_after(ws, &x.band, keys, x.blocks[0].parts.values));
            prefetch_lines(&ws->upcoming, ws->upcoming_share); /* of the two tiles, one after the other */
            if (++x.count == BAND_BLOCKS) pair_band_sums(ws, &x);
        }
        pair_band_sums(ws, &x);
        if (!x.has_sums) clear_band_sums(ws, &x.band);
    }
}

#endif
