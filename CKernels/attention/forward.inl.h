/* SPDX-License-Identifier: Apache-2.0 */
/* forward.inl.h - fused attention of up to QATTN_QUERY_BLOCK rows, of the query heads that share one key/value head.
 *
 *     out[i] = sum_j p[i][j] v[j],  p[i] = softmax with sink, or another normaliser, of the finished scores of row i
 *
 * Loop nest, outermost first; every row meets its keys in ascending order, whatever the tiles:
 *
 *     chunk of 1024 keys          sums start empty, merge into the rows' state at the end
 *       block of 64 keys          packed keys and values of a block stay in L1 or L2 while all tiles use them
 *         tile of 6 rows          1. scores t = q'.k, in registers     keys across lanes, channels ascending
 *                                 2. softmax: m, l, p (softmax.inl.h; others: scores.inl.h, weights.inl.h)
 *         panel of columns, tile  3. o = o a + sum p v, in registers   value columns across lanes, keys ascending
 *
 * Online softmax: Milakov and Gimelshein 2018; tiling: Dao et al. 2022. */
#ifndef QATTN_FORWARD_INL_H
#define QATTN_FORWARD_INL_H

#include "attention/steps.inl.h"
#include "memory/pack.inl.h"
#include "memory/prefetch.inl.h"
#if defined(QATTN_TILE_UNIT)
#include "attention/integer_bands.inl.h"
#endif
#if defined(QATTN_BANDS)
#include "attention/pair_bands.inl.h"
#endif

enum { CHUNK_BLOCKS = QATTN_KEY_CHUNK / QATTN_KEY_BLOCK, TOUCHED_RUN = 131072 /* bytes */ };

/* The block after `block`, up to block_end, or NULL. */
QATTN_INLINE const char *block_after(const qattn_forward_args *args, const forward_workspace *ws, size_t block,
                                     size_t block_end) {
    return block + 1 < block_end ? block_at(&args->blocks, block + 1, ws->block_bytes) : NULL;
}

/* From beyond the caches, rows one behind the other are read as one run of memory before they are of use: keys, and
 * values of several panels, which are not read in order. As each jump from one tensor to the other costs most of a
 * microsecond, runs are long then; values of one panel are read in order by the tile itself. Blocks from block_end on
 * are outside the range of this call and are not touched. */
QATTN_INLINE void touch_runs(const qattn_forward_args *args, const qattn_pack_args *rows, size_t block,
                             size_t block_end) {
    const size_t key_bytes = args->blocks.head_dim * storage_size(rows->key_storage);
    const size_t value_bytes = args->blocks.value_dim * storage_size(rows->value_storage);
    const bool touches_values =
        rows->value_stride == (ptrdiff_t)args->blocks.value_dim && args->blocks.value_dim > PANEL_VECTORS * QATTN_LANES;
    const size_t blocks = touches_values ? qattn_max(TOUCHED_RUN / (QATTN_KEY_BLOCK * key_bytes), 1) : 1;
    if (block % blocks) return;
    const size_t end = qattn_min(block + blocks, block_end);
    const size_t count = qattn_min(args->problem.seq_kv, end * QATTN_KEY_BLOCK) - block * QATTN_KEY_BLOCK;
    if (rows->key_stride == (ptrdiff_t)args->blocks.head_dim) QATTN_FUNCTION(touch_far)(rows->keys, count * key_bytes);
    if (touches_values) QATTN_FUNCTION(touch_far)(rows->values, count * value_bytes);
}

/* While a call multiplies a block's keys it asks for the keys of the next block, and then for its values, in quarters: one row over float32 of d 128 reads 13 to 15 GB/s from an Emerald Rapids' memory, and 7.5 after
 * touch_runs. */
QATTN_INLINE block_prefetch ask_for_next_rows(const qattn_forward_args *args, const qattn_pack_args *rows, size_t block,
                                              size_t block_end) {
    const size_t first = (block + 1) * QATTN_KEY_BLOCK;
    if (block + 1 >= block_end) return (block_prefetch){0};
    const ptrdiff_t key_step = rows->key_stride * (ptrdiff_t)storage_size(rows->key_storage);
    const ptrdiff_t value_step = rows->value_stride * (ptrdiff_t)storage_size(rows->value_storage);
    qattn_upcoming_rows next = {(const char *)rows->keys + QATTN_KEY_BLOCK * key_step, key_step,
                                qattn_min(args->problem.seq_kv - first, QATTN_KEY_BLOCK),
                                args->blocks.head_dim * storage_size(rows->key_storage)};
    block_prefetch asked = {.following = next, .in_quarters = true};
    block_prefetch_next_row(&asked);
    next.base = (const char *)rows->values + QATTN_KEY_BLOCK * value_step;
    next.stride_bytes = value_step;
    next.row_bytes = args->blocks.value_dim * storage_size(rows->value_storage);
    asked.following = next;
    return asked;
}

/* Takes keys and values of bfloat16 where they stand, by tile instructions: 64 whole rows of factors. */
QATTN_INLINE bool take_pair_rows(const qattn_forward_args *args, const qattn_pack_args *rows, tile_task *task) {
    task->key_step = 0;
    task->value_stride = 0;
#if defined(QATTN_TILE_UNIT)
    const ptrdiff_t key_step = rows->key_stride * 2;
    if (rows->key_end < QATTN_KEY_BLOCK || !rows_are_factors(rows->keys, key_step, args->blocks.head_dim, &task->next))
        return false;
    task->block.keys = (char *)rows->keys;
    task->block.values = (char *)rows->values;
    task->key_step = key_step;
    task->value_stride = (size_t)rows->value_stride;
    return true;
#else
    (void)args, (void)rows;
    return false;
#endif
}

/* Block `block` of a call whose keys and values are rows: what cannot be read where it stands is packed. From beyond
 * the caches, rows one behind the other are read as one run of memory first, or asked for a block ahead. */
QATTN_INLINE void pack_unpacked(const qattn_forward_args *args, const forward_workspace *ws, size_t block,
                                size_t block_end, tile_task *task) {
    qattn_pack_args rows = *args->unpacked;
    const ptrdiff_t first = (ptrdiff_t)(block * QATTN_KEY_BLOCK);
    rows.keys = storage_at(rows.keys, first * rows.key_stride, rows.key_storage);
    rows.values = storage_at(rows.values, first * rows.value_stride, rows.value_storage);
    rows.key_begin = 0;
    rows.key_end = qattn_min(args->problem.seq_kv - block * QATTN_KEY_BLOCK, QATTN_KEY_BLOCK);
    rows.blocks = args->blocks;
    task->next = (block_prefetch){0};
    if (args->beyond_caches && ws->in_quarters &&
        (ws->keys_in_place || ws->pairs_in_place || (ws->plain && ws->ranges_only))) {
        task->next = ask_for_next_rows(args, &rows, block, block_end);
    } else if (args->beyond_caches) touch_runs(args, &rows, block, block_end);
    if (ws->pairs_in_place && take_pair_rows(args, &rows, task)) return;
    if (ws->keys_in_place) {
        rows.blocks.head_dim = 0;
        task->block = block_cut(&rows.blocks, rows.blocks.base, rows.blocks.storage);
        task->block.keys = (char *)rows.keys;
        task->key_step = rows.key_stride * (ptrdiff_t)storage_size(rows.key_storage);
        task->last_key = rows.key_end - 1;
    }
    if (ws->values_in_place) {
        rows.blocks.value_dim = 0;
        task->block.values = (char *)rows.values;
        task->value_stride = (size_t)rows.value_stride;
    }
    if (!ws->keys_in_place || !ws->values_in_place) QATTN_FUNCTION(pack)(&rows);
}

/* How many bytes ahead memory-bound tiles prefetch. Not at all if they read faster than memory: hardware prefetching
 * follows one run of reads by itself, with more reads in flight than instructions can start (24 lines on Zen 4). Tiles
 * that take longer for a line than memory does prefetch each line. Three and four rows of float32 take as long as the
 * last cache, so the best choice depends on where the blocks are; in passes, which are not quite one run of reads, they
 * prefetch wherever those are (AVX2, from memory: 26 GB/s with, 20 without; two rows 18 with, 28 without). Five and six
 * rows ask for themselves: ask_for_strided. In quarters few rows prefetch the next block whole, of float32 from memory
 * alone: L2 is faster without. */
QATTN_INLINE size_t streaming_ahead(const qattn_forward_args *args, const forward_workspace *ws) {
    const qattn_storage storage = args->blocks.storage;
    /* A line of int8 keeps even one row busy for longer than memory; the small block is better asked for whole. */
    if (storage == QATTN_INT8) return ws->tiles == 1 ? 24576 : 0;
    if (ws->rows > asking_rows(ws->in_quarters)) return 0;
    if (ws->in_quarters)
        return args->beyond_caches || (storage != QATTN_FLOAT32 && ws->tiles == 1) ? ws->block_bytes : 0;
    /* Vectors of columns are not quite one run of reads. */
    if (storage == QATTN_BFLOAT16_PAIRS) return 16384;
    const size_t products = ws->rows * CACHE_LINE / (QATTN_LANES * storage_size(storage)); /* of 16, with every line */
    const bool hardware_prefetches = storage == QATTN_FLOAT32 && args->beyond_caches && !in_passes(ws->rows);
    return products >= 3 && !hardware_prefetches ? 16384 : 0;
}

/* A packed block, and what follows it up to block_end, to be asked for so far ahead. */
QATTN_INLINE void take_block(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t block,
                             size_t block_end, size_t ahead) {
    task->block = block_number(args, ws, block);
    task->next = block_prefetch_begin(task->block.keys, block_after(args, ws, block, block_end), ws->block_bytes, ahead,
                                      ws->in_quarters);
}

/* One block against every tile, by phases: its keys meet all tiles before its values do, so that either stay in L1. The
 * weights of a tile follow the scores of the next, beside whose products its maximum, a chain of shuffles, takes no time.
 * Where the next block is asked for, the first tile takes all its steps and asks on the way: over rows as they stand 32
 * rows of d 128 take 0.84 of the time. */
QATTN_INLINE void forward_phases(tile_task *task, const qattn_forward_args *args, forward_workspace *ws,
                                 size_t block_first) {
    size_t scored = ws->tiles; /* the tile whose weights are due */
    size_t first = 0;
    for (size_t tile = 0; tile < ws->tiles; tile++) {
        prefetch_lines(&ws->upcoming, ws->upcoming_share);
        task->scratch = ws->scratch + tile;
        if (!tile_sees(task, args, ws, tile, block_first)) continue;
        if (tile == 0 && ws->plain && task->next.at && task->scratch->all == ~UINT64_C(0)) {
            TILE_CALL(tile_streamed, tile_height(ws, 0), task);
            prefetch_lines(&ws->upcoming, ws->upcoming_share);
            first = 1;
            continue;
        }
        phase_scores(task, args, ws, tile, block_first);
        if (scored < ws->tiles) phase_weights(ws, scored);
        scored = tile;
    }
    if (scored < ws->tiles) phase_weights(ws, scored);
    phase_values(task, ws, first);
}

/* One block against every tile. */
QATTN_INLINE void forward_block(tile_task *task, const qattn_forward_args *args, forward_workspace *ws, size_t block,
                                size_t block_end) {
    const size_t block_first = block * QATTN_KEY_BLOCK;
    if (args->unpacked) {
        task->block = block_number(args, ws, 0);
        pack_unpacked(args, ws, block, block_end, task);
    } else {
        take_block(task, args, ws, block, block_end, streaming_ahead(args, ws));
    }
    if (ws->in_phases) {
        forward_phases(task, args, ws, block_first);
        return;
    }
    /* The next block comes from memory or L3 while this one is computed. Memory-bound tiles prefetch it as they go. For
     * the others hardware prefetching suffices; only many tiles of int8, which take long for few bytes, gain from
     * prefetching a share each: 4 to 9 %. Float32 and 16 bit lose 25 to 33 % by it with one tile, 8 to 18 % with two to
     * four, and 1 to 2 % with 16; int8 loses 5 to 7 % with one. */
    const bool asks = !args->unpacked && args->blocks.storage == QATTN_INT8 && ws->rows > 2 * TILE_ROWS;
    const qattn_upcoming_rows next_block = {asks ? block_after(args, ws, block, block_end) : NULL, 0, 1,
                                            ws->block_bytes};
    prefetch_cursor next = prefetch_begin(&next_block, 1);
    const size_t share = (prefetch_line_count(&next_block, 1) + ws->tiles - 1) / ws->tiles;
#if defined(QATTN_TILE_UNIT)
    if (ws->bands && args->blocks.storage == QATTN_INT8) {
        QATTN_FUNCTION(integer_bands)(args, ws, task->block, block_first, &next, 2 * share);
        return;
    }
#endif
#if defined(QATTN_BANDS)
    if (ws->bands) {
        QATTN_FUNCTION(pair_bands)(args, ws, block, block + 1, false);
        return;
    }
#endif
    for (size_t tile = 0; tile < ws->tiles; tile++) {
        prefetch_lines(&next, share);
        prefetch_lines(&ws->upcoming, ws->upcoming_share);
        if (tile_sees(task, args, ws, tile, block_first))
            tile_finished(task, args, ws, tile * TILE_ROWS, tile_height(ws, tile), block_first);
    }
}

/* One tile of `count` rows from row i on against a block that they see whole. */
QATTN_INLINE void stream_tile(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t i,
                              size_t count, size_t block) {
    if (ws->plain) TILE_CALL(tile_streamed, count, task);
#if defined(QATTN_AVX512)
    else if (ws->plain_halves && count == TILE_ROWS) TILE_CALL_STREAMED(args->blocks.storage, 6, task);
    else if (ws->plain_halves && count > ASKING_TILE_ROWS) TILE_CALL_STREAMED(args->blocks.storage, 5, task);
#endif
    else tile_finished(task, args, ws, i, count, block * QATTN_KEY_BLOCK);
}

/* Blocks [begin, end) against few tiles, without a mask: only the address changes from block to block. Four rows are
 * bound by memory, and beside that the checks of forward_block take 7 % of their time, and the registers that the code of
 * the other normalisers occupies 2 %. The first of several tiles asks for the next block, the others find theirs in L2. */
QATTN_NOINLINE void QATTN_FUNCTION(stream_blocks)(tile_task *task, const qattn_forward_args *args,
                                                  forward_workspace *ws, size_t begin, size_t end, size_t block_end) {
    const size_t ahead = streaming_ahead(args, ws);
    if (ws->tiles == 1) {
        take_rows(task, ws, 0);
        tile_sees_all(task, ws->chunk.started, ws->rows);
        for (size_t block = begin; block < end; block++) {
            take_block(task, args, ws, block, block_end, ahead);
            stream_tile(task, args, ws, 0, ws->rows, block);
        }
        return;
    }
    for (size_t block = begin; block < end; block++) {
        take_block(task, args, ws, block, block_end, ahead);
        for (size_t tile = 0; tile < ws->tiles; tile++) {
            const size_t i = tile * TILE_ROWS, count = tile_height(ws, tile);
            take_rows(task, ws, tile);
            tile_sees_all(task, ws->chunk.started + i, count);
            stream_tile(task, args, ws, i, count, block);
            task->next = (block_prefetch){0};
        }
    }
}

/* Blocks [begin, end) of one chunk, from the empty state; the next block of the call is fetched ahead up to block_end.
 */
QATTN_INLINE void forward_chunk(tile_task *task, const qattn_forward_args *args, forward_workspace *ws, size_t begin,
                                size_t end, size_t block_end) {
#if defined(QATTN_BANDS)
    if (ws->bands && args->blocks.storage == QATTN_BFLOAT16_PAIRS && !args->unpacked) {
        reset_state(ws->chunk, ws, false);
        QATTN_FUNCTION(pair_bands)(args, ws, begin, end, true);
        return;
    }
#endif
    reset_state(ws->chunk, ws, true);
    size_t first = end, last = end; /* of the blocks that streaming rows see whole */
    if (ws->streams) {
        const key_range all = ws->keys.all;
        first = qattn_max(begin, ((size_t)all.first + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK);
        last = qattn_min(end, all.last > 0 ? (size_t)all.last / QATTN_KEY_BLOCK : 0);
    }
    for (size_t block = begin; block < end;) {
        if (block == first && first < last) {
            QATTN_FUNCTION(stream_blocks)(task, args, ws, first, last, block_end);
            block = last;
        } else forward_block(task, args, ws, block++, block_end);
    }
}

/* Blocks [begin, end), whose first one may be anywhere in its chunk: the rows' sums over all of them. Keys of a single
 * chunk need no merge: the first chunk that a row sees is the row's state as it is. */
QATTN_INLINE row_state forward_blocks(tile_task *task, const qattn_forward_args *args, forward_workspace *ws,
                                      size_t begin, size_t end) {
    const bool one_chunk = end <= (begin / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS;
    if (!one_chunk) reset_state(ws->state, ws, true);
    size_t block = begin;
    do {
        const size_t chunk_end = qattn_min(end, (block / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS);
        forward_chunk(task, args, ws, block, chunk_end, end);
        if (!one_chunk) merge_chunk(ws);
        block = chunk_end;
    } while (block < end);
    return one_chunk ? ws->chunk : ws->state;
}

/* Clipped softmax: the maximum and the sum of each row, without values, so that the pass over the values that follows
 * knows every weight as it meets it. */
QATTN_NOINLINE void QATTN_FUNCTION(first_pass)(tile_task *task, const qattn_forward_args *args, forward_workspace *ws,
                                               size_t begin, size_t end) {
    const size_t value_lanes = ws->value_lanes;
    task->value_lanes = ws->value_lanes = 0;
    ws->normaliser = QATTN_SOFTMAX;
    const row_state state = forward_blocks(task, args, ws, begin, end);
    for (size_t tile = 0; tile < ws->tiles; tile++) ws->totals[tile] = tile_result(args, ws, state, tile);
    task->value_lanes = ws->value_lanes = value_lanes;
    ws->normaliser = QATTN_CLIPPED_SOFTMAX;
}

static void QATTN_FUNCTION(forward)(const qattn_forward_args *args) {
    assert(args->row_begin <= args->row_end && args->row_end - args->row_begin <= QATTN_QUERY_BLOCK);
    assert(args->row_end <= args->problem.heads * args->problem.queries);
    if (args->row_end == args->row_begin) return;
    assert(args->problem.normaliser != QATTN_CLIPPED_SOFTMAX || !args->states);
    forward_workspace ws;
    cut_workspace(args, &ws, true);
    scale_all_queries(args, &ws);

    /* The keys that some row may see. */
    const key_range keys = ws.keys.any;
    size_t block_begin = (size_t)keys.first / QATTN_KEY_BLOCK, block_end = block_begin;
    if (keys.last > keys.first) block_end = ((size_t)keys.last + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK;
    if (args->states) {
        block_begin = qattn_max(block_begin, args->chunk_begin * CHUNK_BLOCKS);
        block_end = qattn_min(block_end, args->chunk_end * CHUNK_BLOCKS);
    }
    /* A share of the lines with each tile and block, by phases with scores and with values: few at a time do not queue up. */
    const size_t blocks = block_begin < block_end ? block_end - block_begin : 0;
    const size_t shares = qattn_max(ws.tiles * blocks * (ws.in_phases ? 2 : 1), 1);
    ws.upcoming = prefetch_begin(args->upcoming, QATTN_UPCOMING);
    ws.upcoming_share = (prefetch_line_count(args->upcoming, QATTN_UPCOMING) + shares - 1) / shares;
    ws.streams = ws.rows <= asking_rows(ws.in_quarters) && !args->unpacked && ws.ranges_only && !ws.upcoming_share &&
                 !ws.bands && (ws.tiles == 1 || (args->beyond_caches && (ws.plain || ws.plain_halves)));

#if defined(QATTN_TILE_UNIT)
    if (ws.bands && args->blocks.storage == QATTN_INT8) halve_queries(args, &ws);
    /* Of this thread; tiles of few rows are faster. */
    if (ws.bands) tile_unit_begin((unit_shape){qattn_min(ws.rows, UNIT_ROWS), QATTN_LANES, 0});
    if (ws.pairs_in_place)
        tile_unit_begin((unit_shape){UNIT_ROWS, ws.rows, args->blocks.head_dim % QATTN_PAIR_SEGMENT});
#endif
    tile_task task = begin_task(args, &ws);
    if (args->states) {
        for (size_t chunk = args->chunk_begin; chunk < args->chunk_end; chunk++) {
            const size_t first = chunk * CHUNK_BLOCKS;
            forward_chunk(&task, args, &ws, qattn_max(block_begin, first), qattn_min(block_end, first + CHUNK_BLOCKS),
                          block_end);
            store_states(args, &ws, chunk);
        }
    } else {
        if (args->problem.normaliser == QATTN_CLIPPED_SOFTMAX)
            QATTN_FUNCTION(first_pass)(&task, args, &ws, block_begin, block_end);
        store_result(args, &ws, forward_blocks(&task, args, &ws, block_begin, block_end));
    }
#if defined(QATTN_TILE_UNIT)
    if (ws.bands || ws.pairs_in_place) tile_unit_end();
#endif
}

/* The states of chunks that forward left, merged from left to right as forward itself merges them. */
static void QATTN_FUNCTION(finish)(const qattn_forward_args *args) {
    assert(args->row_begin <= args->row_end && args->row_end - args->row_begin <= QATTN_QUERY_BLOCK);
    if (args->row_end == args->row_begin) return;
    forward_workspace ws;
    cut_workspace(args, &ws, true);
    reset_state(ws.state, &ws, true);
    for (size_t index = 0; index < (args->chunk_end - args->chunk_begin) * ws.rows; index++) {
        float *seen;
        const size_t i = index % ws.rows;
        const row_sums chunk = state_at(args, args->states, index, &seen);
        if (*seen != 0) merge_row(row_of(ws.state, i, ws.value_lanes), ws.state.started + i, chunk, ws.value_lanes);
    }
    store_result(args, &ws, ws.state);
}

/* The same states, joined one after another to what the rows know of all chunks before them. */
static void QATTN_FUNCTION(merge)(const qattn_forward_args *args, float *totals) {
    const size_t rows = args->row_end - args->row_begin;
    const size_t value_lanes = qattn_round_up(args->blocks.value_dim, QATTN_LANES);
    for (size_t index = 0; index < (args->chunk_end - args->chunk_begin) * rows; index++) {
        float *seen, *started;
        const row_sums chunk = state_at(args, args->states, index, &seen);
        if (*seen == 0) continue;
        const row_sums total = state_at(args, totals, index % rows, &started);
        bool has_started = *started != 0;
        merge_row(total, &has_started, chunk, value_lanes);
        *started = 1;
    }
}

/* The finished scores of the rows against one block. */
static void QATTN_FUNCTION(scores)(const qattn_forward_args *args, size_t block, float *scores) {
    assert(args->row_begin <= args->row_end && args->row_end - args->row_begin <= QATTN_QUERY_BLOCK);
    if (args->row_end == args->row_begin) return;
    forward_workspace ws;
    cut_workspace(args, &ws, false);
    scale_all_queries(args, &ws);
    tile_task task = begin_task(args, &ws);
    task.block = block_number(args, &ws, block);
    bool started[TILE_ROWS] = {false};
    for (size_t tile = 0; tile < ws.tiles; tile++) {
        const size_t i = tile * TILE_ROWS, count = tile_height(&ws, tile);
        take_rows(&task, &ws, tile);
        tile_sees_some(&task, args, ws.places + i, started, count, block * QATTN_KEY_BLOCK);
        /* Every score passes its mask, so that nothing but -inf stands where a row sees nothing. */
        task.scratch->all = 0;
        tile_finished_scores(&task, args, ws.places + i, count, block * QATTN_KEY_BLOCK);
        memcpy(scores + i * QATTN_KEY_BLOCK, task.scratch->weights, count * QATTN_KEY_BLOCK * sizeof(float));
    }
}

#endif
