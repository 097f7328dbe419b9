/* SPDX-License-Identifier: Apache-2.0 */
/* rows.inl.h - the rows of a call to forward and their sums: from the caller's queries through the workspace to the
 * caller's outputs or states. */
#ifndef QATTN_ROWS_INL_H
#define QATTN_ROWS_INL_H

#include "attention/forward_layout.h"
#include "attention/scores.inl.h"
#include "attention/weights.inl.h"
#include "tile/products.inl.h"

/* The caller's workspace, cut up, and what else a call knows from its start. Small, and what every block needs stands
 * side by side in the workspace: where few rows stream blocks from memory, each further page that a block of theirs
 * touches disturbs the hardware that reads ahead (8 of them cost 10 %). */
typedef struct forward_workspace {
    qattn_normaliser normaliser; /* of the pass over the keys at hand */
    bool keys_in_place;          /* unpacked, for few rows, with whole sets of chains */
    bool values_in_place;        /* unpacked, in whole vectors */
    bool pairs_in_place;         /* both, for products of bfloat16 by tile instructions */
    qattn_storage value_storage; /* of what tiles read */
    bool in_phases;              /* softmax over packed float32 */
    bool plain, plain_halves;    /* of scores that need nothing but a mask; the same over packed 16 bit */
    bool ranges_only;            /* masks are ranges of keys */
    bool bands;                  /* rows meet blocks in bands: tiles are UNIT_ROWS high */
    bool in_quarters;            /* how blocks from memory are asked for */
    bool streams;                /* few rows over packed keys that wait for memory, with ranges and no other work */
    size_t head_lanes, value_lanes, rows, tiles, tile_rows, block_bytes;
    run_keys keys;      /* of all rows */
    row_place *places;  /* of the rows; the last one's for those that fill the last tile */
    float *queries;     /* q', scaled, 0 past head_dim and in the rows that fill the last tile; see tile_task */
    float *query_steps; /* int8: q' = integer * step, and `queries` holds the integers; pairs: the factor of scores */
    tile_scratch *scratch;  /* by tile */
    row_state chunk, state; /* the sums of the chunk at hand, and those of the chunks before */
    row_totals *totals;     /* of the first pass of clipped softmax, by tile */
    char *fours;            /* int8 in bands: the block at hand as tile instructions take it, keys, then values; pairs
                             * in place: the queries, see tile_task */
    prefetch_cursor upcoming;
    size_t upcoming_share; /* lines to ask for at a time */
} forward_workspace;

/* How many rows a tile has. */
QATTN_INLINE size_t tile_height(const forward_workspace *ws, size_t tile) {
    return qattn_min(ws->tile_rows, ws->rows - tile * ws->tile_rows);
}

/* The rows of all tiles, those that fill up the last one included. */
QATTN_INLINE size_t filled_rows(const forward_workspace *ws) { return ws->tiles * ws->tile_rows; }

/* The c of a row's normaliser. */
QATTN_INLINE float row_constant(const qattn_forward_args *args, row_place row) {
    return args->problem.row_constants[row_offset(args->problem.row_constant_strides, row)];
}

/* A row of factors as it stands, but for the least of them; 0 up to whole segments. */
QATTN_INLINE void copy_factors(void *to, const void *from, size_t dim) {
    for (size_t d = 0; d < dim; d += QATTN_PAIR_SEGMENT) {
        u16x32 x = {0};
        if (d + QATTN_PAIR_SEGMENT <= dim) memcpy(&x, (const char *)from + 2 * d, sizeof x);
        else memcpy(&x, (const char *)from + 2 * d, 2 * (dim - d));
        x = bf16x32_factors_of(x);
        memcpy((char *)to + 2 * d, &x, sizeof x);
    }
}

/* q' = q * c, c = Float(scale * log2 e) unless scores.inl.h has more to say: scores live in base 2. Or q rounded, for
 * bfloat16 pairs, and c for the scores; for bands in the first half of every row. */
QATTN_INLINE void scale_queries(const qattn_forward_args *args, forward_workspace *ws, qattn_storage storage) {
    const size_t head_dim = args->blocks.head_dim;
    const bool rounds = args->blocks.storage == QATTN_BFLOAT16_PAIRS;
    const bool in_steps = !ws->keys_in_place && !in_pairs(args->blocks.storage);
    const float uniform = query_factor(&args->problem, ws->places[0]);
    for (size_t i = 0; i < filled_rows(ws); i++) {
        float *const row = ws->queries + i * ws->head_lanes;
        float *const steps = ws->queries + i / TILE_ROWS * TILE_ROWS * ws->head_lanes + i % TILE_ROWS * QATTN_CHAINS;
        const float c = args->problem.row_factors ? query_factor(&args->problem, ws->places[i]) : uniform;
        if (rounds) ws->query_steps[i] = c;
        const void *q = storage_at(args->queries_base, row_offset(args->query_strides, ws->places[i]), storage);
        if (rounds && ws->bands && storage == QATTN_BFLOAT16 && i < ws->rows) {
            copy_factors(row, q, head_dim);
            continue;
        }
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES) {
            f32x16 x = f32x16_splat(0);
            if (i < ws->rows && d < head_dim)
                x = f32x16_load_first(storage_at(q, (ptrdiff_t)d, storage), head_dim - d, storage);
            x = rounds ? bf16x16_factor(x) : x * f32x16_splat(c);
            if (rounds && ws->bands) f32x16_store_storage((char *)row + 2 * d, x, QATTN_BFLOAT16_PAIRS);
            else if (in_steps) f32x16_store_fours(steps + d * TILE_ROWS, TILE_ROWS * QATTN_CHAINS, x);
            else f32x16_store(row + d, x);
        }
    }
}

/* For int8 keys: integers of 16 bits in the first half of every row, in place. */
QATTN_INLINE void quantise_queries(forward_workspace *ws) {
    for (size_t i = 0; i < filled_rows(ws); i++) {
        float *const query = ws->queries + i * ws->head_lanes;
        u32x16 largest = {0};
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES)
            largest = u32x16_larger_magnitude(largest, f32x16_load(query + d));
        const integer_scale scale = integer_scale_of(__builtin_reduce_max(largest));
        ws->query_steps[i] = scale.step;
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES)
            i16x16_store(query + d / 2, i16x16_quantised(f32x16_load(query + d), scale.factor));
    }
}

/* The same factors for tile instructions that multiply keys as rows: [channel / 2][row][2]. */
QATTN_INLINE void pair_queries(const forward_workspace *ws) {
    for (size_t i = 0; i < ws->rows; i++) {
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES) {
            uint32_t pairs[QATTN_LANES / 2];
            f32x16_store_storage(pairs, f32x16_load(ws->queries + i * ws->head_lanes + d), QATTN_BFLOAT16_PAIRS);
            for (size_t n = 0; n < QATTN_LANES / 2; n++)
                memcpy(ws->fours + ((d / 2 + n) * ws->rows + i) * sizeof *pairs, pairs + n, sizeof *pairs);
        }
    }
}

QATTN_INLINE void scale_all_queries(const qattn_forward_args *args, forward_workspace *ws) {
    switch (args->query_storage) {
    case QATTN_FLOAT32: scale_queries(args, ws, QATTN_FLOAT32); break;
    case QATTN_FLOAT16: scale_queries(args, ws, QATTN_FLOAT16); break;
    default: scale_queries(args, ws, QATTN_BFLOAT16); break;
    }
    if (args->blocks.storage == QATTN_INT8) quantise_queries(ws);
    if (ws->pairs_in_place) pair_queries(ws);
}

/* The empty state, but for what out holds where that is not asked for. */
QATTN_INLINE void reset_state(row_state state, const forward_workspace *ws, bool clears_out) {
    const bool is_softmax = ws->normaliser == QATTN_SOFTMAX;
    for (size_t i = 0; i < ws->tiles * QATTN_LANES; i++) state.maximum[i] = is_softmax ? -__builtin_inff() : 0;
    memset(state.sum, 0, filled_rows(ws) * QATTN_LANES * sizeof(float));
    if (clears_out) memset(state.out, 0, filled_rows(ws) * ws->value_lanes * sizeof(float));
    memset(state.started, false, ws->rows * sizeof(bool));
}

QATTN_INLINE void merge_chunk(const forward_workspace *ws) {
    for (size_t i = 0; i < ws->rows; i++) {
        if (ws->chunk.started[i])
            merge_row(row_of(ws->state, i, ws->value_lanes), ws->state.started + i,
                      row_of(ws->chunk, i, ws->value_lanes), ws->value_lanes);
    }
}

/* The final factor, log-sum-exp and sink share of the rows of a tile, from their sums over all keys. A row that saw no
 * key has o = 0, so that any factor does; only its lse is set apart. */
QATTN_INLINE row_totals tile_result(const qattn_forward_args *args, const forward_workspace *ws, row_state state,
                                    size_t tile) {
    const size_t first = tile * ws->tile_rows, count = tile_height(ws, tile);
    const row_place *const places = ws->places + first;
    const float *const maximum = state.maximum + tile * QATTN_LANES;
    const f32x16 lane_sums = tile_lane_sums(ws->tile_rows, state.sum + first * QATTN_LANES);
    row_totals totals;
    if (ws->normaliser == QATTN_SOFTMAX) {
        float sinks[QATTN_LANES];
        f32x16_store(sinks, f32x16_splat(args->problem.sinks[places[0].head]));
        for (size_t r = 0; places[count - 1].head != places[0].head && r < count; r++)
            sinks[tile_lane(ws->tile_rows, r)] = args->problem.sinks[places[r].head];
        for (size_t r = 0; args->problem.normaliser == QATTN_SOFTMAX && args->problem.row_constants && r < count; r++)
            sinks[tile_lane(ws->tile_rows, r)] += row_constant(args, places[r]);
        tile_totals(maximum, lane_sums, sinks, &totals, args->problem.bias, args->lse, args->sink_share);
        for (size_t r = 0; args->lse && r < count; r++) {
            const size_t lane = tile_lane(ws->tile_rows, r);
            if (!state.started[first + r]) totals.lse[lane] = sinks[lane];
        }
    } else if (ws->normaliser == QATTN_CLIPPED_SOFTMAX) {
        totals = ws->totals[tile];
        f32x16_store(totals.factor, f32x16_splat(1));
    } else {
        float sums[QATTN_LANES];
        f32x16_store(sums, lane_sums);
        for (size_t r = 0; r < count; r++) {
            const size_t lane = tile_lane(ws->tile_rows, r);
            totals.factor[lane] = weights_factor(ws->normaliser, sums[lane], row_constant(args, places[r]));
        }
    }
    return totals;
}

/* What backward needs to make the weights of a row again, whose number stands in lane `lane` of its tile's. */
QATTN_INLINE void store_weight_numbers(const qattn_forward_args *args, const forward_workspace *ws, row_state state,
                                       size_t tile, size_t lane, ptrdiff_t at, float factor) {
    if (args->problem.normaliser == QATTN_CLIPPED_SOFTMAX) {
        args->references[at] = ws->totals[tile].maximum[lane];
        args->factors[at] = ws->totals[tile].factor[lane];
        return;
    }
    const float maximum = state.maximum[tile * QATTN_LANES + lane];
    args->references[at] = maximum == -__builtin_inff() ? 0 : maximum;
    args->factors[at] = factor;
}

QATTN_INLINE void store_rows(const qattn_forward_args *args, const forward_workspace *ws, row_state state,
                             qattn_storage storage) {
    const size_t value_dim = args->blocks.value_dim;
    for (size_t tile = 0; tile < ws->tiles; tile++) {
        const size_t first = tile * ws->tile_rows, count = tile_height(ws, tile);
        const row_totals totals = tile_result(args, ws, state, tile);
        for (size_t r = 0; r < count; r++) {
            const row_place place = ws->places[first + r];
            const size_t lane = tile_lane(ws->tile_rows, r);
            const f32x16 row_factor = f32x16_splat(totals.factor[lane]);
            const float *const o = state.out + (first + r) * ws->value_lanes;
            char *const out =
                (char *)args->out + row_offset(args->out_strides, place) * (ptrdiff_t)storage_size(storage);
            for (size_t c = 0; c < value_dim; c += QATTN_LANES)
                f32x16_store_first(out + c * storage_size(storage), value_dim - c, f32x16_load(o + c) * row_factor,
                                   storage);
            const ptrdiff_t at = (ptrdiff_t)place.head * args->sum_head_stride + (ptrdiff_t)place.query;
            if (args->lse) args->lse[at] = totals.lse[lane];
            if (args->sink_share) args->sink_share[at] = totals.sink_share[lane];
            if (args->references) store_weight_numbers(args, ws, state, tile, lane, at, totals.factor[lane]);
        }
    }
}

QATTN_INLINE void store_result(const qattn_forward_args *args, const forward_workspace *ws, row_state state) {
    switch (args->out_storage) {
    case QATTN_FLOAT32: store_rows(args, ws, state, QATTN_FLOAT32); break;
    case QATTN_FLOAT16: store_rows(args, ws, state, QATTN_FLOAT16); break;
    default: store_rows(args, ws, state, QATTN_BFLOAT16); break;
    }
}

/* The parts of one of the states in the caller's array; *seen is its `seen`. */
QATTN_INLINE row_sums state_at(const qattn_forward_args *args, float *states, size_t index, float **seen) {
    float *const state = states + index * qattn_state_floats(args->blocks.value_dim);
    *seen = state + 1;
    return (row_sums){.maximum = state, .sum = state + QATTN_LANES, .out = state + 2 * QATTN_LANES};
}

QATTN_INLINE void store_states(const qattn_forward_args *args, const forward_workspace *ws, size_t chunk) {
    for (size_t i = 0; i < ws->rows; i++) {
        float *seen;
        const row_sums state = state_at(args, args->states, (chunk - args->chunk_begin) * ws->rows + i, &seen);
        copy_row(state, row_of(ws->chunk, i, ws->value_lanes), ws->value_lanes);
        *seen = ws->chunk.started[i];
    }
}

QATTN_INLINE row_state state_in(float *workspace, state_layout layout, size_t tile_rows) {
    return (row_state){.tile_rows = tile_rows,
                       .started = (bool *)(workspace + layout.started),
                       .maximum = workspace + layout.maximum,
                       .sum = workspace + layout.sum,
                       .out = workspace + layout.out};
}

QATTN_INLINE void place_rows(const qattn_forward_args *args, const forward_workspace *ws) {
    row_place place = {.head = args->row_begin / args->problem.queries,
                       .query = args->row_begin % args->problem.queries};
    for (size_t i = 0; i < filled_rows(ws); i++) {
        ws->places[i] = place;
        if (i + 1 >= ws->rows) continue;
        if (++place.query == args->problem.queries) place = (row_place){.head = place.head + 1, .query = 0};
    }
}

_Static_assert(sizeof(row_place) == PLACE_FLOATS * sizeof(float), "what forward_layout counts");
_Static_assert(sizeof(tile_scratch) == SCRATCH_FLOATS * sizeof(float), "what forward_layout counts");
_Static_assert(sizeof(row_totals) == TOTALS_FLOATS * sizeof(float), "what forward_layout counts");

/* Whether so many rows meet blocks of such a type in bands. */
QATTN_INLINE bool takes_bands(qattn_storage storage, size_t rows) {
#if defined(QATTN_TILE_UNIT)
    return in_pairs(storage) && rows >= (storage == QATTN_INT8 ? LEAST_INTEGER_BAND_ROWS : LEAST_PAIR_BAND_ROWS);
#elif defined(QATTN_BANDS)
    return storage == QATTN_BFLOAT16_PAIRS && rows >= LEAST_DOT_BAND_ROWS;
#else
    (void)storage, (void)rows;
    return false;
#endif
}

/* Whether so few rows meet keys and values of bfloat16, by products of bfloat16, where they stand. */
QATTN_INLINE bool takes_pairs_in_place(const qattn_forward_args *args, size_t rows) {
#if defined(QATTN_TILE_UNIT)
    const qattn_pack_args *const x = args->unpacked;
    if (args->problem.seq_kv < QATTN_KEY_BLOCK) return false; /* a block that is packed */
    return x && args->blocks.storage == QATTN_BFLOAT16_PAIRS && rows <= TILE_ROWS && x->key_storage == QATTN_BFLOAT16 &&
           x->value_storage == QATTN_BFLOAT16 && x->key_stride != 0 && x->value_stride != 0 &&
           args->blocks.head_dim % QATTN_LANES == 0 && args->blocks.value_dim % QATTN_LANES == 0;
#else
    (void)args, (void)rows;
    return false;
#endif
}

/* With `bands`, rows may be multiplied in bands. */
QATTN_INLINE void cut_workspace(const qattn_forward_args *args, forward_workspace *ws, bool bands) {
    ws->normaliser = args->problem.normaliser;
    ws->rows = args->row_end - args->row_begin;
    /* Rows in one and the same place, at a stride of 0, are packed: 0 says in a tile's task that they are. */
    const bool reads_rows = args->unpacked && args->blocks.storage == QATTN_FLOAT32;
    /* Values of 16 bit are widened anew for each tile, which costs more than packing them from the third tile on. */
    ws->values_in_place = reads_rows && args->unpacked->value_stride != 0 &&
                          args->blocks.value_dim % QATTN_LANES == 0 &&
                          (args->unpacked->value_storage == QATTN_FLOAT32 || ws->rows <= 2 * TILE_ROWS);
    ws->value_storage = ws->values_in_place ? args->unpacked->value_storage : args->blocks.storage;
    ws->pairs_in_place = bands && takes_pairs_in_place(args, ws->rows);
    ws->keys_in_place = reads_rows && args->unpacked->key_stride != 0 && args->blocks.head_dim % QATTN_CHAINS == 0 &&
                        ws->rows <= STREAMING_ROWS;
    ws->in_phases = !ws->keys_in_place && args->problem.normaliser == QATTN_SOFTMAX &&
                    args->blocks.storage == QATTN_FLOAT32 && ws->value_storage == QATTN_FLOAT32;
    ws->plain = ws->in_phases && scores_are_plain(&args->problem);
    ws->plain_halves = args->problem.normaliser == QATTN_SOFTMAX && scores_are_plain(&args->problem) &&
                       !args->unpacked &&
                       (args->blocks.storage == QATTN_FLOAT16 || args->blocks.storage == QATTN_BFLOAT16);
    ws->ranges_only = !args->problem.mask && !args->problem.bias;
    ws->in_quarters = asks_in_quarters(args->in_quarters);
    ws->bands = bands && !ws->pairs_in_place && takes_bands(args->blocks.storage, ws->rows);
    ws->tile_rows = ws->bands ? UNIT_ROWS : TILE_ROWS;
    ws->tiles = (ws->rows + ws->tile_rows - 1) / ws->tile_rows;
    ws->block_bytes = qattn_block_bytes(args->blocks.storage, args->blocks.head_dim, args->blocks.value_dim);
    const size_t channels = packed_channels(args->blocks.head_dim, args->blocks.storage);
    const forward_layout layout = forward_layout_of(ws->bands ? qattn_round_up(channels, QATTN_PAIR_SEGMENT) : channels,
                                                    args->blocks.value_dim, ws->tiles, ws->tile_rows);
    float *const workspace = args->workspace;
    ws->head_lanes = layout.head_lanes;
    ws->value_lanes = layout.value_lanes;
    ws->places = (row_place *)(workspace + layout.places);
    ws->query_steps = workspace + layout.query_steps;
    ws->queries = workspace + layout.queries;
    ws->scratch = (tile_scratch *)(workspace + layout.scratch);
    ws->chunk = state_in(workspace, layout.chunk, ws->tile_rows);
    ws->state = state_in(workspace, layout.state, ws->tile_rows);
    ws->totals = (row_totals *)(workspace + layout.totals);
    ws->fours = (char *)(workspace + layout.fours);
    place_rows(args, ws);
    ws->keys = keys_of_run(&args->problem, ws->places[0], ws->places[ws->rows - 1]);
}

#endif
