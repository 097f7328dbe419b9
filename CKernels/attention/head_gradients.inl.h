/* SPDX-License-Identifier: Apache-2.0 */
/* head_gradients.inl.h - what single rows add to the gradients of numbers that a query head has: ALiBi's slope, the logarithm
 * of its scale. Sums in 16 lanes, added in a tree: the end of B3 in Documentation/Numerics.md. */
#ifndef QATTN_HEAD_GRADIENTS_INL_H
#define QATTN_HEAD_GRADIENTS_INL_H

#include "attention/backward.inl.h"

/* Of a panel and a block: lanes [row][16] of -u distance. */
QATTN_INLINE void add_slope_lanes(const gradient_call *call, size_t block_first, float *lanes) {
    const f32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const qattn_problem *const problem = &call->args->problem;
    for (size_t i = 0; i < call->count; i++) {
        const ptrdiff_t place = query_place(problem, call->rows[i].place.query) + problem->alibi_offset;
        const float distance = (float)(place - (ptrdiff_t)block_first);
        f32x16 sum = f32x16_load(lanes + i * QATTN_LANES);
        for (size_t first = 0; first < QATTN_KEY_BLOCK; first += QATTN_LANES) {
            const f32x16 u = f32x16_load(call->products + i * QATTN_KEY_BLOCK + first);
            sum = f32x16_fma(-u, f32x16_abs(distance - (lane + (float)first)), sum);
        }
        f32x16_store(lanes + i * QATTN_LANES, sum);
    }
}

/* Of a panel and all keys of the call. */
QATTN_INLINE void add_panel_slopes(gradient_call *call, float *lanes) {
    const key_range keys =
        keys_of_run(&call->args->problem, call->rows[0].place, call->rows[call->count - 1].place).any;
    if (keys.last <= keys.first) return;
    const size_t block_end = ((size_t)keys.last + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK;
    for (size_t block = (size_t)keys.first / QATTN_KEY_BLOCK; block < block_end; block++) {
        const block_sight sight = look_at_block(call, block);
        if (sight == SEES_NOTHING) continue;
        take_group(call, block, block + 1);
        panel_weights(call, sight, block, true, NULL);
        add_slope_lanes(call, block * QATTN_KEY_BLOCK, lanes);
    }
}

/* Adds to the lanes of the rows; where there are none, writes the sums of lanes that begin at 0. */
QATTN_INLINE void rows_slopes(const qattn_backward_args *args, float *lanes, float *sums) {
    assert(args->row_begin <= args->row_end && args->row_end <= args->problem.heads * args->problem.queries);
    if (args->row_begin == args->row_end) return;
    gradient_call call = begin_call(args);
    for (size_t row = args->row_begin; row < args->row_end; row += call.count) {
        const size_t head = row / args->problem.queries, query = row % args->problem.queries;
        const size_t first = row - args->row_begin;
        take_panel(&call, head, query, qattn_min(queries_of_head(args, head).end - query, call.layout.panel));
        take_deltas(&call);
        float own[GRADIENT_PANEL * QATTN_LANES];
        float *const at = lanes ? lanes + first * QATTN_LANES : memset(own, 0, sizeof own);
        add_panel_slopes(&call, at);
        for (size_t i = 0; i < call.count && !lanes; i++)
            sums[first + i] = f32x16_sum(f32x16_load(at + i * QATTN_LANES));
    }
    end_call(&call);
}

static void QATTN_FUNCTION(slope_gradients)(const qattn_backward_args *args, float *sums) {
    rows_slopes(args, NULL, sums);
}

static void QATTN_FUNCTION(slope_lanes)(const qattn_backward_args *args, float *lanes) {
    rows_slopes(args, lanes, NULL);
}

/* Channels whose gradient is 0 are left out: what stands there is not looked at. */
static void QATTN_FUNCTION(log_scale_gradients)(const qattn_backward_args *args, float *sums) {
    assert(args->row_begin <= args->row_end && args->row_end <= args->problem.heads * args->problem.queries);
    for (size_t row = args->row_begin; row < args->row_end; row++) {
        const row_place place = {.head = row / args->problem.queries, .query = row % args->problem.queries};
        const void *const query =
            storage_at(args->queries, row_offset(args->query_strides, place), args->query_storage);
        const float *const gradient = args->query_gradients + row_offset(args->query_gradient_strides, place);
        f32x16 lanes = f32x16_splat(0);
        for (size_t d = 0; d < args->head_dim; d += QATTN_LANES) {
            const size_t left = args->head_dim - d;
            f32x16 x =
                f32x16_load_first(storage_at(query, (ptrdiff_t)d, args->query_storage), left, args->query_storage);
            if (args->in_pairs) x = bf16x16_factor(x);
            const f32x16 y = f32x16_load_first(gradient + d, left, QATTN_FLOAT32);
            lanes = y != 0 ? f32x16_fma(x, y, lanes) : lanes;
        }
        sums[row - args->row_begin] = f32x16_sum(lanes);
    }
}

#endif
