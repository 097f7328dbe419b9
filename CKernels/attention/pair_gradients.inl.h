/* SPDX-License-Identifier: Apache-2.0 */
/* pair_gradients.inl.h - backward.inl.h by products of bfloat16: "Products of bfloat16" of "The backward pass" in
 * Documentation/Numerics.md. A panel is one block of queries. What is proportional to dout stands 2^48 higher until it is
 * summed. */
#ifndef QATTN_PAIR_GRADIENTS_INL_H
#define QATTN_PAIR_GRADIENTS_INL_H

#include "attention/gradient_rows.inl.h"

/* Block `slot` of the group. */
QATTN_INLINE block_parts pair_keys(const gradient_call *call, size_t slot) {
    const qattn_blocks blocks = pair_blocks(call->keys, call->args->head_dim, call->args->head_dim);
    return block_cut(&blocks, block_at(&blocks, slot, block_bytes(&blocks)), QATTN_BFLOAT16_PAIRS);
}

QATTN_INLINE block_parts pair_values_as_keys(const gradient_call *call, size_t slot) {
    const qattn_blocks blocks = pair_blocks(call->values, call->args->value_dim, 0);
    return block_cut(&blocks, block_at(&blocks, slot, block_bytes(&blocks)), QATTN_BFLOAT16_PAIRS);
}

/* 1. out[row][64] = rows.columns of the panel against one operand of a block. */
QATTN_INLINE void pair_row_products(const gradient_call *call, const factor *rows, size_t lanes, const char *columns,
                                    float *out) {
    const factor_product product = {.a = {rows, lanes, 1},
                                    .segments = lanes / SEGMENT,
                                    .b = columns,
                                    .b_vector = lanes / SEGMENT * SEGMENT_BYTES,
                                    .vectors = BLOCK_VECTORS};
    for (size_t r = 0; r < call->count; r += SUM_ROWS) {
        for (size_t v = 0; v < BLOCK_VECTORS; v += SUM_VECTORS)
            make_factor_products(&product, r, call->count, v, out + r * QATTN_KEY_BLOCK + v * QATTN_LANES,
                                 QATTN_KEY_BLOCK);
    }
}

/* Both of them: q.k, and dout.v. */
static __attribute__((noinline)) void QATTN_FUNCTION(pair_block_products)(gradient_call *call, size_t slot) {
    prefetch_lines(&call->upcoming, call->upcoming_share);
    pair_row_products(call, (const factor *)call->query_tiles, call->layout.head_lanes, pair_keys(call, slot).keys,
                      call->weights);
    pair_row_products(call, (const factor *)call->gradient_tiles, call->layout.value_lanes,
                      pair_values_as_keys(call, slot).keys, call->products);
}

/* 3. One of dq, dk, dv: weights are those of rows, [64][64], taken by rows or by columns. */
typedef struct pair_sum_task {
    const float *weights;
    const factor *factors; /* the same, as tile instructions take them */
    const char *pairs;     /* what they are summed with */
    bool by_columns, finite;
    factor_sums sums;
} pair_sum_task;

QATTN_INLINE void add_pair_sums(const gradient_call *call, block_sight sight, pair_sum_task *task) {
    factor_product *const product = &task->sums.product;
    product->segments = KEY_SEGMENTS;
    product->b = task->pairs;
    product->b_vector = VALUE_BYTES;
    product->vectors = qattn_round_up(task->sums.columns, QATTN_LANES) / QATTN_LANES;
#if defined(QATTN_TILE_UNIT)
    product->a = (factor_matrix){task->factors, QATTN_KEY_BLOCK, 1};
#else
    product->a = (factor_matrix){task->weights, task->by_columns ? 1 : QATTN_KEY_BLOCK,
                                 task->by_columns ? QATTN_KEY_BLOCK : 1};
#endif
    if (task->finite || sight == SEES_ALL) QATTN_FUNCTION(add_factor_sums)(&task->sums);
    else QATTN_FUNCTION(add_seen_factor_sums)(&task->sums, task->weights, call->visible, task->by_columns);
}

/* t from q.k. */
QATTN_INLINE void scale_panel_scores(gradient_call *call) {
    for (size_t i = 0; i < call->count; i++) {
        float *const row = call->weights + i * QATTN_KEY_BLOCK;
        scale_pair_scores(row, row, call->factors[i]);
    }
}

enum { FACTOR_MATRIX = QATTN_KEY_BLOCK * QATTN_KEY_BLOCK };

#if defined(QATTN_TILE_UNIT)
/* 2. of 32 rows from row `first` on, of softmax alone: from q.k and dout.v to factors. */
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
                    const size_t at = i * QATTN_KEY_BLOCK + (2 * h + v) * QATTN_LANES;
                    const f32x16 t = f32x16_load(call->weights + at) * call->factors[i];
                    const pair_gradient g = softmax_gradient(row, t, f32x16_load(call->products + at));
                    p[v] = g.p;
                    w[v] = g.u * row->scale;
                    if (!masked) continue;
                    p[v] = seen_lanes(call->visible[i], 2 * h + v, p[v]);
                    w[v] = seen_lanes(call->visible[i], 2 * h + v, w[v]);
                }
                p_factors[r] = bf16x32_factors(p[0], p[1]);
                w_factors[r] = bf16x32_factors(w[0], w[1]);
                memcpy(w_rows + i * QATTN_KEY_BLOCK + 2 * h * QATTN_LANES, &w_factors[r], sizeof w_factors[r]);
            }
            store_factor_pairs(&p_pairs, pair, h, p_factors[0], p_factors[1]);
            store_factor_pairs(&w_pairs, pair, h, w_factors[0], w_factors[1]);
        }
    }
    transpose_factor_pairs(&p_pairs, call->pair_factors + first);
    transpose_factor_pairs(&w_pairs, call->pair_factors + FACTOR_MATRIX + first);
}

static __attribute__((noinline)) void QATTN_FUNCTION(whole_segment_gradients)(const gradient_call *call, size_t first) {
    segment_gradients(call, first, false);
}

static __attribute__((noinline)) void QATTN_FUNCTION(masked_segment_gradients)(const gradient_call *call,
                                                                               size_t first) {
    segment_gradients(call, first, true);
}

/* 1. and 2. of a block. */
QATTN_INLINE void pair_block_factors(gradient_call *call, block_sight sight, size_t block) {
    QATTN_FUNCTION(pair_block_products)(call, block - call->block_begin);
    const bool whole = sight == SEES_ALL && call->count == QATTN_KEY_BLOCK;
    for (size_t i = 0; i < QATTN_KEY_BLOCK && !whole; i++) {
        if (i >= call->count) call->visible[i] = 0;
        else if (sight == SEES_ALL) call->visible[i] = ~UINT64_C(0);
    }
    for (size_t first = 0; first < QATTN_KEY_BLOCK; first += SEGMENT) {
        if (whole) QATTN_FUNCTION(whole_segment_gradients)(call, first);
        else QATTN_FUNCTION(masked_segment_gradients)(call, first);
    }
}
#endif

/* 3. of a block, from factors or, where some are not finite, from Floats that are factors. */
QATTN_INLINE void pair_block_sums(gradient_call *call, block_sight sight, size_t block) {
    const qattn_backward_args *const args = call->args;
    const block_parts keys = pair_keys(call, block - call->block_begin);
    const ptrdiff_t key = (ptrdiff_t)(block * QATTN_KEY_BLOCK);
    const size_t key_count = qattn_min(args->problem.seq_kv - (size_t)key, QATTN_KEY_BLOCK);
    pair_sum_task task = {.weights = call->weights,
                          .factors = call->pair_factors,
                          .pairs = call->gradient_pairs,
                          .by_columns = true,
                          .finite = call->gradients_finite,
                          .sums = {.rows = key_count,
                                   .columns = args->value_dim,
                                   .out = args->value_gradients + key * args->value_gradient_stride,
                                   .out_stride = args->value_gradient_stride}};
    add_pair_sums(call, sight, &task);
    task = (pair_sum_task){.weights = call->products,
                           .factors = call->pair_factors + FACTOR_MATRIX,
                           .pairs = call->query_pairs,
                           .by_columns = true,
                           .finite = call->queries_finite,
                           .sums = {.rows = key_count,
                                    .columns = args->head_dim,
                                    .out = args->key_gradients + key * args->key_gradient_stride,
                                    .out_stride = args->key_gradient_stride}};
    add_pair_sums(call, sight, &task);
    task = (pair_sum_task){.weights = call->products,
                           .factors = call->pair_factors + 2 * FACTOR_MATRIX,
                           .pairs = keys.values,
                           .finite = !*not_finite(keys),
                           .sums = {.rows = call->count,
                                    .columns = args->head_dim,
                                    .out = args->query_gradients +
                                           row_offset(args->query_gradient_strides, call->rows[0].place),
                                    .out_stride = args->query_gradient_strides.query}};
    add_pair_sums(call, sight, &task);
}

/* Rows of weights of the panel that are not there: factors of 0. */
QATTN_INLINE void clear_unused_rows(gradient_call *call) {
    const size_t bytes = (QATTN_KEY_BLOCK - call->count) * QATTN_KEY_BLOCK * sizeof(float);
    memset(call->weights + call->count * QATTN_KEY_BLOCK, 0, bytes);
    memset(call->products + call->count * QATTN_KEY_BLOCK, 0, bytes);
}

#endif
