/* SPDX-License-Identifier: Apache-2.0 */
/* forward.inl.h - fused attention of up to QATTN_QUERY_BLOCK rows of one query head.
 *
 *     out[i] = sum_j p[i][j] v[j],  p[i] = softmax with sink of  scale * q[i].k[j] + bias[i][j]  over the visible j
 *
 * Loop nest, outermost first; every row meets its keys in ascending order, whatever the tiles:
 *
 *     chunk of 1024 keys          sums start empty, merge into the rows' state at the end
 *       block of 64 keys          packed keys and values of a block stay in L1 or L2 while all tiles use them
 *         tile of 6 rows          1. scores t = q'.k, in registers     keys across lanes, channels ascending
 *                                 2. softmax: m, l, p (softmax.inl.h)
 *                                 3. o = o a + sum p v, in registers   value columns across lanes, keys ascending
 *
 * Online softmax: Milakov and Gimelshein 2018; tiling: Dao et al. 2022. */
#ifndef QATTN_FORWARD_INL_H
#define QATTN_FORWARD_INL_H

#include "attention/prefetch.inl.h"
#include "attention/softmax.inl.h"
#include "simd/half.h"

/* A score is the sum of four chains: side by side where the registers hold them for all rows, else one after another.
 */
enum { QATTN_CHAINS = 4, CHAINS_AT_ONCE = QATTN_VECTORS };

/* The caller's workspace, cut up. */
typedef struct forward_workspace {
    float *queries;         /* q' [rows][head_lanes], scaled, 0 past head_dim and in the rows that fill the last tile */
    row_state state, chunk; /* the sums so far, and those of the chunk at hand */
    size_t head_lanes, value_lanes, rows, tiles;
    prefetch_cursor upcoming[QATTN_UPCOMING];
    size_t upcoming_share[QATTN_UPCOMING]; /* lines to ask for with each tile and block */
} forward_workspace;

/* A tile's share of the work on one block. */
typedef struct tile_task {
    const float *queries; /* [6][head_lanes] */
    const float *keys;    /* [head_dim][64] */
    const float *values;  /* [64][value_lanes] */
    float *maximum, *sum, *out;
    size_t head_dim, head_lanes, value_lanes;
    uint64_t visible[TILE_ROWS]; /* by row, after mask.inl.h */
    uint64_t any, all;           /* of them */
    float probabilities[TILE_ROWS * QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT)));
    float rescale[QATTN_LANES] __attribute__((aligned(QATTN_ALIGNMENT)));
} tile_task;

/* sum[i] += q'[i][d] k[d] of one channel d, for 16 keys. */
QATTN_INLINE void tile_channel(const tile_task *task, size_t rows, const float *keys, size_t d, f32x16 sum[TILE_ROWS]) {
    const f32x16 key = f32x16_load(keys + d * QATTN_KEY_BLOCK);
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++)
        sum[i] = f32x16_fma(f32x16_splat(task->queries[i * task->head_lanes + d]), key, sum[i]);
}

/* 1. t[i] = q'[i].k for 16 keys. In every block of 128 channels, four chains take every fourth channel each, which
 * halves the rounding errors of one long chain; with registers for all four they run side by side. */
QATTN_INLINE void tile_scores(const tile_task *task, size_t rows, const float *keys, f32x16 t[TILE_ROWS]) {
    for (size_t begin = 0; begin < task->head_dim; begin += QATTN_CHANNEL_BLOCK) {
        const size_t end = qattn_min(begin + QATTN_CHANNEL_BLOCK, task->head_dim);
        f32x16 sum[QATTN_CHAINS][TILE_ROWS];
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain++) {
            QATTN_UNROLL
            for (size_t i = 0; i < rows; i++) sum[chain][i] = f32x16_splat(0);
        }
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain += CHAINS_AT_ONCE) {
            size_t d = begin + chain;
            for (; d + CHAINS_AT_ONCE <= end; d += QATTN_CHAINS) {
                QATTN_UNROLL
                for (size_t x = 0; x < CHAINS_AT_ONCE; x++) tile_channel(task, rows, keys, d + x, sum[chain + x]);
            }
            QATTN_UNROLL
            for (size_t x = 0; x + 1 < CHAINS_AT_ONCE; x++) {
                if (d + x < end) tile_channel(task, rows, keys, d + x, sum[x]);
            }
        }
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) {
            const f32x16 all = (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]);
            t[i] = begin ? t[i] + all : all;
        }
    }
}

/* 1. and 2. for the `count` vectors of keys from vector `first` of the block on. */
QATTN_INLINE void tile_probabilities(tile_task *task, size_t rows, size_t first, size_t count, bool masked,
                                     const qattn_forward_args *args, size_t row, size_t block_first) {
    f32x16 t[TILE_ROWS][BLOCK_VECTORS];
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        f32x16 scores[TILE_ROWS];
        tile_scores(task, rows, task->keys + (first + v) * QATTN_LANES, scores);
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) t[i][v] = scores[i];
    }
    if (masked) {
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) {
            QATTN_UNROLL
            for (size_t v = 0; v < count; v++) {
                const uint32_t bits = (uint32_t)(task->visible[i] >> (first + v) * QATTN_LANES) & 0xffff;
                if (args->bias && bits)
                    t[i][v] = f32x16_fma(bias_lanes(args, qattn_min(row + i, args->query_end - 1),
                                                    block_first + (first + v) * QATTN_LANES, bits),
                                         f32x16_splat(QATTN_LOG2E_F), t[i][v]);
                t[i][v] = f32x16_select(bits, t[i][v], f32x16_splat(-__builtin_inff()));
            }
        }
    }
    tile_softmax(t, rows, count, task->maximum, task->sum, task->probabilities + first * QATTN_LANES, task->rescale);
}

/* o[i] += p[i][j] v[j] of one key, for the rows that see it. Others are left out, never multiplied by 0: 0 * NaN is
 * NaN. */
QATTN_INLINE void tile_value_of_some(const tile_task *task, size_t rows, size_t j, const float *value, size_t count,
                                     f32x16 o[TILE_ROWS][QATTN_VECTORS]) {
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) {
        if (!(task->visible[i] >> j & 1)) continue;
        const f32x16 weight = f32x16_splat(task->probabilities[i * QATTN_KEY_BLOCK + j]);
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) o[i][c] = f32x16_fma(weight, f32x16_load(value + c * QATTN_LANES), o[i][c]);
    }
}

/* The same for the keys [j, end), which all rows see. */
QATTN_INLINE void tile_values_of_all(const tile_task *task, size_t rows, size_t j, size_t end, const float *values,
                                     size_t count, f32x16 o[TILE_ROWS][QATTN_VECTORS]) {
    QATTN_UNROLL_4
    for (; j < end; j++) {
        f32x16 value[QATTN_VECTORS];
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) value[c] = f32x16_load(values + j * task->value_lanes + c * QATTN_LANES);
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) {
            const f32x16 weight = f32x16_splat(task->probabilities[i * QATTN_KEY_BLOCK + j]);
            QATTN_UNROLL
            for (size_t c = 0; c < count; c++) o[i][c] = f32x16_fma(weight, value[c], o[i][c]);
        }
    }
}

/* 3. for `count` vectors of value columns: the block's own sum, then o = o a + sum. Runs of keys that all rows see, and
 * single keys that some see. The sum starts at -0, which alone leaves every number as it is when added: so a row that
 * sees no key of the block keeps its bits. */
QATTN_INLINE void tile_values(const tile_task *task, size_t rows, size_t column, size_t count) {
    const float *const values = task->values + column;
    float *const out = task->out + column;
    f32x16 o[TILE_ROWS][QATTN_VECTORS];
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) {
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) o[i][c] = f32x16_splat(-0.0f);
    }
    for (uint64_t rest = task->any; rest;) {
        const size_t j = (size_t)__builtin_ctzll(rest);
        const uint64_t unseen = ~(task->all >> j); /* bit n: not every row sees key j + n */
        if (unseen & 1) {
            tile_value_of_some(task, rows, j, values + j * task->value_lanes, count, o);
            rest &= rest - 1;
            continue;
        }
        const size_t end = j + (unseen ? (size_t)__builtin_ctzll(unseen) : QATTN_KEY_BLOCK);
        tile_values_of_all(task, rows, j, end, values, count, o);
        rest = end < QATTN_KEY_BLOCK ? rest >> end << end : 0;
    }
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) {
        const f32x16 rescale = f32x16_splat(task->rescale[row_lane(i)]);
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) {
            float *const at = out + i * task->value_lanes + c * QATTN_LANES;
            f32x16_store(at, f32x16_fma(f32x16_load(at), rescale, o[i][c]));
        }
    }
}

/* All value columns, in panels of up to QATTN_VECTORS vectors. */
QATTN_INLINE void tile_all_values(const tile_task *task, size_t rows) {
    for (size_t column = 0; column < task->value_lanes;) {
        const size_t left = (task->value_lanes - column) / QATTN_LANES;
        /* Five vectors make 3 + 2, not 4 + 1: a panel of one has too few independent sums to fill the pipeline. */
        const size_t count = left == QATTN_VECTORS + 1 ? (left + 1) / 2 : qattn_min(left, QATTN_VECTORS);
        switch (count) {
#if QATTN_VECTORS >= 4
        case 4: tile_values(task, rows, column, 4); break;
        case 3: tile_values(task, rows, column, 3); break;
        case 2: tile_values(task, rows, column, 2); break;
#endif
        default: tile_values(task, rows, column, 1); break;
        }
        column += count * QATTN_LANES;
    }
}

/* One tile meets one block that all its rows see whole. */
QATTN_INLINE void tile_full(tile_task *task, size_t rows) {
    task->any = task->all = ~UINT64_C(0);
    tile_probabilities(task, rows, 0, BLOCK_VECTORS, false, NULL, 0, 0);
    tile_all_values(task, rows);
}

/* One tile meets one block that its rows see by task->visible; columns of 16 keys that no row sees cost nothing. */
QATTN_INLINE void tile_masked(tile_task *task, size_t rows, const qattn_forward_args *args, size_t row,
                              size_t block_first) {
    size_t first = (size_t)__builtin_ctzll(task->any) / QATTN_LANES;
    size_t count = BLOCK_VECTORS - (size_t)__builtin_clzll(task->any) / QATTN_LANES - first;
    if (count == 3 && first == 1) { /* vectors 1 + (2 + 3): the row sum's own tree is (0 + 1) + (2 + 3) */
        first = 0;
        count = 4;
    }
    switch (count) {
    case 1: tile_probabilities(task, rows, first, 1, true, args, row, block_first); break;
    case 2: tile_probabilities(task, rows, first, 2, true, args, row, block_first); break;
    case 3: tile_probabilities(task, rows, first, 3, true, args, row, block_first); break;
    default: tile_probabilities(task, rows, first, 4, true, args, row, block_first); break;
    }
    tile_all_values(task, rows);
}

/* The two, with a constant number of rows each, so that a tile of few rows does not pay for six. Functions of their
 * own: what the compiler keeps in registers must not depend on what surrounds them. */
#define TILE_OF(rows)                                                                                                  \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_full), rows)(tile_task * task) {             \
        tile_full(task, rows);                                                                                         \
    }                                                                                                                  \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_masked), rows)(                              \
        tile_task * task, const qattn_forward_args *args, size_t row, size_t block_first) {                            \
        tile_masked(task, rows, args, row, block_first);                                                               \
    }
TILE_OF(1)
TILE_OF(2)
TILE_OF(4)
TILE_OF(6)
#undef TILE_OF
#define TILE_CALL(name, rows, ...)                                                                                     \
    ((rows) > 4   ? QATTN_PASTE(QATTN_FUNCTION(name), 6)(__VA_ARGS__)                                                  \
     : (rows) > 2 ? QATTN_PASTE(QATTN_FUNCTION(name), 4)(__VA_ARGS__)                                                  \
     : (rows) > 1 ? QATTN_PASTE(QATTN_FUNCTION(name), 2)(__VA_ARGS__)                                                  \
                  : QATTN_PASTE(QATTN_FUNCTION(name), 1)(__VA_ARGS__))

/* The block of packed rows that follows the one at `packed`: adjacent, so one long row. */
QATTN_INLINE prefetch_cursor following_block(const float *packed, size_t row_floats, size_t blocks) {
    const size_t floats = QATTN_KEY_BLOCK * row_floats;
    return prefetch_begin((qattn_upcoming_rows){packed + floats, 0, blocks, floats * sizeof(float)});
}

/* One block against every tile. */
QATTN_INLINE void forward_block(const qattn_forward_args *args, forward_workspace *ws, size_t block, size_t block_end) {
    const size_t block_first = block * QATTN_KEY_BLOCK, block_last = block_first + QATTN_KEY_BLOCK;
    tile_task task = {.keys = args->packed_keys + block_first * args->head_dim,
                      .values = args->packed_values + block_first * ws->value_lanes,
                      .head_dim = args->head_dim,
                      .head_lanes = ws->head_lanes,
                      .value_lanes = ws->value_lanes};
    /* The next block comes from memory or L3 while this one is at work: each tile asks for a share of it. */
    const size_t following = block + 1 < block_end;
    prefetch_cursor next[2] = {following_block(task.keys, args->head_dim, following),
                               following_block(task.values, ws->value_lanes, following)};
    size_t shares[2];
    for (size_t n = 0; n < 2; n++) shares[n] = (prefetch_line_count(&next[n]) + ws->tiles - 1) / ws->tiles;
    for (size_t tile = 0; tile < ws->tiles; tile++) {
        const size_t i = tile * TILE_ROWS, row = args->query_begin + i;
        const size_t count = qattn_min(TILE_ROWS, ws->rows - i);
        const key_range top = row_keys(args, row), bottom = row_keys(args, row + count - 1);
        for (size_t n = 0; n < sizeof next / sizeof *next; n++) prefetch_lines(&next[n], shares[n]);
        for (size_t n = 0; n < QATTN_UPCOMING; n++) prefetch_lines(&ws->upcoming[n], ws->upcoming_share[n]);
        if (top.first >= (ptrdiff_t)block_last || bottom.last <= (ptrdiff_t)block_first) continue;
        task.queries = ws->queries + i * ws->head_lanes;
        task.maximum = ws->chunk.maximum + tile * QATTN_LANES;
        task.sum = ws->chunk.sum + i * QATTN_LANES;
        task.out = ws->chunk.out + i * ws->value_lanes;
        if (!args->mask && !args->bias && bottom.first <= (ptrdiff_t)block_first && top.last >= (ptrdiff_t)block_last) {
            memset(ws->chunk.started + i, true, count);
            TILE_CALL(tile_full, count, &task);
            continue;
        }
        task.any = 0;
        task.all = ~UINT64_C(0);
        for (size_t r = 0; r < TILE_ROWS; r++) { /* the rows that fill the last tile follow its last row */
            if (r < count) {
                task.visible[r] = visible_bits(args, row + r, block_first);
                ws->chunk.started[i + r] |= task.visible[r] != 0;
            } else {
                task.visible[r] = task.visible[count - 1];
            }
            task.any |= task.visible[r];
            task.all &= task.visible[r];
        }
        if (task.any) TILE_CALL(tile_masked, count, &task, args, row, block_first);
    }
}

/* q' = q * c, c = Float(scale * log2 e): scores live in base 2. */
QATTN_INLINE void scale_queries(const qattn_forward_args *args, forward_workspace *ws, qattn_storage storage) {
    const f32x16 c = f32x16_splat((float)(args->scale * QATTN_LOG2E));
    for (size_t i = 0; i < ws->tiles * TILE_ROWS; i++) {
        float *const out = ws->queries + i * ws->head_lanes;
        const void *q = storage_at(args->queries, (ptrdiff_t)(args->query_begin + i) * args->query_stride, storage);
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES) {
            f32x16 x = f32x16_splat(0);
            if (i < ws->rows)
                x = f32x16_load_first(storage_at(q, (ptrdiff_t)d, storage), args->head_dim - d, storage) * c;
            f32x16_store(out + d, x);
        }
    }
}

QATTN_INLINE void reset_state(row_state state, const forward_workspace *ws) {
    for (size_t i = 0; i < ws->tiles * QATTN_LANES; i++) state.maximum[i] = -__builtin_inff();
    memset(state.sum, 0, ws->tiles * TILE_ROWS * QATTN_LANES * sizeof(float));
    memset(state.out, 0, ws->tiles * TILE_ROWS * ws->value_lanes * sizeof(float));
    memset(state.started, false, ws->rows * sizeof(bool));
}

/* Totals of every row, stored to the caller's tensors. An empty row has o = 0, so only its lse needs a word. */
QATTN_INLINE void store_rows(const qattn_forward_args *args, const forward_workspace *ws, row_state state,
                             qattn_storage storage) {
    for (size_t tile = 0; tile < ws->tiles; tile++) {
        const size_t first = tile * TILE_ROWS, count = qattn_min(TILE_ROWS, ws->rows - first);
        float factor[QATTN_LANES], lse[QATTN_LANES], share[QATTN_LANES];
        tile_totals(state.maximum + tile * QATTN_LANES, state.sum + first * QATTN_LANES, args->sink, factor,
                    args->lse ? lse : NULL, args->sink_share ? share : NULL);
        for (size_t r = 0; r < count; r++) {
            const f32x16 row_factor = f32x16_splat(factor[row_lane(r)]);
            const float *const o = state.out + (first + r) * ws->value_lanes;
            char *const out = (char *)args->out + (ptrdiff_t)(args->query_begin + first + r) * args->out_stride *
                                                      (ptrdiff_t)storage_size(storage);
            for (size_t c = 0; c < args->value_dim; c += QATTN_LANES)
                f32x16_store_first(out + c * storage_size(storage), args->value_dim - c,
                                   f32x16_load(o + c) * row_factor, storage);
        }
        for (size_t r = 0; args->lse && r < count; r++)
            args->lse[args->query_begin + first + r] = state.started[first + r] ? lse[row_lane(r)] : args->sink;
        for (size_t r = 0; args->sink_share && r < count; r++)
            args->sink_share[args->query_begin + first + r] = share[row_lane(r)];
    }
}

/* Cuts floats off the workspace; every piece is a multiple of 16 floats. */
QATTN_INLINE float *take(float **cursor, size_t count) {
    float *const piece = *cursor;
    *cursor += qattn_round_up(count, QATTN_LANES);
    return piece;
}

QATTN_INLINE row_state take_state(float **cursor, const forward_workspace *ws) {
    return (row_state){.maximum = take(cursor, ws->tiles * QATTN_LANES),
                       .sum = take(cursor, ws->tiles * TILE_ROWS * QATTN_LANES),
                       .out = take(cursor, ws->tiles * TILE_ROWS * ws->value_lanes),
                       .started = (bool *)take(cursor, ws->tiles * TILE_ROWS)};
}

static void QATTN_FUNCTION(forward)(const qattn_forward_args *args) {
    const size_t rows = args->query_end - args->query_begin;
    assert(rows <= QATTN_QUERY_BLOCK && args->query_begin <= args->query_end);
    if (rows == 0) return;
    forward_workspace ws = {.head_lanes = qattn_round_up(args->head_dim, QATTN_LANES),
                            .value_lanes = qattn_round_up(args->value_dim, QATTN_LANES),
                            .rows = rows,
                            .tiles = (rows + TILE_ROWS - 1) / TILE_ROWS};
    float *cursor = args->workspace;
    ws.queries = take(&cursor, ws.tiles * TILE_ROWS * ws.head_lanes);
    ws.state = take_state(&cursor, &ws);
    ws.chunk = take_state(&cursor, &ws);

    switch (args->query_storage) {
    case QATTN_FLOAT32: scale_queries(args, &ws, QATTN_FLOAT32); break;
    case QATTN_FLOAT16: scale_queries(args, &ws, QATTN_FLOAT16); break;
    case QATTN_BFLOAT16: scale_queries(args, &ws, QATTN_BFLOAT16); break;
    }

    /* The keys that some row may see: both ends of a row's range move right with the row. */
    const ptrdiff_t first = row_keys(args, args->query_begin).first, last = row_keys(args, args->query_end - 1).last;
    const size_t block_begin = (size_t)first / QATTN_KEY_BLOCK;
    const size_t block_end = last > first ? ((size_t)last + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK : block_begin;
    const size_t tile_blocks = ws.tiles * (block_end - block_begin);
    for (size_t n = 0; n < QATTN_UPCOMING && tile_blocks; n++) {
        ws.upcoming[n] = prefetch_begin(args->upcoming[n]);
        ws.upcoming_share[n] = (prefetch_line_count(&ws.upcoming[n]) + tile_blocks - 1) / tile_blocks;
    }

    /* Keys of a single chunk need no merge: the first chunk that a row sees is the row's state as it is. */
    const size_t chunk_blocks = QATTN_KEY_CHUNK / QATTN_KEY_BLOCK;
    const bool one_chunk = block_end <= (block_begin / chunk_blocks + 1) * chunk_blocks;
    if (!one_chunk) reset_state(ws.state, &ws);
    size_t block = block_begin;
    do {
        const size_t chunk_end = qattn_min(block_end, (block / chunk_blocks + 1) * chunk_blocks);
        reset_state(ws.chunk, &ws);
        for (; block < chunk_end; block++) forward_block(args, &ws, block, block_end);
        if (!one_chunk) merge_chunk(ws.state, ws.chunk, rows, ws.value_lanes);
    } while (block < block_end);

    const row_state result = one_chunk ? ws.chunk : ws.state;
    switch (args->out_storage) {
    case QATTN_FLOAT32: store_rows(args, &ws, result, QATTN_FLOAT32); break;
    case QATTN_FLOAT16: store_rows(args, &ws, result, QATTN_FLOAT16); break;
    case QATTN_BFLOAT16: store_rows(args, &ws, result, QATTN_BFLOAT16); break;
    }
}

#endif
