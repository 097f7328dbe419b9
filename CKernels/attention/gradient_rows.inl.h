/* SPDX-License-Identifier: Apache-2.0 */
/* gradient_rows.inl.h - the rows and keys of a call to backward, from the caller's tensors into its workspace: panels of
 * rows of one head, groups of blocks of keys. */
#ifndef QATTN_GRADIENT_ROWS_INL_H
#define QATTN_GRADIENT_ROWS_INL_H

#include "attention/factor_rows.inl.h"
#include "attention/gradient_weights.inl.h"
#include "memory/pack.inl.h"
#include "tile/gradient_layout.h"
#include "tile/gradient_products.inl.h"

/* The keys of the block at hand that some row of a tile sees (any), and that every row of it sees (all). */
typedef struct tile_sight {
    uint64_t any, all;
} tile_sight;

/* Whether rows see anything of a block, and all of it. */
typedef enum block_sight { SEES_NOTHING, SEES_SOME, SEES_ALL } block_sight;

_Static_assert(GRADIENT_PANEL % TILE_ROWS == 0, "sights has room for the last tile");
typedef struct gradient_call {
    const qattn_backward_args *args;
    gradient_layout layout;
    gradient_rule rule;
    bool in_place;    /* rows need no copies */
    bool ranges_only; /* masks are ranges of keys */
    /* A panel: rows [first, first + count) of a head. */
    size_t head, first, count;
    float *query_tiles, *gradient_tiles; /* q' and dout, [tiles][lanes / 4][6][4] */
    float_rows queries, out_gradients;
    gradient_row *rows;
    float factors[GRADIENT_PANEL];                 /* of queries, or by products of bfloat16 of scores */
    uint64_t *visible;                             /* of the block at hand, unless all is seen */
    tile_sight sights[GRADIENT_PANEL / TILE_ROWS]; /* of the block at hand */
    /* Of a panel and a block, by row [64]: scores, then weights; dout.v, then w. */
    float *weights, *products;
    /* A group: blocks [block_begin, block_end), each as pack.inl.h lays out keys. */
    size_t block_begin, block_end;
    float *keys, *values;
    float_rows key_rows;
    /* Of products of bfloat16: rows of the panel in pairs, and weights as factors. */
    char *query_pairs, *gradient_pairs;
    factor *pair_factors;
    bool queries_finite, gradients_finite;
    /* Their sums, raised: [66][lanes] of the panel, and of the blocks of the group that some row has seen. */
    float *query_sums, *key_sums, *value_sums;
    bool has_query_sums, has_block_sums[GRADIENT_GROUP];
    qattn_upcoming_rows tensors[3]; /* of the next panel, asked for while this one is at work */
    prefetch_cursor upcoming;
    size_t upcoming_share; /* lines with each tile */
} gradient_call;

/* Whether a tensor is float_rows of one panel as it stands. Rows with gaps between them are not: at a stride of a power
 * of two, the 64 that a tile meets fall into few sets of the cache. At 128 channels that took 9 % of the time. */
QATTN_INLINE bool reads_in_place(ptrdiff_t stride, size_t dim, qattn_storage storage) {
    return storage == QATTN_FLOAT32 && dim % QATTN_LANES == 0 && dim == panel_lanes(dim) && stride == (ptrdiff_t)dim;
}

/* Rows of a tensor: where they are, and where they go. */
typedef struct rows_task {
    const void *rows;
    ptrdiff_t stride;
    qattn_storage storage;
    size_t count, dim;
    float *tiles;         /* times factors, or NULL */
    const float *factors; /* by row, or NULL: 1 */
    float *copies;        /* float_rows of `height`, or NULL */
    size_t height;
    float_rows *result;
} rows_task;

/* Row i, into a tile and a copy. */
QATTN_INLINE void take_row(const rows_task *task, size_t i, qattn_storage storage) {
    const size_t dim = task->dim, lanes = qattn_round_up(dim, QATTN_LANES);
    const void *const row = storage_at(task->rows, (ptrdiff_t)i * task->stride, storage);
    float *const tile =
        task->tiles ? task->tiles + i / TILE_ROWS * TILE_ROWS * lanes + i % TILE_ROWS * QATTN_CHAINS : NULL;
    const f32x16 factor = f32x16_splat(task->factors ? task->factors[i] : 1);
    for (size_t column = 0, panel; column < lanes; column += panel) {
        panel = panel_lanes(lanes - column);
        float *const copy = task->copies ? task->copies + column * task->height + i * panel : NULL;
        for (size_t c = 0; c < panel; c += QATTN_LANES) {
            const size_t d = column + c;
            const f32x16 x = f32x16_load_first(storage_at(row, (ptrdiff_t)d, storage), dim - d, storage);
            if (copy) f32x16_store(copy + c, x);
            if (tile) f32x16_store_fours(tile + d * TILE_ROWS, TILE_STEP, x * factor);
        }
    }
}

QATTN_INLINE void take_rows_of(const rows_task *task, qattn_storage storage) {
    *task->result = (float_rows){.base = task->copies ? task->copies : task->rows,
                                 .height = task->height,
                                 .count = task->count,
                                 .lanes = qattn_round_up(task->dim, QATTN_LANES)};
    for (size_t i = 0; i < task->count && (task->tiles || task->copies); i++) take_row(task, i, storage);
}

QATTN_NOINLINE void QATTN_FUNCTION(take_gradient_rows)(const rows_task *task) {
    switch (task->storage) {
    case QATTN_FLOAT32: take_rows_of(task, QATTN_FLOAT32); break;
    case QATTN_FLOAT16: take_rows_of(task, QATTN_FLOAT16); break;
    default: take_rows_of(task, QATTN_BFLOAT16); break;
    }
}

/* Rows of keys, or of values, as pack.inl.h lays out keys, and as values as far as the blocks have any. */
QATTN_INLINE void pack_group_rows(const void *rows, ptrdiff_t stride, qattn_storage storage, size_t count,
                                  qattn_blocks blocks) {
    const qattn_pack_args pack = {.keys = rows,
                                  .values = rows,
                                  .key_stride = stride,
                                  .value_stride = blocks.value_dim ? stride : 0,
                                  .key_storage = storage,
                                  .value_storage = storage,
                                  .key_end = count,
                                  .blocks = blocks};
    QATTN_FUNCTION(pack)(&pack);
}

/* Blocks of Float, as keys alone: 16 rows beside each other. */
QATTN_INLINE qattn_blocks float_blocks(float *blocks, size_t dim) {
    return (qattn_blocks){.base = blocks, .storage = QATTN_FLOAT32, .head_dim = dim};
}

/* Blocks of pairs: as keys, and as values unless value_dim is 0. */
QATTN_INLINE qattn_blocks pair_blocks(float *blocks, size_t dim, size_t value_dim) {
    return (qattn_blocks){.base = blocks, .storage = QATTN_BFLOAT16_PAIRS, .head_dim = dim, .value_dim = value_dim};
}

QATTN_INLINE size_t block_bytes(const qattn_blocks *blocks) {
    return qattn_block_bytes(blocks->storage, blocks->head_dim, blocks->value_dim);
}

QATTN_INLINE void take_group(gradient_call *call, size_t block_begin, size_t block_end) {
    const qattn_backward_args *const args = call->args;
    const size_t first = block_begin * QATTN_KEY_BLOCK;
    const size_t count = qattn_min(block_end * QATTN_KEY_BLOCK, args->problem.seq_kv) - first;
    const void *const keys = storage_at(args->keys, (ptrdiff_t)first * args->key_stride, args->key_storage);
    const void *const values = storage_at(args->values, (ptrdiff_t)first * args->value_stride, args->value_storage);
    call->block_begin = block_begin;
    call->block_end = block_end;
    if (args->in_pairs) {
        pack_group_rows(keys, args->key_stride, args->key_storage, count,
                        pair_blocks(call->keys, args->head_dim, args->head_dim));
        pack_group_rows(values, args->value_stride, args->value_storage, count,
                        pair_blocks(call->values, args->value_dim, 0));
        return;
    }
    pack_group_rows(keys, args->key_stride, args->key_storage, count, float_blocks(call->keys, args->head_dim));
    pack_group_rows(values, args->value_stride, args->value_storage, count,
                    float_blocks(call->values, args->value_dim));
    const rows_task task = {.rows = keys,
                            .stride = args->key_stride,
                            .storage = args->key_storage,
                            .count = count,
                            .dim = args->head_dim,
                            .copies = call->in_place ? NULL : args->workspace + call->layout.key_rows,
                            .height = call->layout.group * QATTN_KEY_BLOCK,
                            .result = &call->key_rows};
    QATTN_FUNCTION(take_gradient_rows)(&task);
}

/* The rows of a panel as factors. */
QATTN_INLINE void take_pair_panel(gradient_call *call, row_place place) {
    const qattn_backward_args *const args = call->args;
    factor_rows_task task = {.rows =
                                 storage_at(args->queries, row_offset(args->query_strides, place), args->query_storage),
                             .stride = args->query_strides.query,
                             .storage = args->query_storage,
                             .count = call->count,
                             .dim = args->head_dim,
                             .scale = 1,
                             .least = QATTN_LEAST_FACTOR,
                             .factors = (factor *)call->query_tiles,
                             .pairs = call->query_pairs,
                             .finite = &call->queries_finite};
    QATTN_FUNCTION(take_factor_rows)(&task);
    task = (factor_rows_task){.rows = storage_at(args->out_gradients, row_offset(args->out_gradient_strides, place),
                                                 args->out_gradient_storage),
                              .stride = args->out_gradient_strides.query,
                              .storage = args->out_gradient_storage,
                              .count = call->count,
                              .dim = args->value_dim,
                              .scale = QATTN_GRADIENT_RAISE,
                              .least = QATTN_LEAST_GRADIENT_FACTOR,
                              .factors = (factor *)call->gradient_tiles,
                              .pairs = call->gradient_pairs,
                              .finite = &call->gradients_finite};
    QATTN_FUNCTION(take_factor_rows)(&task);
}

/* Rows [first, first + count) of a head. */
QATTN_INLINE void take_panel(gradient_call *call, size_t head, size_t first, size_t count) {
    const qattn_backward_args *const args = call->args;
    call->head = head;
    call->first = first;
    call->count = count;
    const row_place place = {.head = head, .query = first};
    begin_gradient_rows(args, place, count, call->rows, call->factors);
    for (size_t i = count; i < qattn_round_up(count, TILE_ROWS); i++) call->rows[i] = call->rows[count - 1];
    if (args->in_pairs) {
        take_pair_panel(call, place);
        return;
    }
    rows_task task = {
        .rows = storage_at(args->queries, row_offset(args->query_strides, place), args->query_storage),
        .stride = args->query_strides.query,
        .storage = args->query_storage,
        .count = count,
        .dim = args->head_dim,
        .tiles = call->query_tiles,
        .copies = call->in_place ? NULL : args->workspace + call->layout.query_rows,
        .height = call->layout.panel,
        .factors = call->factors,
        .result = &call->queries,
    };
    QATTN_FUNCTION(take_gradient_rows)(&task);
    task = (rows_task){
        .rows =
            storage_at(args->out_gradients, row_offset(args->out_gradient_strides, place), args->out_gradient_storage),
        .stride = args->out_gradient_strides.query,
        .storage = args->out_gradient_storage,
        .count = count,
        .dim = args->value_dim,
        .tiles = call->gradient_tiles,
        .copies = call->in_place ? NULL : args->workspace + call->layout.gradient_rows,
        .height = call->layout.panel,
        .result = &call->out_gradients,
    };
    QATTN_FUNCTION(take_gradient_rows)(&task);
}

QATTN_INLINE gradient_call begin_call(const qattn_backward_args *args) {
    const bool in_place = reads_in_place(args->key_stride, args->head_dim, args->key_storage) &&
                          reads_in_place(args->query_strides.query, args->head_dim, args->query_storage) &&
                          reads_in_place(args->out_gradient_strides.query, args->value_dim, args->out_gradient_storage);
#if defined(QATTN_TILE_UNIT)
    const size_t bytes = GRADIENT_BYTES_OF_TILE_UNIT;
#else
    const size_t bytes = GRADIENT_BYTES;
#endif
    const gradient_layout layout = args->in_pairs
                                       ? pair_gradient_layout_for(args->head_dim, args->value_dim, bytes)
                                       : gradient_layout_for(args->head_dim, args->value_dim, in_place, bytes);
    float *const workspace = args->workspace;
#if defined(QATTN_TILE_UNIT)
    if (args->in_pairs) tile_unit_begin((unit_shape){UNIT_ROWS, QATTN_LANES, 0});
#endif
    return (gradient_call){.args = args,
                           .layout = layout,
                           .rule = begin_gradients(args),
                           .in_place = in_place,
                           .ranges_only = !args->problem.mask && !args->problem.bias,
                           .query_tiles = workspace + layout.query_tiles,
                           .gradient_tiles = workspace + layout.gradient_tiles,
                           .rows = (gradient_row *)(workspace + layout.numbers),
                           .visible = (uint64_t *)(workspace + layout.visible),
                           .weights = workspace + layout.weights,
                           .products = workspace + layout.products,
                           .keys = workspace + layout.keys,
                           .values = workspace + layout.values,
                           .query_pairs = (char *)(workspace + layout.query_rows),
                           .gradient_pairs = (char *)(workspace + layout.gradient_rows),
                           .pair_factors = (factor *)(workspace + layout.factors),
                           .query_sums = workspace + layout.query_sums,
                           .key_sums = workspace + layout.key_sums,
                           .value_sums = workspace + layout.value_sums};
}

/* What begin_call takes of the CPU, back to it. */
QATTN_INLINE void end_call(const gradient_call *call) {
#if defined(QATTN_TILE_UNIT)
    if (call->args->in_pairs) tile_unit_end();
#else
    (void)call;
#endif
}

#endif
