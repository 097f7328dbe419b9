/* SPDX-License-Identifier: Apache-2.0 */
/* prepare_backward.inl.h - from the gradients of prepared rows to those of the rows, of the norm's gain and of its shift.
 *
 *     g = gradient of a prepared row
 *     g = g turned back by the row's cosines and sines, or what CoCA's forms have in place of that
 *     h = g gain,   dx = (h - z mean(h z) - mean(h)) factor          z the row normalised; mean(h) for layer norms alone
 *     dgain = sum over rows of g z,   dshift = sum over rows of g
 *
 * Every operation is in Documentation/Numerics.md. A row whose g is 0 is not read. */
#ifndef QATTN_PREPARE_BACKWARD_INL_H
#define QATTN_PREPARE_BACKWARD_INL_H

#include "attention/prepare.inl.h"

/* Rows of the workspace, each of dim rounded up to whole vectors. */
typedef struct gradient_scratch {
    float *gradient, *normalised, *prepared; /* g; z; z gain + shift, which CoCA's gradients read */
    float *gain_sum, *shift_sum;             /* of the block of rows at hand */
} gradient_scratch;

_Static_assert(sizeof(gradient_scratch) == QATTN_PREPARE_BACKWARD_ROWS * sizeof(float *), "rows of the workspace");

QATTN_INLINE gradient_scratch cut_gradient_scratch(const qattn_prepare_backward_args *args) {
    const size_t lanes = qattn_round_up(args->prepare.dim, QATTN_LANES);
    float *const at = args->workspace;
    return (gradient_scratch){at, at + lanes, at + 2 * lanes, at + 3 * lanes, at + 4 * lanes};
}

QATTN_INLINE bool row_is_zero(const float *row, size_t dim) {
    for (size_t d = 0; d < dim; d += QATTN_LANES) {
        const f32x16 x = f32x16_load_first(row + d, dim - d, QATTN_FLOAT32);
        if (f32x16_equal_bits(x, 0) != 0xffff) return false;
    }
    return true;
}

/* The gradient of 16 pairs x, from that of what they became. */
QATTN_INLINE pair_lanes pair_gradients(pair_lanes x, pair_lanes g, f32x16 c, f32x16 s, qattn_rotation rotation) {
    const pair_lanes back = rotate_pairs(g, c, -s);
    switch (rotation) {
    case QATTN_ROTATED: return back;
    case QATTN_SLACK_QUERY: {
        const pair_lanes y = rotate_pairs(x, c, s);
        const pair_lanes t = rotate_pairs((pair_lanes){x.first * g.first, x.second * g.second}, c, -s);
        return (pair_lanes){f32x16_fma(y.first, g.first, t.first), f32x16_fma(y.second, g.second, t.second)};
    }
    case QATTN_STRICT_QUERY: return (pair_lanes){(x.first + x.first) * back.first, (x.second + x.second) * back.first};
    default: break;
    }
    const f32x16 mean = (x.first + x.second) * f32x16_splat(0.5f);
    const f32x16 sum = (rotation == QATTN_STRICT_KEY ? back.first : back.first + back.second) * f32x16_splat(0.5f);
    const f32x16 half = mean <= f32x16_splat(0) ? f32x16_splat(0) : sum;
    return (pair_lanes){half, half};
}

/* g in place, from the row that was turned. */
QATTN_INLINE void turn_back(const qattn_prepare_args *args, const void *row, qattn_storage storage, const float *table,
                            float *g) {
    const size_t pairs = args->pairs, lanes = qattn_round_up(pairs, QATTN_LANES);
    for (size_t j = 0; j < pairs; j += QATTN_LANES) {
        const size_t n = qattn_min(pairs - j, QATTN_LANES);
        const pair_lanes x = load_pairs(row, j, n, pairs, args->pairing, storage);
        const pair_lanes turned = load_pairs(g, j, n, pairs, args->pairing, QATTN_FLOAT32);
        const f32x16 c = f32x16_load(table + j), s = f32x16_load(table + lanes + j);
        store_pairs(g, j, n, pairs, pair_gradients(x, turned, c, s, args->rotation), args->pairing);
    }
}

/* The block's sums of gain and shift take up a row. */
QATTN_INLINE void add_parameters(const qattn_prepare_backward_args *args, const gradient_scratch *scratch) {
    const size_t lanes = qattn_round_up(args->prepare.dim, QATTN_LANES);
    for (size_t d = 0; d < lanes; d += QATTN_LANES) {
        const f32x16 g = f32x16_load(scratch->gradient + d), z = f32x16_load(scratch->normalised + d);
        f32x16_store(scratch->gain_sum + d, f32x16_fma(g, z, f32x16_load(scratch->gain_sum + d)));
        f32x16_store(scratch->shift_sum + d, f32x16_load(scratch->shift_sum + d) + g);
    }
}

/* g in place, from the row normalised. */
QATTN_INLINE void norm_back(const qattn_prepare_args *args, const float *z, float factor, float *g) {
    const size_t dim = args->dim;
    f32x16 sum = f32x16_splat(0), products = f32x16_splat(0);
    for (size_t d = 0; d < dim; d += QATTN_LANES) {
        f32x16 h = f32x16_load(g + d);
        if (args->gain) h = h * f32x16_load_first(args->gain + d, dim - d, QATTN_FLOAT32);
        h = f32x16_first(h, dim - d);
        f32x16_store(g + d, h);
        sum = sum + h;
        products = f32x16_fma(h, f32x16_load(z + d), products);
    }
    const f32x16 mean = f32x16_splat(args->norm == QATTN_LAYER_NORM ? f32x16_sum(sum) / (float)dim : 0);
    const f32x16 slope = f32x16_splat(f32x16_sum(products) / (float)dim);
    for (size_t d = 0; d < dim; d += QATTN_LANES)
        f32x16_store(g + d, (f32x16_fma(-f32x16_load(z + d), slope, f32x16_load(g + d)) - mean) * factor);
}

/* g of one row, in the workspace, becomes the gradient of the row. */
QATTN_INLINE void row_backward(const qattn_prepare_backward_args *args, const gradient_scratch *scratch,
                               const void *row, const float *table) {
    const qattn_prepare_args *const prepare = &args->prepare;
    const size_t dim = prepare->dim, lanes = qattn_round_up(dim, QATTN_LANES);
    float *const g = scratch->gradient;
    const bool is_normalised = prepare->norm != QATTN_NO_NORM;
    float factor = 1;
    if (is_normalised) {
        memset(scratch->normalised + dim, 0, (lanes - dim) * sizeof(float));
        factor = standardise_row(prepare, row, scratch->normalised);
    }
    if (prepare->pairs) {
        if (is_normalised) gain_and_shift(prepare, scratch->normalised, scratch->prepared);
        turn_back(prepare, is_normalised ? scratch->prepared : row, is_normalised ? QATTN_FLOAT32 : prepare->storage,
                  table, g);
    }
    if (!is_normalised) return;
    if (row_is_zero(g, dim)) {
        memset(g, 0, lanes * sizeof(float));
        return;
    }
    if (args->gain_gradient || args->shift_gradient) add_parameters(args, scratch);
    norm_back(prepare, scratch->normalised, factor, g);
}

/* The sums of a block of rows join the caller's, -0 counting as +0, and begin anew. */
QATTN_INLINE void join_sums(float *total, float *sums, size_t dim) {
    if (total)
        for (size_t d = 0; d < dim; d++) total[d] = total[d] + 0.0f + sums[d];
    memset(sums, 0, dim * sizeof(float));
}

static void QATTN_FUNCTION(prepare_backward)(const qattn_prepare_backward_args *args) {
    const qattn_prepare_args *const prepare = &args->prepare;
    const size_t dim = prepare->dim, lanes = qattn_round_up(dim, QATTN_LANES);
    const size_t table_floats = 2 * qattn_round_up(prepare->pairs, QATTN_LANES);
    assert(prepare->storage != QATTN_INT8 && 2 * prepare->pairs <= dim);
    const gradient_scratch scratch = cut_gradient_scratch(args);
    memset(scratch.gradient, 0, QATTN_PREPARE_BACKWARD_ROWS * lanes * sizeof(float));
    for (size_t r = 0; r < prepare->count; r++) {
        memcpy(scratch.gradient, args->gradients + (ptrdiff_t)r * args->gradient_stride, dim * sizeof(float));
        if (row_is_zero(scratch.gradient, dim)) memset(scratch.gradient, 0, dim * sizeof(float));
        else
            row_backward(args, &scratch, storage_at(prepare->rows, (ptrdiff_t)r * prepare->stride, prepare->storage),
                         prepare->tables + r * table_floats);
        char *const out = (char *)args->row_gradients + (ptrdiff_t)r * args->row_gradient_stride *
                                                            (ptrdiff_t)storage_size(args->row_gradient_storage);
        for (size_t d = 0; d < dim; d += QATTN_LANES) {
            char *const at = out + d * storage_size(args->row_gradient_storage);
            f32x16 before = f32x16_splat(0); /* +0, also where -0 stands: so is a gradient of 0 */
            if (args->accumulates) before = f32x16_load_first(at, dim - d, args->row_gradient_storage) + before;
            f32x16_store_first(at, dim - d, before + f32x16_load(scratch.gradient + d), args->row_gradient_storage);
        }
        if (r + 1 < prepare->count && (r + 1) % QATTN_KEY_BLOCK != 0) continue;
        join_sums(args->gain_gradient, scratch.gain_sum, dim);
        join_sums(args->shift_gradient, scratch.shift_sum, dim);
    }
}

#endif
