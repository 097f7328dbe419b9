/* SPDX-License-Identifier: Apache-2.0 */
/* prepare.inl.h - rows of queries or keys as scores multiply them: normalised, then rotated by their positions.
 *
 *     x = row,   or  (row - mean) / sqrt(variance + epsilon) * gain + shift,   or  the same without the mean
 *     rotation of a pair:  (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)
 *
 * The pairs of a row are (2j, 2j + 1), or (j, j + pairs); channels behind the pairs are not rotated. Every operation is
 * in Documentation/Numerics.md.
 *
 * References: Su et al., RoFormer, arXiv 2104.09864; Zhu et al., CoCA, arXiv 2309.08646; Henry et al., query-key
 * normalization, arXiv 2010.04245. */
#ifndef QATTN_PREPARE_INL_H
#define QATTN_PREPARE_INL_H

#include "simd/storage.h"
#include "tile/tile_size.h"

/* The sum of the lanes as a tree: r with r + 8, then r + 4, r + 2, r + 1. */
QATTN_INLINE float f32x16_sum(f32x16 x) {
    float lanes[QATTN_LANES];
    f32x16_store(lanes, x);
    for (size_t half = QATTN_LANES / 2; half > 0; half /= 2)
        for (size_t r = 0; r < half; r++) lanes[r] = lanes[r] + lanes[r + half];
    return lanes[0];
}

/* Lanes below n as they are, 0 in the others. */
QATTN_INLINE f32x16 f32x16_first(f32x16 x, size_t n) {
    return n >= QATTN_LANES ? x : f32x16_select((1u << n) - 1, x, f32x16_splat(0));
}

/* What a norm knows of a row times `scale`: (x scale - mean) factor is the row normalised. */
typedef struct row_moments {
    float scale, mean, variance; /* the last with epsilon */
} row_moments;

/* The moments of the row times a power of two. A scale that is the constant 1 costs nothing. */
QATTN_INLINE row_moments moments_of_row(const qattn_prepare_args *args, const void *row, float scale) {
    const qattn_storage storage = args->storage;
    const size_t dim = args->dim;
    float mean = 0;
    if (args->norm == QATTN_LAYER_NORM) {
        f32x16 sum = f32x16_splat(0);
        for (size_t d = 0; d < dim; d += QATTN_LANES)
            sum = sum + f32x16_load_first(storage_at(row, (ptrdiff_t)d, storage), dim - d, storage) * scale;
        mean = f32x16_sum(sum) / (float)dim;
    }
    f32x16 squares = f32x16_splat(0);
    for (size_t d = 0; d < dim; d += QATTN_LANES) {
        const f32x16 x = f32x16_load_first(storage_at(row, (ptrdiff_t)d, storage), dim - d, storage) * scale;
        const f32x16 centred = f32x16_first(x - f32x16_splat(mean), dim - d);
        squares = f32x16_fma(centred, centred, squares);
    }
    const float variance = f32x16_sum(squares) / (float)dim + args->epsilon * scale * scale;
    return (row_moments){.scale = scale, .mean = mean, .variance = variance};
}

/* out = the row of any type less its mean, times a factor, which is returned: out may be the row itself. */
QATTN_INLINE float standardise_row(const qattn_prepare_args *args, const void *row, float *out) {
    const qattn_storage storage = args->storage;
    const size_t dim = args->dim;
    row_moments moments = moments_of_row(args, row, 1);
    /* Sums of squares of elements near 2^64 overflow, those of elements near 2^-64 lose bits: such rows are taken times
     * a power of two, which is exact. */
    if (moments.variance < 0x1p-80f) moments = moments_of_row(args, row, 0x1p90f);
    else if (!(moments.variance < __builtin_inff())) moments = moments_of_row(args, row, 0x1p-80f);
    const f32x16 mean = f32x16_splat(moments.mean);
    const float factor = 1 / __builtin_elementwise_sqrt(moments.variance);
    for (size_t d = 0; d < dim; d += QATTN_LANES) {
        const f32x16 x = f32x16_load_first(storage_at(row, (ptrdiff_t)d, storage), dim - d, storage) * moments.scale;
        f32x16_store_first(out + d, dim - d, (x - mean) * f32x16_splat(factor), QATTN_FLOAT32);
    }
    return factor * moments.scale;
}

/* out = row gain + shift, each where there is one; out may be the row itself. */
QATTN_INLINE void gain_and_shift(const qattn_prepare_args *args, const float *row, float *out) {
    for (size_t d = 0; d < args->dim; d += QATTN_LANES) {
        const size_t n = args->dim - d;
        f32x16 y = f32x16_load_first(row + d, n, QATTN_FLOAT32);
        if (args->gain) y = y * f32x16_load_first(args->gain + d, n, QATTN_FLOAT32);
        if (args->shift) y = y + f32x16_load_first(args->shift + d, n, QATTN_FLOAT32);
        f32x16_store_first(out + d, n, y, QATTN_FLOAT32);
    }
}

/* out = the row of any type normalised; out may be the row itself. */
QATTN_INLINE void normalise_row(const qattn_prepare_args *args, const void *row, float *out) {
    standardise_row(args, row, out);
    if (args->gain || args->shift) gain_and_shift(args, out, out);
}

/* 16 pairs. */
typedef struct pair_lanes {
    f32x16 first, second;
} pair_lanes;

/* Pairs j ... j + n - 1 of a row of `pairs`; 0 behind them. */
QATTN_INLINE pair_lanes load_pairs(const void *row, size_t j, size_t n, size_t pairs, qattn_pairing pairing,
                                   qattn_storage storage) {
    if (pairing == QATTN_HALVES)
        return (pair_lanes){f32x16_load_first(storage_at(row, (ptrdiff_t)j, storage), n, storage),
                            f32x16_load_first(storage_at(row, (ptrdiff_t)(pairs + j), storage), n, storage)};
    const void *const at = storage_at(row, (ptrdiff_t)(2 * j), storage);
    const f32x16 a = f32x16_load_first(at, 2 * n, storage);
    const f32x16 b = 2 * n > QATTN_LANES
                         ? f32x16_load_first(storage_at(at, QATTN_LANES, storage), 2 * n - QATTN_LANES, storage)
                         : f32x16_splat(0);
    return (pair_lanes){
        __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
        __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31),
    };
}

QATTN_INLINE void store_pairs(float *row, size_t j, size_t n, size_t pairs, pair_lanes x, qattn_pairing pairing) {
    if (pairing == QATTN_HALVES) {
        f32x16_store_first(row + j, n, x.first, QATTN_FLOAT32);
        f32x16_store_first(row + pairs + j, n, x.second, QATTN_FLOAT32);
        return;
    }
    const f32x16 a = __builtin_shufflevector(x.first, x.second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const f32x16 b =
        __builtin_shufflevector(x.first, x.second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    f32x16_store_first(row + 2 * j, 2 * n, a, QATTN_FLOAT32);
    if (2 * n > QATTN_LANES) f32x16_store_first(row + 2 * j + QATTN_LANES, 2 * n - QATTN_LANES, b, QATTN_FLOAT32);
}

QATTN_INLINE pair_lanes rotate_pairs(pair_lanes x, f32x16 c, f32x16 s) {
    return (pair_lanes){f32x16_fma(x.first, c, -(x.second * s)), f32x16_fma(x.second, c, x.first * s)};
}

/* One value per pair, a vector along the first axis, rotated. */
QATTN_INLINE pair_lanes rotate_lengths(f32x16 length, f32x16 c, f32x16 s) {
    return (pair_lanes){length * c, length * s};
}

QATTN_INLINE pair_lanes turn_pairs(pair_lanes x, f32x16 c, f32x16 s, qattn_rotation rotation) {
    if (rotation == QATTN_ROTATED) return rotate_pairs(x, c, s);
    if (rotation == QATTN_SLACK_QUERY) {
        const pair_lanes turned = rotate_pairs(x, c, s);
        return (pair_lanes){x.first * turned.first, x.second * turned.second};
    }
    if (rotation == QATTN_STRICT_QUERY) return rotate_lengths(f32x16_fma(x.first, x.first, x.second * x.second), c, s);
    const f32x16 mean = (x.first + x.second) * f32x16_splat(0.5f);
    const f32x16 t = mean < f32x16_splat(0) ? f32x16_splat(0) : mean; /* NaN stays */
    return rotation == QATTN_STRICT_KEY ? rotate_lengths(t, c, s) : rotate_pairs((pair_lanes){t, t}, c, s);
}

/* out = the row rotated by its table; out may be the row itself. A constant `whole`, for multiples of 16 pairs, leaves
 * no test in the loop. */
QATTN_INLINE void rotate_row(const qattn_prepare_args *args, const void *row, const float *table, float *out,
                             qattn_rotation rotation, qattn_pairing pairing, qattn_storage storage, bool whole) {
    const size_t pairs = args->pairs, lanes = qattn_round_up(pairs, QATTN_LANES);
    for (size_t j = 0; j < pairs; j += QATTN_LANES) {
        const size_t n = whole ? QATTN_LANES : qattn_min(pairs - j, QATTN_LANES);
        const pair_lanes x = load_pairs(row, j, n, pairs, pairing, storage);
        const f32x16 c = f32x16_load(table + j), s = f32x16_load(table + lanes + j);
        store_pairs(out, j, n, pairs, turn_pairs(x, c, s, rotation), pairing);
    }
    if ((const void *)out == row) return;
    for (size_t d = 2 * pairs; d < args->dim; d += QATTN_LANES)
        f32x16_store_first(out + d, args->dim - d,
                           f32x16_load_first(storage_at(row, (ptrdiff_t)d, storage), args->dim - d, storage),
                           QATTN_FLOAT32);
}

QATTN_INLINE void prepare_rows(const qattn_prepare_args *args, qattn_rotation rotation, qattn_pairing pairing,
                               qattn_storage storage, bool whole) {
    const size_t table_floats = 2 * qattn_round_up(args->pairs, QATTN_LANES);
    for (size_t r = 0; r < args->count; r++) {
        const void *row = storage_at(args->rows, (ptrdiff_t)r * args->stride, storage);
        const float *table = args->tables + r * table_floats;
        float *out = args->out + (ptrdiff_t)r * args->out_stride;
        if (args->norm == QATTN_NO_NORM) {
            rotate_row(args, row, table, out, rotation, pairing, storage, whole);
        } else {
            normalise_row(args, row, out);
            rotate_row(args, out, table, out, rotation, pairing, QATTN_FLOAT32, whole);
        }
    }
}

static void QATTN_FUNCTION(prepare)(const qattn_prepare_args *args) {
    assert(args->storage != QATTN_INT8 && 2 * args->pairs <= args->dim);
    /* What models do most is compiled by itself; the rest looks up its kind as it goes. */
    if (args->rotation != QATTN_ROTATED || args->storage != QATTN_FLOAT32 || args->pairs % QATTN_LANES != 0)
        prepare_rows(args, args->rotation, args->pairing, args->storage, false);
    else if (args->pairing == QATTN_HALVES) prepare_rows(args, QATTN_ROTATED, QATTN_HALVES, QATTN_FLOAT32, true);
    else prepare_rows(args, QATTN_ROTATED, QATTN_INTERLEAVED, QATTN_FLOAT32, true);
}

#endif
