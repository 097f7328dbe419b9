/* SPDX-License-Identifier: Apache-2.0 */
/* products.inl.h - step 1 of forward.inl.h, the scores of a tile of rows against the keys of a block; and what all products
 * of tiles share: the task, the kinds of tiles that are compiled, and the calls of functions by kind. */
#ifndef QATTN_PRODUCTS_INL_H
#define QATTN_PRODUCTS_INL_H

#include "memory/blocks.inl.h"
#include "memory/prefetch.inl.h"

/* What a tile of rows leaves in memory between the steps for one block. */
typedef struct tile_scratch {
    float weights[TILE_ROWS * QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT))); /* or scores, before */
    float rescale[QATTN_LANES];   /* row i in lane row_lane(i), as in row_state */
    float reference[QATTN_LANES]; /* likewise: what is subtracted from scores */
    uint64_t visible[TILE_ROWS];  /* by row, after mask.inl.h */
    uint64_t any, all;            /* of them */
} tile_scratch;

/* A tile's share of the work on one block. */
typedef struct tile_task {
    /* [head_lanes / 4][6][4], so that a step of the four chains finds its factors side by side, without an index;
     * [6][head_lanes] for keys that stand as rows, for bfloat16 pairs, and for int8: see integer_tiles.inl.h */
    const float *queries;
    const float *query_steps; /* int8 and bfloat16 pairs: [6], what sums of products are multiplied by */
    block_parts block;
    float *maximum, *sum, *out;
    size_t head_dim, head_lanes, value_lanes;
    ptrdiff_t key_step; /* bytes from one key to the next, of keys as rows; and the last one there is */
    size_t last_key;
    bool in_quarters;        /* how rows are read */
    const char *query_pairs; /* bfloat16 pairs over keys as rows: [head_dim / 2][rows][2] */
    size_t value_stride;     /* elements from one key's values to the next's; 0: in panels, after blocks.inl.h */
    tile_scratch *scratch;
    bool short_passes; /* see in_passes */
    block_prefetch next;
} tile_task;

/* What a tile's functions are compiled for: constants, all of them. */
typedef struct tile_kind {
    size_t rows;
    qattn_storage storage; /* of the keys and values */
    bool masked;           /* whether the scratch's visible counts, or the rows see the whole block */
    bool streams;          /* whether task->next is asked for */
} tile_kind;

/* Chains of scores, or vectors of value columns, side by side in a tile of so many rows. */
QATTN_INLINE size_t vectors_at_once(size_t rows) {
    return qattn_min(QATTN_VECTORS * (rows == 1 ? 4 : rows == 2 ? 2 : 1), PANEL_VECTORS);
}

/* Whether a tile of few rows has more sums, of all chains or of a panel's columns, than the registers hold. Then the
 * sums stay in memory, and each pass over a stretch of keys or values takes up as many as there is room for, in
 * unrolled steps of four. From memory a stretch is one such step, so that reads go forward almost in order, which
 * hardware follows: AVX2 reads 26 GB/s instead of 20. In caches it is all there is, and the sums are taken up less
 * often; but a lone tile of two rows, which outruns all caches but the first two, gains there, too: 35 to 45 GB/s from the
 * last one. */
QATTN_INLINE bool in_passes(size_t rows) { return rows <= STREAMING_ROWS && vectors_at_once(rows) < QATTN_CHAINS; }
enum { PASS_STEPS = 4 };

/* The end of the stretch that begins at `first`: PASS_STEPS steps take `step`, of which at least one is left. */
QATTN_INLINE size_t stretch_end(const tile_task *task, size_t first, size_t end, size_t step) {
    return task->short_passes ? first + step : first + (end - first) / step * step;
}

/* Whether all chains of many rows, side by side, leave registers for little else. */
QATTN_INLINE bool fills_registers(size_t rows) {
    return rows > STREAMING_ROWS && vectors_at_once(rows) == QATTN_CHAINS;
}

QATTN_INLINE void copy_sums(f32x16 (*to)[TILE_ROWS], f32x16 (*from)[TILE_ROWS], size_t rows, size_t count) {
    QATTN_UNROLL
    for (size_t n = 0; n < count; n++) {
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) to[n][i] = from[n][i];
    }
}

/* Asks for what is due with step n of a loop of which each reads so many bytes. */
QATTN_INLINE void tile_prefetch(tile_kind kind, block_prefetch *next, size_t n, size_t bytes) {
    if (kind.streams && block_prefetch_due(n, bytes)) block_prefetch_step(next);
}

/* Asks for what lies STRIDED_AHEAD behind `at`, where a tile of six reads one of four chains, or vectors of columns, after
 * another: hardware does not follow every fourth line, and six rows read 8 GB/s from memory instead of 20. No cursor:
 * there is no register for one. Blocks of a head follow each other in memory, most of them; what lies behind the last
 * is asked for in vain. Tiles of many rows, which read from caches, lose less than 0.5 % by it. */
enum { STRIDED_AHEAD = 16384 };
QATTN_INLINE void ask_for_strided(tile_kind kind, const char *at) {
    if (vectors_at_once(kind.rows) == 1 && !in_passes(kind.rows)) __builtin_prefetch(at + STRIDED_AHEAD, 0, 2);
}

/* Where the products of a step of channels d, d + 1, ... find their factors, d being a multiple of QATTN_CHAINS. */
typedef struct score_step {
    const float *queries;
    const char *keys;
} score_step;

QATTN_INLINE score_step score_step_at(const tile_task *task, tile_kind kind, const char *keys, size_t d) {
    return (score_step){task->queries + d * TILE_ROWS, keys + d * QATTN_LANES * storage_size(kind.storage)};
}

/* The step of the next `channels`, with a pointer of its own into queries and keys. */
QATTN_INLINE score_step score_step_after(score_step at, tile_kind kind, size_t channels) {
    at.queries += channels * TILE_ROWS;
    at.keys += channels * QATTN_LANES * storage_size(kind.storage);
    QATTN_OWN_POINTERS(at.queries, at.keys);
    return at;
}

/* sum[i] += q'[i][d] k[d] of one channel d, for 16 keys: channel x from the step of all chains on. */
QATTN_INLINE void tile_channel(tile_kind kind, score_step at, size_t x, f32x16 sum[TILE_ROWS]) {
    const f32x16 key = f32x16_load_unordered(at.keys + x * QATTN_LANES * storage_size(kind.storage), kind.storage);
    const float *const factors = at.queries + x / QATTN_CHAINS * (TILE_ROWS * QATTN_CHAINS) + x % QATTN_CHAINS;
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) sum[i] = f32x16_fma(f32x16_splat(factors[i * QATTN_CHAINS]), key, sum[i]);
}

/* Scores from memory, of `count` vectors of keys, and to it, of a whole block. */
QATTN_INLINE void tile_load(f32x16 t[TILE_ROWS][BLOCK_VECTORS], const float *scores, size_t rows, size_t count) {
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) {
        QATTN_UNROLL
        for (size_t v = 0; v < count; v++) t[i][v] = f32x16_load(scores + i * QATTN_KEY_BLOCK + v * QATTN_LANES);
    }
}

QATTN_INLINE void tile_store(float *scores, f32x16 t[TILE_ROWS][BLOCK_VECTORS], size_t rows) {
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) {
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++)
            f32x16_store(scores + i * QATTN_KEY_BLOCK + v * QATTN_LANES, t[i][v]);
    }
}

/* A pass of chain `chain`, and those beside it in the registers: every fourth channel of [d, end). */
QATTN_INLINE void tile_chains(tile_task *task, tile_kind kind, const char *keys, size_t chain, size_t d, size_t end,
                              block_prefetch *next, f32x16 (*sum)[TILE_ROWS]) {
    const size_t at_once = vectors_at_once(kind.rows);
    f32x16 part[QATTN_CHAINS][TILE_ROWS];
    copy_sums(part, sum, kind.rows, at_once);
    score_step at = score_step_at(task, kind, keys, d);
    QATTN_NO_UNROLL
    for (; d < end; d += PASS_STEPS * QATTN_CHAINS) {
        tile_prefetch(kind, next, d / (PASS_STEPS * QATTN_CHAINS),
                      PASS_STEPS * at_once * QATTN_LANES * storage_size(kind.storage));
        QATTN_UNROLL
        for (size_t step = 0; step < PASS_STEPS; step++) {
            QATTN_UNROLL
            for (size_t x = 0; x < at_once; x++) tile_channel(kind, at, step * QATTN_CHAINS + chain + x, part[x]);
        }
        at = score_step_after(at, kind, PASS_STEPS * QATTN_CHAINS);
    }
    copy_sums(sum, part, kind.rows, at_once);
}

/* A step of chain `chain` and those beside it in the registers. */
QATTN_INLINE score_step tile_step(tile_kind kind, score_step at, size_t chain, f32x16 (*sum)[TILE_ROWS]) {
    ask_for_strided(kind, at.keys + chain * QATTN_LANES * storage_size(kind.storage));
    QATTN_UNROLL
    for (size_t x = 0; x < vectors_at_once(kind.rows); x++) tile_channel(kind, at, chain + x, sum[chain + x]);
    return score_step_after(at, kind, QATTN_CHAINS);
}

/* 1. t[i] = q'[i].k for 16 keys. In every block of 128 channels, four chains take every fourth channel each, which
 * halves the rounding errors of one long chain; with registers for all four they run side by side. */
QATTN_INLINE void tile_scores(tile_task *task, tile_kind kind, const char *keys, f32x16 t[TILE_ROWS]) {
    const size_t at_once = vectors_at_once(kind.rows), step = PASS_STEPS * QATTN_CHAINS;
    block_prefetch next = task->next;
    for (size_t begin = 0; begin < task->head_dim; begin += QATTN_CHANNEL_BLOCK) {
        const size_t end = qattn_min(begin + QATTN_CHANNEL_BLOCK, task->head_dim);
        if (fills_registers(kind.rows)) f32x16_stay_in_memory(t);
        f32x16 sum[QATTN_CHAINS][TILE_ROWS];
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain++) {
            QATTN_UNROLL
            for (size_t i = 0; i < kind.rows; i++) sum[chain][i] = f32x16_splat(0);
        }
        size_t first = begin;
        while (in_passes(kind.rows) && first + step <= end) {
            f32x16_stay_in_memory(sum[0]);
            const size_t last = stretch_end(task, first, end, step);
            QATTN_UNROLL
            for (size_t chain = 0; chain < QATTN_CHAINS; chain += at_once)
                tile_chains(task, kind, keys, chain, first, last, &next, sum + chain);
            first = last;
        }
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain += at_once) {
            size_t d = first;
            score_step at = score_step_at(task, kind, keys, d);
            if (fills_registers(kind.rows) && !kind.streams) {
                /* Where the end of one pass is guessed wrong, the next, of 24 other sums, begins late. */
                QATTN_UNROLL_4
                for (; d + at_once <= end; d += QATTN_CHAINS) at = tile_step(kind, at, chain, sum);
            }
            for (; d + chain + at_once <= end; d += QATTN_CHAINS) {
                tile_prefetch(kind, &next, d / QATTN_CHAINS, at_once * QATTN_LANES * storage_size(kind.storage));
                at = tile_step(kind, at, chain, sum);
            }
            QATTN_UNROLL
            for (size_t x = 0; x + 1 < at_once; x++) {
                if (d + chain + x < end) tile_channel(kind, at, chain + x, sum[chain + x]);
            }
        }
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) {
            const f32x16 all = (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]);
            t[i] = begin ? t[i] + all : all;
        }
    }
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) t[i] = f32x16_ordered(t[i], kind.storage);
    if (kind.streams) task->next = next;
}

/* 1. for the first `count` vectors of a block's keys. */
QATTN_INLINE void tile_products(tile_task *task, tile_kind kind, size_t count, f32x16 t[TILE_ROWS][BLOCK_VECTORS]) {
    const size_t group_bytes = task->head_dim * QATTN_LANES * storage_size(kind.storage);
    const char *const keys = task->block.keys;
    if (kind.streams) {
        /* What waits for memory meets all keys with the same instructions: hardware reads ahead for each load
         * instruction by itself, and four copies of the loop lose 6 to 9 % in float32. */
        float *const weights = task->scratch->weights;
        QATTN_NO_UNROLL
        for (size_t v = 0; v < count; v++) {
            f32x16 scores[TILE_ROWS];
            tile_scores(task, kind, keys + v * group_bytes, scores);
            QATTN_UNROLL
            for (size_t i = 0; i < kind.rows; i++)
                f32x16_store(weights + i * QATTN_KEY_BLOCK + v * QATTN_LANES, scores[i]);
        }
        tile_load(t, weights, kind.rows, count);
        return;
    }
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        f32x16 scores[TILE_ROWS];
        tile_scores(task, kind, keys + v * group_bytes, scores);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) t[i][v] = scores[i];
    }
}

/* An instance for each number of rows: functions of their own, since what the compiler keeps in registers must not depend on
 * what surrounds them. */
#define TILE_INSTANCE(name, rows) QATTN_NOINLINE void QATTN_PASTE(QATTN_FUNCTION(name), rows)
#define TILE_HEIGHTS(instance)    instance(1) instance(2) instance(3) instance(4) instance(5) instance(6)

/* With a constant number of rows, so that a tile of fewer rows does not pay for six. Scores end in memory. */
#define TILE_PRODUCTS(storage, rows)                                                                                   \
    TILE_INSTANCE(tile_products_##storage, rows)(tile_task * task) {                                                   \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_products(task, (tile_kind){rows, storage, .streams = rows <= ASKING_TILE_ROWS}, BLOCK_VECTORS, t);        \
        tile_store(task->scratch->weights, t, rows);                                                                   \
    }
#define TILE_PRODUCTS_OF(rows)                                                                                         \
    TILE_PRODUCTS(QATTN_FLOAT32, rows)                                                                                 \
    TILE_PRODUCTS(QATTN_FLOAT16, rows)                                                                                 \
    TILE_PRODUCTS(QATTN_BFLOAT16, rows)
TILE_HEIGHTS(TILE_PRODUCTS_OF)
#undef TILE_PRODUCTS_OF
#undef TILE_PRODUCTS

/* The instance of so many rows. */
#define TILE_CALL(name, rows, ...)                                                                                     \
    ((rows) == 6   ? QATTN_PASTE(QATTN_FUNCTION(name), 6)(__VA_ARGS__)                                                 \
     : (rows) == 5 ? QATTN_PASTE(QATTN_FUNCTION(name), 5)(__VA_ARGS__)                                                 \
     : (rows) == 4 ? QATTN_PASTE(QATTN_FUNCTION(name), 4)(__VA_ARGS__)                                                 \
     : (rows) == 3 ? QATTN_PASTE(QATTN_FUNCTION(name), 3)(__VA_ARGS__)                                                 \
     : (rows) == 2 ? QATTN_PASTE(QATTN_FUNCTION(name), 2)(__VA_ARGS__)                                                 \
                   : QATTN_PASTE(QATTN_FUNCTION(name), 1)(__VA_ARGS__))

#define TILE_CALL_STORAGE(name, storage, rows, ...)                                                                    \
    switch (storage) {                                                                                                 \
    case QATTN_FLOAT32: TILE_CALL(name##_QATTN_FLOAT32, rows, __VA_ARGS__); break;                                     \
    case QATTN_FLOAT16: TILE_CALL(name##_QATTN_FLOAT16, rows, __VA_ARGS__); break;                                     \
    case QATTN_BFLOAT16: TILE_CALL(name##_QATTN_BFLOAT16, rows, __VA_ARGS__); break;                                   \
    case QATTN_INT8: TILE_CALL(name##_QATTN_INT8, rows, __VA_ARGS__); break;                                           \
    case QATTN_BFLOAT16_PAIRS: TILE_CALL(name##_QATTN_BFLOAT16_PAIRS, rows, __VA_ARGS__); break;                       \
    }

#endif
