/* SPDX-License-Identifier: Apache-2.0 */
/* pair_gradients.inl.h - backward.inl.h by products of bfloat16: "Products of bfloat16" of "The backward pass" in
 * Documentation/Numerics.md. A panel is one block of queries. What is proportional to dout, and its sums, stand 2^48
 * higher. */
#ifndef QATTN_PAIR_GRADIENTS_INL_H
#define QATTN_PAIR_GRADIENTS_INL_H

#include "attention/gradient_rows.inl.h"

/* Block `slot` of the group. */
QATTN_INLINE block_parts pair_block(qattn_blocks blocks, size_t slot) {
    return block_cut(&blocks, block_at(&blocks, slot, block_bytes(&blocks)), QATTN_BFLOAT16_PAIRS);
}

QATTN_INLINE block_parts pair_keys(const gradient_call *call, size_t slot) {
    return pair_block(pair_blocks(call->keys, call->args->head_dim, call->args->head_dim), slot);
}

QATTN_INLINE block_parts pair_values_as_keys(const gradient_call *call, size_t slot) {
    return pair_block(pair_blocks(call->values, call->args->value_dim, 0), slot);
}

/* 1. out[row][64] = rows.columns of rows of the panel against one operand of a block. */
QATTN_INLINE void pair_row_products(const factor *rows, size_t count, size_t lanes, const char *columns, float *out) {
    const factor_product product = {.a = {rows, lanes, 1},
                                    .rows = count,
                                    .segments = lanes / SEGMENT,
                                    .b = columns,
                                    .b_vector = lanes / SEGMENT * SEGMENT_BYTES,
                                    .vectors = BLOCK_VECTORS,
                                    .c = out,
                                    .c_step = QATTN_KEY_BLOCK};
    QATTN_FUNCTION(factor_products)(&product);
}

/* q.k and dout.v of rows [first, end), into the first rows of weights and products. */
QATTN_INLINE void pair_block_products(const gradient_call *call, size_t slot, size_t first, size_t end) {
    const size_t head_lanes = call->layout.head_lanes, value_lanes = call->layout.value_lanes;
    pair_row_products((const factor *)call->query_tiles + first * head_lanes, end - first, head_lanes,
                      pair_keys(call, slot).keys, call->weights);
    pair_row_products((const factor *)call->gradient_tiles + first * value_lanes, end - first, value_lanes,
                      pair_values_as_keys(call, slot).keys, call->products);
}

/* Sums of gradients between the caller's rows of `dim` and rows of `lanes` that tiles read and write. */
typedef struct raised_sums {
    float *rows;
    ptrdiff_t stride;
    size_t count, dim, lanes;
    float *sums;
} raised_sums;

/* Raising is exact below 2^80. So is lowering: sums are multiples of 2^-101. */
QATTN_NOINLINE void QATTN_FUNCTION(raise_sums)(const raised_sums *x) {
    for (size_t i = 0; i < x->count; i++) {
        for (size_t d = 0; d < x->lanes; d += QATTN_LANES) {
            const float *const row = x->rows + (ptrdiff_t)i * x->stride + d;
            const f32x16 sum = f32x16_load_first(row, x->dim > d ? x->dim - d : 0, QATTN_FLOAT32);
            f32x16_store(x->sums + i * x->lanes + d, sum * f32x16_splat(QATTN_GRADIENT_RAISE));
        }
    }
    memset(x->sums + x->count * x->lanes, 0, (SUM_BLOCK_ROWS - x->count) * x->lanes * sizeof(float));
}

QATTN_NOINLINE void QATTN_FUNCTION(lower_sums)(const raised_sums *x) {
    for (size_t i = 0; i < x->count; i++) {
        for (size_t d = 0; d < x->dim; d += QATTN_LANES) {
            const f32x16 sum = f32x16_load(x->sums + i * x->lanes + d);
            f32x16_store_first(x->rows + (ptrdiff_t)i * x->stride + d, x->dim - d,
                               sum * f32x16_splat(QATTN_GRADIENT_LOWER), QATTN_FLOAT32);
        }
    }
}

QATTN_INLINE raised_sums query_sums_of(const gradient_call *call) {
    const qattn_backward_args *const args = call->args;
    return (raised_sums){.rows = args->query_gradients + row_offset(args->query_gradient_strides, call->rows[0].place),
                         .stride = args->query_gradient_strides.query,
                         .count = call->count,
                         .dim = args->head_dim,
                         .lanes = call->layout.head_lanes,
                         .sums = call->query_sums};
}

/* Those of one block, out of those of all keys, or values, and of the group. */
QATTN_INLINE raised_sums block_sums_of(const gradient_call *call, size_t slot, raised_sums group) {
    const size_t key = (call->block_begin + slot) * QATTN_KEY_BLOCK;
    group.rows += (ptrdiff_t)key * group.stride;
    group.sums += slot * SUM_BLOCK_ROWS * group.lanes;
    group.count = qattn_min(call->args->problem.seq_kv - key, QATTN_KEY_BLOCK);
    return group;
}

QATTN_INLINE raised_sums key_sums_of(const gradient_call *call, size_t slot) {
    const qattn_backward_args *const args = call->args;
    return block_sums_of(call, slot,
                         (raised_sums){.rows = args->key_gradients,
                                       .stride = args->key_gradient_stride,
                                       .dim = args->head_dim,
                                       .lanes = call->layout.head_lanes,
                                       .sums = call->key_sums});
}

QATTN_INLINE raised_sums value_sums_of(const gradient_call *call, size_t slot) {
    const qattn_backward_args *const args = call->args;
    return block_sums_of(call, slot,
                         (raised_sums){.rows = args->value_gradients,
                                       .stride = args->value_gradient_stride,
                                       .dim = args->value_dim,
                                       .lanes = call->layout.value_lanes,
                                       .sums = call->value_sums});
}

/* Before the first sums of a panel, or of a block of the group, and behind the last. */
QATTN_INLINE void begin_pair_sums(gradient_call *call, size_t slot) {
    if (!call->has_query_sums) {
        const raised_sums queries = query_sums_of(call);
        QATTN_FUNCTION(raise_sums)(&queries);
        call->has_query_sums = true;
    }
    if (call->has_block_sums[slot]) return;
    const raised_sums keys = key_sums_of(call, slot), values = value_sums_of(call, slot);
    QATTN_FUNCTION(raise_sums)(&keys);
    QATTN_FUNCTION(raise_sums)(&values);
    call->has_block_sums[slot] = true;
}

QATTN_INLINE void end_panel_sums(gradient_call *call) {
    const raised_sums queries = query_sums_of(call);
    if (call->has_query_sums) QATTN_FUNCTION(lower_sums)(&queries);
    call->has_query_sums = false;
}

QATTN_INLINE void end_group_sums(gradient_call *call) {
    for (size_t slot = 0; slot < GRADIENT_GROUP; slot++) {
        if (!call->has_block_sums[slot]) continue;
        const raised_sums keys = key_sums_of(call, slot), values = value_sums_of(call, slot);
        QATTN_FUNCTION(lower_sums)(&keys);
        QATTN_FUNCTION(lower_sums)(&values);
        call->has_block_sums[slot] = false;
    }
}

/* t and dout.v of the panel. */
QATTN_INLINE void panel_pair_products(gradient_call *call, size_t slot) {
    pair_block_products(call, slot, 0, call->count);
    for (size_t i = 0; i < call->count; i++) {
        float *const row = call->weights + i * QATTN_KEY_BLOCK;
        scale_pair_scores(row, row, call->factors[i]);
    }
}

enum { FACTOR_MATRIX = QATTN_KEY_BLOCK * QATTN_KEY_BLOCK };

#if defined(QATTN_BANDS)
/* 2. of 32 rows from row `first` on, of softmax alone: from q.k and dout.v, the first rows of weights and products, to
 * factors. */
QATTN_INLINE void segment_gradients(const gradient_call *call, size_t first, bool masked) {
    factor_pairs p_pairs, w_pairs;
    factor *const w_rows = call->pair_factors + 2 * FACTOR_MATRIX;
    for (size_t pair = 0; pair < SEGMENT / 2; pair++) {
        if (pair % 4 == 0) unit_stay_awake();
        QATTN_UNROLL
        for (size_t h = 0; h < 2; h++) {
            u16x32 p_factors[2], w_factors[2];
            QATTN_UNROLL
            for (size_t r = 0; r < 2; r++) {
                const size_t i = first + 2 * pair + r;
                const gradient_row *const row = call->rows + i;
                f32x16 p[2], w[2];
                QATTN_UNROLL
                for (size_t v = 0; v < 2; v++) {
                    const size_t at = (2 * pair + r) * QATTN_KEY_BLOCK + (2 * h + v) * QATTN_LANES;
                    const f32x16 t = f32x16_load(call->weights + at) * call->factors[i];
                    const pair_gradient g = softmax_gradient(row, t, f32x16_load(call->products + at));
                    p[v] = g.p;
                    w[v] = g.u * row->scale;
                    if (!masked) continue;
                    p[v] = seen_lanes(call->visible[i], 2 * h + v, p[v]);
                    w[v] = seen_lanes(call->visible[i], 2 * h + v, w[v]);
                }
                p_factors[r] = bf16x32_factors(p[0], p[1], QATTN_LEAST_FACTOR);
                w_factors[r] = bf16x32_factors(w[0], w[1], QATTN_LEAST_GRADIENT_FACTOR);
                memcpy(w_rows + i * QATTN_KEY_BLOCK + 2 * h * QATTN_LANES, &w_factors[r], sizeof w_factors[r]);
            }
            store_factor_pairs(&p_pairs, pair, h, p_factors[0], p_factors[1]);
            store_factor_pairs(&w_pairs, pair, h, w_factors[0], w_factors[1]);
        }
    }
    transpose_factor_pairs(&p_pairs, call->pair_factors + first);
    transpose_factor_pairs(&w_pairs, call->pair_factors + FACTOR_MATRIX + first);
}

QATTN_NOINLINE void QATTN_FUNCTION(whole_segment_gradients)(const gradient_call *call, size_t first) {
    segment_gradients(call, first, false);
}

QATTN_NOINLINE void QATTN_FUNCTION(masked_segment_gradients)(const gradient_call *call, size_t first) {
    segment_gradients(call, first, true);
}

/* 1. and 2. of a block. */
QATTN_INLINE void pair_block_factors(gradient_call *call, block_sight sight, size_t block) {
    const bool whole = sight == SEES_ALL && call->count == QATTN_KEY_BLOCK;
    for (size_t i = 0; i < QATTN_KEY_BLOCK && !whole; i++) {
        if (i >= call->count) call->visible[i] = 0;
        else if (sight == SEES_ALL) call->visible[i] = ~UINT64_C(0);
    }
    /* A segment at a time, whose scores stay in L1. */
    for (size_t first = 0; first < QATTN_KEY_BLOCK; first += SEGMENT) {
        if (first < call->count)
            pair_block_products(call, block - call->block_begin, first, qattn_min(first + SEGMENT, call->count));
        if (whole) QATTN_FUNCTION(whole_segment_gradients)(call, first);
        else QATTN_FUNCTION(masked_segment_gradients)(call, first);
    }
}
#endif

/* 3. One of dq, dk, dv: weights are those of rows, [64][64], taken by rows or by columns. */
typedef struct pair_sum_task {
    const float *weights;
    const factor *factors; /* the same, as bands take them */
    bool by_columns;
    const char *pairs; /* what they are summed with */
    bool finite;
    raised_sums sums;
} pair_sum_task;

QATTN_INLINE void add_pair_sums(const gradient_call *call, block_sight sight, const pair_sum_task *task) {
    const bool by_columns = task->by_columns;
    const factor_product product = {
#if defined(QATTN_BANDS)
        .a = {task->factors, QATTN_KEY_BLOCK, 1},
#else
        .a = {task->weights, by_columns ? 1 : QATTN_KEY_BLOCK, by_columns ? QATTN_KEY_BLOCK : 1},
#endif
        .rows = task->sums.count,
        .segments = KEY_SEGMENTS,
        .b = task->pairs,
        .b_vector = VALUE_BYTES,
        .vectors = qattn_round_up(task->sums.dim, QATTN_LANES) / QATTN_LANES,
        .c = task->sums.sums,
        .c_step = task->sums.lanes,
        .adds = true,
    };
    if (task->finite || sight == SEES_ALL) QATTN_FUNCTION(factor_products)(&product);
    else QATTN_FUNCTION(seen_factor_products)(&product, task->weights, call->visible, by_columns);
}

/* 3. of a block, from factors or, where some of what they are summed with is not finite, from the same in Float. */
QATTN_INLINE void pair_block_sums(gradient_call *call, block_sight sight, size_t block) {
    const size_t slot = block - call->block_begin;
    const block_parts keys = pair_keys(call, slot);
    begin_pair_sums(call, slot);
    pair_sum_task task = {.weights = call->weights,
                          .factors = call->pair_factors,
                          .by_columns = true,
                          .pairs = call->gradient_pairs,
                          .finite = call->gradients_finite,
                          .sums = value_sums_of(call, slot)};
    add_pair_sums(call, sight, &task);
    task = (pair_sum_task){.weights = call->products,
                           .factors = call->pair_factors + FACTOR_MATRIX,
                           .by_columns = true,
                           .pairs = call->query_pairs,
                           .finite = call->queries_finite,
                           .sums = key_sums_of(call, slot)};
    add_pair_sums(call, sight, &task);
    task = (pair_sum_task){.weights = call->products,
                           .factors = call->pair_factors + 2 * FACTOR_MATRIX,
                           .pairs = keys.values,
                           .finite = !*not_finite(keys),
                           .sums = query_sums_of(call)};
    add_pair_sums(call, sight, &task);
}

/* Rows of weights of the panel that are not there: factors of 0, and unseen. */
QATTN_INLINE void clear_unused_rows(gradient_call *call) {
    const size_t bytes = (QATTN_KEY_BLOCK - call->count) * QATTN_KEY_BLOCK * sizeof(float);
    memset(call->visible + call->count, 0, (QATTN_KEY_BLOCK - call->count) * sizeof *call->visible);
    memset(call->weights + call->count * QATTN_KEY_BLOCK, 0, bytes);
    memset(call->products + call->count * QATTN_KEY_BLOCK, 0, bytes);
}

#endif
