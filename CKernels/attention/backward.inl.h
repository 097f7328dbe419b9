/* SPDX-License-Identifier: Apache-2.0 */
/* backward.inl.h - the gradients of attention, of the query heads that share one key/value head.
 *
 *     dq[i] += sum_j w[i][j] k[j]      dk[j] += sum_i w[i][j] q[i]      dv[j] += sum_i p[i][j] dout[i]
 *
 * Loop nest, outermost first; every element meets its terms in the order of Documentation/Numerics.md, B3:
 *
 *     group of blocks of 64 keys   keys and values lie side by side in L2, transposed
 *       query head
 *         panel of up to 192 rows  queries and output gradients in tiles of six, in L2
 *           block of keys          1. scores and dout.v, in registers: keys across lanes, channels ascending
 *                                  2. weights p and w of the panel, in L1 and L2 (gradient_weights.inl.h)
 *                                  3. dv, dk: sums over 64 rows in registers; dq: over 64 keys
 *
 * What no row of a panel sees is skipped: blocks, tiles of 16 keys, and in 3. the rows and keys before the first pair
 * that a tile sees and after the last. Tiling: Dao et al. 2022. */
#ifndef QATTN_BACKWARD_INL_H
#define QATTN_BACKWARD_INL_H

#include "attention/gradient_rows.inl.h"
#include "attention/pair_gradients.inl.h"
#include "attention/prepare.inl.h"

/* Rows whose scores and weights are made at a time: they stay in L1 meanwhile. */
enum { STRIP_ROWS = 8 * TILE_ROWS };

/* Which keys of the block each tile of the panel sees, and each row, unless all see all of it. The rows that fill the last tile see nothing
 * then. */
QATTN_INLINE block_sight look_at_block(gradient_call *call, size_t block) {
    const qattn_problem *const problem = &call->args->problem;
    const size_t block_first = block * QATTN_KEY_BLOCK, end = qattn_round_up(call->count, TILE_ROWS);
    const run_keys keys = keys_of_run(problem, call->rows[0].place, call->rows[call->count - 1].place);
    if (!range_bits(keys.any, block_first)) return SEES_NOTHING;
    if (call->ranges_only && range_covers(keys.all, block_first)) {
        for (size_t i = 0; i < end; i += TILE_ROWS)
            call->sights[i / TILE_ROWS] = (tile_sight){~UINT64_C(0), ~UINT64_C(0)};
        return SEES_ALL;
    }
    uint64_t any = 0;
    for (size_t i = 0; i < end; i += TILE_ROWS) {
        tile_sight sight = {.any = 0, .all = ~UINT64_C(0)};
        for (size_t r = i; r < i + TILE_ROWS; r++) {
            call->visible[r] = r < call->count ? visible_bits(problem, call->rows[r].place, block_first) : 0;
            sight.any |= call->visible[r];
            sight.all &= call->visible[r];
        }
        call->sights[i / TILE_ROWS] = sight;
        any |= sight.any;
    }
    return any ? SEES_SOME : SEES_NOTHING;
}

/* 1. of rows [begin, end) against one operand of a block: out[row][64]. */
QATTN_INLINE void strip_products(gradient_call *call, size_t begin, size_t end, const float *tiles, const float *keys,
                                 size_t dim, float *out) {
    const size_t lanes = qattn_round_up(dim, QATTN_LANES);
    for (size_t group = 0; group < QATTN_KEY_BLOCK; group += QATTN_LANES) {
        for (size_t i = begin; i < end; i += TILE_ROWS) {
            if (!(call->sights[i / TILE_ROWS].any >> group & 0xffff)) continue;
            prefetch_lines(&call->upcoming, call->upcoming_share);
            QATTN_FUNCTION(pair_products)(tiles + i * lanes, keys + group * dim, dim,
                                          out + i * QATTN_KEY_BLOCK + group);
        }
    }
}

/* 2. of the tile from row i on: p and w, or u for `finished`. */
QATTN_INLINE void tile_gradients(const gradient_call *call, block_sight sight, size_t i, size_t block_first,
                                 bool finished) {
    float *const weights = call->weights + i * QATTN_KEY_BLOCK, *const products = call->products + i * QATTN_KEY_BLOCK;
    const tile_sight seen = call->sights[i / TILE_ROWS];
    if (!seen.any) {
        memset(weights, 0, TILE_ROWS * QATTN_KEY_BLOCK * sizeof(float));
        memset(products, 0, TILE_ROWS * QATTN_KEY_BLOCK * sizeof(float));
        return;
    }
    if (call->rule.plain && !finished) {
        QATTN_FUNCTION(softmax_gradients)
        (call->rows + i, seen.all == ~UINT64_C(0) ? NULL : call->visible + i, weights, products);
        return;
    }
    for (size_t r = 0; r < TILE_ROWS; r++) QATTN_FUNCTION(row_gradients)
    (&call->rule, call->rows + i + r, sight == SEES_ALL ? ~UINT64_C(0) : call->visible[i + r], block_first,
     weights + r * QATTN_KEY_BLOCK, products + r * QATTN_KEY_BLOCK, finished);
}

/* 1. and 2. of the panel: as far as the weights, or for clipped softmax's `lanes`, [row][16], as far as D. */
QATTN_INLINE void panel_weights(gradient_call *call, block_sight sight, size_t block, bool finished, float *lanes) {
    const qattn_backward_args *const args = call->args;
    const size_t slot = (block - call->block_begin) * QATTN_KEY_BLOCK, block_first = block * QATTN_KEY_BLOCK;
    if (args->in_pairs) panel_pair_products(call, block - call->block_begin);
    for (size_t begin = 0; begin < call->count; begin += STRIP_ROWS) {
        const size_t end = qattn_min(begin + STRIP_ROWS, call->count);
        if (!args->in_pairs) {
            strip_products(call, begin, end, call->query_tiles, call->keys + slot * args->head_dim, args->head_dim,
                           call->weights);
            strip_products(call, begin, end, call->gradient_tiles, call->values + slot * args->value_dim,
                           args->value_dim, call->products);
        }
        for (size_t i = begin; i < end && !lanes; i += TILE_ROWS) tile_gradients(call, sight, i, block_first, finished);
        for (size_t i = begin; i < end && lanes; i++) QATTN_FUNCTION(add_clipped_delta)
        (&call->rule, call->rows + i, sight == SEES_ALL ? ~UINT64_C(0) : call->visible[i], block_first,
         call->weights + i * QATTN_KEY_BLOCK, call->products + i * QATTN_KEY_BLOCK, lanes + i * QATTN_LANES);
    }
}

/* 3. of dv and dk: the panel's blocks of queries, one after another. */
QATTN_INLINE void panel_key_sums(gradient_call *call, block_sight sight, size_t block) {
    const qattn_backward_args *const args = call->args;
    const ptrdiff_t key = (ptrdiff_t)(block * QATTN_KEY_BLOCK);
    for (size_t i = 0; i < call->count; i += QATTN_KEY_BLOCK) {
        product_task task = {.weights = call->weights + i * QATTN_KEY_BLOCK,
                             .rows = &call->out_gradients,
                             .first = i,
                             .inner = qattn_min(call->count - i, QATTN_KEY_BLOCK),
                             .columns = args->value_dim,
                             .out_rows = qattn_min(args->problem.seq_kv - (size_t)key, QATTN_KEY_BLOCK),
                             .out = args->value_gradients + key * args->value_gradient_stride,
                             .out_stride = args->value_gradient_stride,
                             .visible = sight == SEES_ALL ? NULL : call->visible + i};
        QATTN_FUNCTION(add_key_products)(&task);
        task.weights = call->products + i * QATTN_KEY_BLOCK;
        task.rows = &call->queries;
        task.columns = args->head_dim;
        task.out = args->key_gradients + key * args->key_gradient_stride;
        task.out_stride = args->key_gradient_stride;
        QATTN_FUNCTION(add_key_products)(&task);
    }
}

/* 3. of dq. */
QATTN_INLINE void panel_query_sums(gradient_call *call, block_sight sight, size_t block) {
    const qattn_backward_args *const args = call->args;
    const product_task task = {.weights = call->products,
                               .rows = &call->key_rows,
                               .first = (block - call->block_begin) * QATTN_KEY_BLOCK,
                               .inner = QATTN_KEY_BLOCK,
                               .columns = args->head_dim,
                               .out_rows = call->count,
                               .out = args->query_gradients +
                                      row_offset(args->query_gradient_strides, call->rows[0].place),
                               .out_stride = args->query_gradient_strides.query,
                               .visible = sight == SEES_ALL ? NULL : call->visible};
    QATTN_FUNCTION(add_query_products)(&task);
}

/* Queries [begin, end) of a head. */
typedef struct query_range {
    size_t begin, end;
} query_range;

/* The queries of a head, out of rows [row_begin, row_end) of all. */
QATTN_INLINE query_range queries_of_head(const qattn_backward_args *args, size_t head) {
    const size_t queries = args->problem.queries, first = head * queries;
    return (query_range){qattn_max(args->row_begin, first) - first, qattn_min(args->row_end, first + queries) - first};
}

/* Those of them that may see a key of the blocks: whole blocks of queries. */
QATTN_INLINE query_range queries_of_blocks(const qattn_problem *problem, size_t block_begin, size_t block_end,
                                           query_range queries) {
    assert(!problem->places);
    const ptrdiff_t begin = (ptrdiff_t)(block_begin * QATTN_KEY_BLOCK) - problem->last_key_offset + 1;
    const ptrdiff_t end = (ptrdiff_t)(block_end * QATTN_KEY_BLOCK) - problem->first_key_offset;
    if (begin > (ptrdiff_t)queries.begin) queries.begin = (size_t)begin / QATTN_KEY_BLOCK * QATTN_KEY_BLOCK;
    if (end < (ptrdiff_t)queries.end) queries.end = end > 0 ? (size_t)end : 0;
    return queries;
}

QATTN_INLINE void take_deltas(gradient_call *call) {
    for (size_t i = 0; i < qattn_round_up(call->count, TILE_ROWS); i++) {
        const row_place place = call->rows[i].place;
        call->rows[i].delta =
            call->args->deltas[(ptrdiff_t)place.head * call->args->sum_head_stride + (ptrdiff_t)place.query] *
            call->rule.raise;
    }
}

/* 1. and 2. of products of bfloat16. */
QATTN_INLINE void panel_pair_factors(gradient_call *call, block_sight sight, size_t block) {
#if defined(QATTN_BANDS)
    const block_parts keys = pair_keys(call, block - call->block_begin);
    const bool finite = call->queries_finite && call->gradients_finite && !*not_finite(keys);
    if (call->rule.plain && (sight == SEES_ALL || finite)) {
        pair_block_factors(call, sight, block);
        return;
    }
#endif
    panel_weights(call, sight, block, false, NULL);
    clear_unused_rows(call);
#if defined(QATTN_BANDS)
    factor *const w_factors = call->pair_factors + FACTOR_MATRIX;
    QATTN_FUNCTION(turn_factors)(call->weights, QATTN_LEAST_FACTOR, call->pair_factors, NULL);
    QATTN_FUNCTION(turn_factors)(call->products, QATTN_LEAST_GRADIENT_FACTOR, w_factors, w_factors + FACTOR_MATRIX);
    if (sight == SEES_ALL || finite) return; /* tiles and dots take all of them */
#endif
    QATTN_FUNCTION(round_to_factors)(call->weights, QATTN_LEAST_FACTOR);
    QATTN_FUNCTION(round_to_factors)(call->products, QATTN_LEAST_GRADIENT_FACTOR);
}

/* A panel against the blocks of the group. */
QATTN_INLINE void panel_gradients(gradient_call *call) {
    take_deltas(call);
    for (size_t block = call->block_begin; block < call->block_end; block++) {
        const block_sight sight = look_at_block(call, block);
        if (sight == SEES_NOTHING) continue;
        if (call->args->in_pairs) {
            panel_pair_factors(call, sight, block);
            pair_block_sums(call, sight, block);
            continue;
        }
        panel_weights(call, sight, block, false, NULL);
        panel_key_sums(call, sight, block);
        panel_query_sums(call, sight, block);
    }
}

/* Where a call stands: a group of blocks and a panel of queries of a head. */
typedef struct panel_place {
    size_t block, block_end, head;
    query_range queries; /* those that are left of the head */
} panel_place;

/* Moves on to queries that may see a block, from `place` itself on; false at the end. */
QATTN_INLINE bool find_panel(const qattn_backward_args *args, const gradient_layout *layout, panel_place *place) {
    const size_t last_head = (args->row_end - 1) / args->problem.queries;
    const size_t block_end = (args->key_end + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK;
    while (place->queries.begin >= place->queries.end) {
        if (place->head++ == last_head) {
            place->head = args->row_begin / args->problem.queries;
            place->block = place->block_end;
            place->block_end = qattn_min(place->block + layout->group, block_end);
            if (place->block == block_end) return false;
        }
        place->queries =
            queries_of_blocks(&args->problem, place->block, place->block_end, queries_of_head(args, place->head));
    }
    return true;
}

/* While the panel is at work against so many blocks, rows of tensors come nearer. */
QATTN_INLINE void ask_for_rows(gradient_call *call, const qattn_upcoming_rows *tensors, size_t count, size_t blocks) {
    const size_t tiles = 2 * BLOCK_VECTORS * blocks * ((call->count + TILE_ROWS - 1) / TILE_ROWS);
    call->upcoming = prefetch_begin(tensors, count);
    call->upcoming_share = (prefetch_line_count(tensors, count) + tiles - 1) / tiles;
}

/* Those of the next panel. */
QATTN_INLINE void ask_for_panel(gradient_call *call, const panel_place *place, size_t blocks) {
    const qattn_backward_args *const args = call->args;
    const row_place row = {.head = place->head, .query = place->queries.begin};
    const size_t rows = qattn_min(place->queries.end - place->queries.begin, call->layout.panel);
    const size_t query_size = storage_size(args->query_storage), size = storage_size(args->out_gradient_storage);
    call->tensors[0] =
        (qattn_upcoming_rows){storage_at(args->queries, row_offset(args->query_strides, row), args->query_storage),
                              args->query_strides.query * (ptrdiff_t)query_size, rows, args->head_dim * query_size};
    call->tensors[1] = (qattn_upcoming_rows){
        storage_at(args->out_gradients, row_offset(args->out_gradient_strides, row), args->out_gradient_storage),
        args->out_gradient_strides.query * (ptrdiff_t)size, rows, args->value_dim * size};
    call->tensors[2] = (qattn_upcoming_rows){args->query_gradients + row_offset(args->query_gradient_strides, row),
                                             args->query_gradient_strides.query * (ptrdiff_t)sizeof(float), rows,
                                             args->head_dim * sizeof(float)};
    ask_for_rows(call, call->tensors, 3, blocks);
}

static void QATTN_FUNCTION(backward)(const qattn_backward_args *args) {
    assert(args->row_begin <= args->row_end && args->row_end <= args->problem.heads * args->problem.queries);
    assert(args->key_begin % QATTN_KEY_BLOCK == 0 && args->key_end <= args->problem.seq_kv);
    if (args->row_begin == args->row_end || args->key_begin >= args->key_end) return;
    gradient_call call = begin_call(args);
    const size_t first_block = args->key_begin / QATTN_KEY_BLOCK;
    panel_place place = {
        .block = first_block, .block_end = first_block, .head = (args->row_end - 1) / args->problem.queries};
    bool more = find_panel(args, &call.layout, &place);
    while (more) {
        const panel_place here = place;
        const size_t count = qattn_min(place.queries.end - place.queries.begin, call.layout.panel);
        if (call.block_begin != here.block || call.block_end != here.block_end) {
            end_group_sums(&call);
            take_group(&call, here.block, here.block_end);
        }
        take_panel(&call, here.head, here.queries.begin, count);
        place.queries.begin += count;
        more = find_panel(args, &call.layout, &place);
        const size_t blocks = here.block_end - here.block;
        /* Products of bfloat16 gain nothing by hints, and with many short heads they lose. */
        if (!args->in_pairs && more) ask_for_panel(&call, &place, blocks);
        else if (!args->in_pairs) ask_for_rows(&call, args->upcoming, QATTN_GRADIENT_UPCOMING, blocks);
        panel_gradients(&call);
        end_panel_sums(&call);
    }
    end_group_sums(&call);
    end_call(&call);
}

/* delta = sum of dout out, less the gradient of lse: B1. */
QATTN_INLINE void store_delta(const qattn_backward_args *args, row_place place, f32x16 lanes) {
    const ptrdiff_t at = (ptrdiff_t)place.head * args->sum_head_stride + (ptrdiff_t)place.query;
    const float sum = args->in_pairs ? f32x16_sum(lanes) * QATTN_GRADIENT_LOWER : f32x16_sum(lanes);
    args->deltas[at] = args->lse_gradients ? sum - args->lse_gradients[at] : sum;
}

/* The output of a row whose factor is 0 is 0 whatever dout is, which may be padding. */
QATTN_INLINE f32x16 delta_lanes(const qattn_backward_args *args, row_place place, qattn_storage gradient_storage,
                                qattn_storage storage) {
    f32x16 lanes = f32x16_splat(0);
    if (args->factors[(ptrdiff_t)place.head * args->sum_head_stride + (ptrdiff_t)place.query] == 0) return lanes;
    const void *const gradient =
        storage_at(args->out_gradients, row_offset(args->out_gradient_strides, place), gradient_storage);
    const void *const out = storage_at(args->out, row_offset(args->out_strides, place), storage);
    for (size_t c = 0; c < args->value_dim; c += QATTN_LANES) {
        const size_t left = args->value_dim - c;
        f32x16 x = f32x16_load_first(storage_at(gradient, (ptrdiff_t)c, gradient_storage), left, gradient_storage);
        if (args->in_pairs) x = bf16x16_factor_from(x * QATTN_GRADIENT_RAISE, QATTN_LEAST_GRADIENT_FACTOR);
        const f32x16 y = f32x16_load_first(storage_at(out, (ptrdiff_t)c, storage), left, storage);
        lanes = f32x16_fma(x, y, lanes);
    }
    return lanes;
}

QATTN_INLINE void rows_deltas(const qattn_backward_args *args, qattn_storage gradient_storage, qattn_storage storage) {
    for (size_t row = args->row_begin; row < args->row_end;) {
        row_place place = {.head = row / args->problem.queries};
        const query_range queries = queries_of_head(args, place.head);
        for (place.query = row - place.head * args->problem.queries; place.query < queries.end; place.query++, row++)
            store_delta(args, place, delta_lanes(args, place, gradient_storage, storage));
    }
}

/* Clipped softmax, of a panel: over all keys that its rows see. */
QATTN_INLINE void panel_clipped_deltas(gradient_call *call) {
    float lanes[GRADIENT_PANEL * QATTN_LANES] = {0};
    const key_range keys =
        keys_of_run(&call->args->problem, call->rows[0].place, call->rows[call->count - 1].place).any;
    if (keys.last > keys.first) {
        const size_t block_end = ((size_t)keys.last + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK;
        for (size_t block = (size_t)keys.first / QATTN_KEY_BLOCK; block < block_end; block++) {
            const block_sight sight = look_at_block(call, block);
            if (sight == SEES_NOTHING) continue;
            take_group(call, block, block + 1);
            panel_weights(call, sight, block, false, lanes);
        }
    }
    for (size_t i = 0; i < call->count; i++)
        store_delta(call->args, call->rows[i].place, f32x16_load(lanes + i * QATTN_LANES));
}

static void QATTN_FUNCTION(deltas)(const qattn_backward_args *args) {
    assert(args->row_begin <= args->row_end && args->row_end <= args->problem.heads * args->problem.queries);
    if (args->problem.normaliser != QATTN_CLIPPED_SOFTMAX) {
        if (args->out_gradient_storage == QATTN_FLOAT32 && args->out_storage == QATTN_FLOAT32)
            rows_deltas(args, QATTN_FLOAT32, QATTN_FLOAT32);
        else rows_deltas(args, args->out_gradient_storage, args->out_storage);
        return;
    }
    gradient_call call = begin_call(args);
    for (size_t row = args->row_begin; row < args->row_end;) {
        const size_t head = row / args->problem.queries, query = row % args->problem.queries;
        const size_t count = qattn_min(queries_of_head(args, head).end - query, call.layout.panel);
        take_panel(&call, head, query, count);
        panel_clipped_deltas(&call);
        row += count;
    }
    end_call(&call);
}

/* The u of the rows against one block. */
static void QATTN_FUNCTION(score_gradients)(const qattn_backward_args *args, size_t block, float *gradients) {
    assert(args->row_begin <= args->row_end && args->row_end <= args->problem.heads * args->problem.queries);
    if (args->row_begin == args->row_end) return;
    gradient_call call = begin_call(args);
    take_group(&call, block, block + 1);
    for (size_t row = args->row_begin; row < args->row_end;) {
        const size_t head = row / args->problem.queries, query = row % args->problem.queries;
        const size_t count = qattn_min(queries_of_head(args, head).end - query, call.layout.panel);
        take_panel(&call, head, query, count);
        take_deltas(&call);
        const block_sight sight = look_at_block(&call, block);
        float *const out = gradients + (row - args->row_begin) * QATTN_KEY_BLOCK;
        if (sight == SEES_NOTHING) {
            memset(out, 0, count * QATTN_KEY_BLOCK * sizeof(float));
        } else {
            panel_weights(&call, sight, block, true, NULL);
            memcpy(out, call.products, count * QATTN_KEY_BLOCK * sizeof(float));
        }
        row += count;
    }
    end_call(&call);
}

#endif
