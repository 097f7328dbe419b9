/* SPDX-License-Identifier: Apache-2.0 */
/* tiles.inl.h - one tile of rows meets one block of keys: products, softmax and values of forward.inl.h, steps 1 to 3,
 * as functions of a few fixed numbers of rows and storages. */
#ifndef QATTN_TILES_INL_H
#define QATTN_TILES_INL_H

#include "attention/scores.inl.h"
#include "attention/softmax.inl.h"
#include "attention/weights.inl.h"
#include "memory/blocks.inl.h"
#include "memory/prefetch.inl.h"

/* A tile's share of the work on one block. */
typedef struct tile_task {
    const float *queries;     /* [6][head_lanes]; for int8 integers, see integer_tiles.inl.h */
    const float *query_steps; /* int8: [6] */
    block_parts block;
    float *maximum, *sum, *out;
    size_t head_dim, head_lanes, value_lanes, block_bytes;
    ptrdiff_t key_step; /* bytes from one key to the next, of keys as rows; and the last one there is */
    size_t last_key;
    size_t value_stride;         /* elements from one key's values to the next's; 0: in panels, after blocks.inl.h */
    uint64_t visible[TILE_ROWS]; /* by row, after mask.inl.h */
    uint64_t any, all;           /* of them */
    bool short_passes;           /* see in_passes */
    block_prefetch next;
    float weights[TILE_ROWS * QATTN_KEY_BLOCK] __attribute__((aligned(QATTN_ALIGNMENT))); /* or scores, before */
    float rescale[QATTN_LANES] __attribute__((aligned(QATTN_ALIGNMENT)));
} tile_task;

/* What a tile's functions are compiled for: constants, all of them. */
typedef struct tile_kind {
    size_t rows;
    qattn_storage storage; /* of the keys and values */
    bool masked;           /* whether task->visible counts, or the rows see the whole block */
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
 * often. */
QATTN_INLINE bool in_passes(size_t rows) { return rows < TILE_ROWS && vectors_at_once(rows) < QATTN_CHAINS; }
enum { PASS_STEPS = 4 };

/* The end of the stretch that begins at `first`: PASS_STEPS steps take `step`, of which at least one is left. */
QATTN_INLINE size_t stretch_end(const tile_task *task, size_t first, size_t end, size_t step) {
    return task->short_passes ? first + step : first + (end - first) / step * step;
}

QATTN_INLINE void copy_sums(f32x16 (*to)[TILE_ROWS], f32x16 (*from)[TILE_ROWS], size_t rows, size_t count) {
    QATTN_UNROLL
    for (size_t n = 0; n < count; n++) {
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) to[n][i] = from[n][i];
    }
}

/* Asks for what is due with step n of a loop of which each reads so many bytes. */
QATTN_INLINE void tile_prefetch(tile_task *task, tile_kind kind, block_prefetch *next, size_t n, size_t bytes) {
    if (kind.streams && block_prefetch_due(n, bytes)) block_prefetch_step(next, task->block_bytes);
}

/* sum[i] += q'[i][d] k[d] of one channel d, for 16 keys. */
QATTN_INLINE void tile_channel(const tile_task *task, tile_kind kind, const char *keys, size_t d,
                               f32x16 sum[TILE_ROWS]) {
    const f32x16 key = f32x16_load_unordered(keys + d * QATTN_LANES * storage_size(kind.storage), kind.storage);
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++)
        sum[i] = f32x16_fma(f32x16_splat(task->queries[i * task->head_lanes + d]), key, sum[i]);
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

/* A pass of one chain, and those beside it in the registers: every fourth channel of [d, end). */
QATTN_INLINE void tile_chains(tile_task *task, tile_kind kind, const char *keys, size_t d, size_t end,
                              block_prefetch *next, f32x16 (*sum)[TILE_ROWS]) {
    const size_t at_once = vectors_at_once(kind.rows);
    f32x16 part[QATTN_CHAINS][TILE_ROWS];
    copy_sums(part, sum, kind.rows, at_once);
    QATTN_NO_UNROLL
    for (; d < end; d += PASS_STEPS * QATTN_CHAINS) {
        tile_prefetch(task, kind, next, d / (PASS_STEPS * QATTN_CHAINS),
                      PASS_STEPS * at_once * QATTN_LANES * storage_size(kind.storage));
        QATTN_UNROLL
        for (size_t step = 0; step < PASS_STEPS; step++) {
            QATTN_UNROLL
            for (size_t x = 0; x < at_once; x++) tile_channel(task, kind, keys, d + step * QATTN_CHAINS + x, part[x]);
        }
    }
    copy_sums(sum, part, kind.rows, at_once);
}

/* 1. t[i] = q'[i].k for 16 keys. In every block of 128 channels, four chains take every fourth channel each, which
 * halves the rounding errors of one long chain; with registers for all four they run side by side. */
QATTN_INLINE void tile_scores(tile_task *task, tile_kind kind, const char *keys, f32x16 t[TILE_ROWS]) {
    const size_t at_once = vectors_at_once(kind.rows), step = PASS_STEPS * QATTN_CHAINS;
    block_prefetch next = task->next;
    for (size_t begin = 0; begin < task->head_dim; begin += QATTN_CHANNEL_BLOCK) {
        const size_t end = qattn_min(begin + QATTN_CHANNEL_BLOCK, task->head_dim);
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
                tile_chains(task, kind, keys, first + chain, last, &next, sum + chain);
            first = last;
        }
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain += at_once) {
            size_t d = first + chain;
            for (; d + at_once <= end; d += QATTN_CHAINS) {
                tile_prefetch(task, kind, &next, d / QATTN_CHAINS, at_once * QATTN_LANES * storage_size(kind.storage));
                QATTN_UNROLL
                for (size_t x = 0; x < at_once; x++) tile_channel(task, kind, keys, d + x, sum[chain + x]);
            }
            QATTN_UNROLL
            for (size_t x = 0; x + 1 < at_once; x++) {
                if (d + x < end) tile_channel(task, kind, keys, d + x, sum[chain + x]);
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

/* 1. for the `count` vectors of keys from vector `first` of the block on. */
QATTN_INLINE void tile_products(tile_task *task, tile_kind kind, size_t first, size_t count,
                                f32x16 t[TILE_ROWS][BLOCK_VECTORS]) {
    const size_t group_bytes = task->head_dim * QATTN_LANES * storage_size(kind.storage);
    const char *const keys = task->block.keys + first * group_bytes;
    if (kind.streams) {
        /* What waits for memory meets all keys with the same instructions: hardware reads ahead for each load
         * instruction by itself, and four copies of the loop lose 6 to 9 % in float32. */
        float *const weights = task->weights + first * QATTN_LANES;
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

/* 1. and 2. of softmax, without a stop in memory. */
QATTN_INLINE void tile_probabilities(tile_task *task, tile_kind kind, size_t first, size_t count) {
    f32x16 t[TILE_ROWS][BLOCK_VECTORS];
    tile_products(task, kind, first, count, t);
    if (kind.masked) {
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) {
            QATTN_UNROLL
            for (size_t v = 0; v < count; v++) {
                const uint32_t bits = (uint32_t)(task->visible[i] >> (first + v) * QATTN_LANES) & 0xffff;
                t[i][v] = f32x16_select(bits, t[i][v], f32x16_splat(-__builtin_inff()));
            }
        }
    }
    tile_softmax(t, kind.rows, count, task->maximum, task->sum, task->weights + first * QATTN_LANES, task->rescale);
}

/* o[i] += p[i][j] v[j] of one key, of `count` vectors of columns. */
QATTN_INLINE void tile_value(const tile_task *task, tile_kind kind, size_t j, const char *value, size_t count,
                             f32x16 (*o)[TILE_ROWS]) {
    f32x16 vectors[PANEL_VECTORS];
    QATTN_UNROLL
    for (size_t c = 0; c < count; c++)
        vectors[c] = f32x16_load_unordered(value + c * QATTN_LANES * storage_size(kind.storage), kind.storage);
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        const f32x16 weight = f32x16_splat(task->weights[i * QATTN_KEY_BLOCK + j]);
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) o[c][i] = f32x16_fma(weight, vectors[c], o[c][i]);
    }
}

/* The same for the rows that see the key. Others are left out, never multiplied by 0: 0 * NaN is NaN. */
QATTN_INLINE void tile_value_of_some(const tile_task *task, tile_kind kind, size_t j, const char *value, size_t count,
                                     f32x16 (*o)[TILE_ROWS]) {
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        if (!(task->visible[i] >> j & 1)) continue;
        const f32x16 weight = f32x16_splat(task->weights[i * QATTN_KEY_BLOCK + j]);
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++)
            o[c][i] = f32x16_fma(
                weight, f32x16_load_unordered(value + c * QATTN_LANES * storage_size(kind.storage), kind.storage),
                o[c][i]);
    }
}

/* A pass of some of a panel's vectors of columns, over the keys [j, end). */
QATTN_INLINE void tile_columns(tile_task *task, tile_kind kind, size_t j, size_t end, const char *values, size_t stride,
                               size_t count, block_prefetch *next, f32x16 (*o)[TILE_ROWS]) {
    f32x16 part[PANEL_VECTORS][TILE_ROWS];
    copy_sums(part, o, kind.rows, count);
    QATTN_NO_UNROLL
    for (; j < end; j += PASS_STEPS) {
        tile_prefetch(task, kind, next, j / PASS_STEPS, PASS_STEPS * count * QATTN_LANES * storage_size(kind.storage));
        QATTN_UNROLL
        for (size_t step = 0; step < PASS_STEPS; step++)
            tile_value(task, kind, j + step, values + (j + step) * stride * storage_size(kind.storage), count, part);
    }
    copy_sums(o, part, kind.rows, count);
}

/* A run of keys that all rows see, or a single key that some see, and what is left of the keys after it. */
typedef struct key_run {
    size_t begin, end;
    bool whole;
    uint64_t rest;
} key_run;

QATTN_INLINE key_run first_run(uint64_t any, uint64_t all) {
    const size_t begin = (size_t)__builtin_ctzll(any);
    const uint64_t unseen = ~(all >> begin); /* bit n: not every row sees key begin + n */
    const bool whole = !(unseen & 1);
    const size_t end = begin + (!whole ? 1 : unseen ? (size_t)__builtin_ctzll(unseen) : QATTN_KEY_BLOCK);
    return (key_run){begin, end, whole, end < QATTN_KEY_BLOCK ? any >> end << end : 0};
}

/* The block's own sums are over: o = o a + sum, of one vector of columns. The sums start at -0, which alone leaves
 * every number as it is when added: so a row that sees no key of the block keeps its bits. */
QATTN_INLINE void tile_sums_add(const tile_task *task, tile_kind kind, size_t column, const f32x16 sum[TILE_ROWS]) {
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        float *const at = task->out + i * task->value_lanes + column;
        f32x16_store(at, f32x16_fma(f32x16_load(at), f32x16_splat(task->rescale[row_lane(i)]),
                                    f32x16_ordered(sum[i], kind.storage)));
    }
}

/* 3. for `count` vectors of value columns, whose sums stay in registers. */
QATTN_INLINE void tile_values(tile_task *task, tile_kind kind, const char *values, size_t stride, size_t column,
                              size_t count) {
    const size_t size = storage_size(kind.storage);
    f32x16 o[PANEL_VECTORS][TILE_ROWS];
    QATTN_UNROLL
    for (size_t c = 0; c < count; c++) {
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) o[c][i] = f32x16_splat(-0.0f);
    }
    const uint64_t all = kind.masked ? task->all : ~UINT64_C(0);
    for (uint64_t rest = kind.masked ? task->any : ~UINT64_C(0); rest;) {
        const key_run run = first_run(rest, all);
        rest = run.rest;
        if (!run.whole) {
            tile_value_of_some(task, kind, run.begin, values + run.begin * stride * size, count, o);
            continue;
        }
        block_prefetch next = task->next;
        QATTN_UNROLL_2
        for (size_t j = run.begin; j < run.end; j++) {
            tile_prefetch(task, kind, &next, j, count * QATTN_LANES * size);
            tile_value(task, kind, j, values + j * stride * size, count, o);
        }
        if (kind.streams) task->next = next;
    }
    QATTN_UNROLL
    for (size_t c = 0; c < count; c++) tile_sums_add(task, kind, column + c * QATTN_LANES, o[c]);
}

/* 3. for a panel of `count` vectors, in passes. */
QATTN_INLINE void tile_values_in_passes(tile_task *task, tile_kind kind, const char *values, size_t stride,
                                        size_t column, size_t count) {
    const size_t at_once = vectors_at_once(kind.rows), size = storage_size(kind.storage);
    f32x16 o[PANEL_VECTORS][TILE_ROWS];
    for (size_t c = 0; c < count; c++) {
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) o[c][i] = f32x16_splat(-0.0f);
    }
    block_prefetch next = task->next;
    const uint64_t all = kind.masked ? task->all : ~UINT64_C(0);
    for (uint64_t rest = kind.masked ? task->any : ~UINT64_C(0); rest;) {
        const key_run run = first_run(rest, all);
        rest = run.rest;
        size_t j = run.begin;
        while (run.whole && j + PASS_STEPS <= run.end) {
            f32x16_stay_in_memory(o[0]);
            const size_t last = stretch_end(task, j, run.end, PASS_STEPS);
            QATTN_NO_UNROLL
            for (size_t c = 0; c < count; c += at_once) {
                const char *const columns = values + c * QATTN_LANES * size;
                if (c + at_once <= count) tile_columns(task, kind, j, last, columns, stride, at_once, &next, o + c);
                else tile_columns(task, kind, j, last, columns, stride, 1, &next, o + c);
            }
            j = last;
        }
        for (; j < run.end; j++) {
            const char *const value = values + j * stride * size;
            QATTN_NO_UNROLL
            for (size_t c = 0; c < count; c++)
                tile_value_of_some(task, kind, j, value + c * QATTN_LANES * size, 1, o + c);
        }
    }
    if (kind.streams) task->next = next;
    for (size_t c = 0; c < count; c++) tile_sums_add(task, kind, column + c * QATTN_LANES, o[c]);
}

/* All value columns, panel by panel: whole ones where the registers hold their sums or these stay in memory, else
 * vector by vector. */
QATTN_INLINE void tile_all_values(tile_task *task, tile_kind kind) {
    const char *panel = task->block.values;
    for (size_t column = 0; column < task->value_lanes;) {
        const size_t lanes = panel_lanes(task->value_lanes - column);
        const size_t stride = task->value_stride ? task->value_stride : lanes;
        if (in_passes(kind.rows)) {
            tile_values_in_passes(task, kind, panel, stride, column, lanes / QATTN_LANES);
        } else if (vectors_at_once(kind.rows) == PANEL_VECTORS) {
            switch (lanes / QATTN_LANES) {
            case 4: tile_values(task, kind, panel, stride, column, 4); break;
            case 3: tile_values(task, kind, panel, stride, column, 3); break;
            case 2: tile_values(task, kind, panel, stride, column, 2); break;
            default: tile_values(task, kind, panel, stride, column, 1); break;
            }
        } else {
            for (size_t c = 0; c < lanes; c += QATTN_LANES)
                tile_values(task, kind, panel + c * storage_size(kind.storage), stride, column + c, 1);
        }
        column += lanes;
        panel += lanes * (task->value_stride ? 1 : QATTN_KEY_BLOCK) * storage_size(kind.storage);
    }
}

/* One tile meets one block that all its rows see whole. */
QATTN_INLINE void tile_full(tile_task *task, tile_kind kind) {
    tile_probabilities(task, kind, 0, BLOCK_VECTORS);
    tile_all_values(task, kind);
}

/* One tile meets one block that its rows see by task->visible; columns of 16 keys that no row sees cost nothing. */
QATTN_INLINE void tile_masked(tile_task *task, tile_kind kind) {
    const size_t first = (size_t)__builtin_ctzll(task->any) / QATTN_LANES;
    size_t count = BLOCK_VECTORS - (size_t)__builtin_clzll(task->any) / QATTN_LANES - first;
    /* Vectors 1 + (2 + 3) are not part of the row sum's own tree, (0 + 1) + (2 + 3). */
    if (count == 3 && first == 1) count = BLOCK_VECTORS;
    switch (count) {
    case 1: tile_probabilities(task, kind, first, 1); break;
    case 2: tile_probabilities(task, kind, first, 2); break;
    case 3: tile_probabilities(task, kind, first, 3); break;
    default: tile_probabilities(task, kind, 0, BLOCK_VECTORS); break;
    }
    tile_all_values(task, kind);
}

/* The two, with a constant number of rows, so that a tile of few rows does not pay for six. Functions of their own:
 * what the compiler keeps in registers must not depend on what surrounds them. For float32 alone, which is what a
 * forward pass packs: caches of 16-bit and int8 values wait for memory, and the way of finished scores below costs them
 * nothing.
 */
#define TILE_SOFTMAX(rows)                                                                                             \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_full), rows)(tile_task * task) {             \
        tile_full(task, (tile_kind){rows, QATTN_FLOAT32, .streams = rows < TILE_ROWS});                                \
    }                                                                                                                  \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_masked), rows)(tile_task * task) {           \
        tile_masked(task, (tile_kind){rows, QATTN_FLOAT32, .masked = true, .streams = rows < TILE_ROWS});              \
    }
/* 1. and 3. by themselves, for what does not fit between them: the scores pass through memory. */
#define TILE_PRODUCTS(storage, rows)                                                                                   \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_products_##storage),                         \
                                                      rows)(tile_task * task) {                                        \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_products(task, (tile_kind){rows, storage, .streams = rows < TILE_ROWS}, 0, BLOCK_VECTORS, t);             \
        tile_store(task->weights, t, rows);                                                                            \
    }
#define TILE_VALUES(storage, rows)                                                                                     \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_values_##storage), rows)(tile_task * task) { \
        tile_all_values(task, (tile_kind){rows, storage, .masked = true, .streams = rows < TILE_ROWS});                \
    }
#define TILE_STORAGE(storage, rows)                                                                                    \
    TILE_PRODUCTS(storage, rows)                                                                                       \
    TILE_VALUES(storage, rows)
/* 2. for scores in memory, by the normalisers with a running maximum. */
#define TILE_WEIGHTS(rows)                                                                                             \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_softmax), rows)(tile_task * task) {          \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_load(t, task->weights, rows, BLOCK_VECTORS);                                                              \
        tile_softmax(t, rows, BLOCK_VECTORS, task->maximum, task->sum, task->weights, task->rescale);                  \
    }                                                                                                                  \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_softpick), rows)(tile_task * task) {         \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_load(t, task->weights, rows, BLOCK_VECTORS);                                                              \
        float maximum[QATTN_LANES];                                                                                    \
        f32x16_store(maximum, tile_maximum(t, rows, BLOCK_VECTORS, task->maximum, task->rescale));                     \
        for (size_t i = 0; i < rows; i++)                                                                              \
            softpick_weights(task->weights + i * QATTN_KEY_BLOCK, task->sum + i * QATTN_LANES, task->visible[i],       \
                             maximum[row_lane(i)], task->rescale[row_lane(i)]);                                        \
    }
#define TILE_OF(rows)                                                                                                  \
    TILE_SOFTMAX(rows)                                                                                                 \
    TILE_STORAGE(QATTN_FLOAT32, rows)                                                                                  \
    TILE_STORAGE(QATTN_FLOAT16, rows)                                                                                  \
    TILE_STORAGE(QATTN_BFLOAT16, rows)                                                                                 \
    TILE_WEIGHTS(rows)
TILE_OF(1)
TILE_SOFTMAX(2)
TILE_OF(4)
TILE_OF(6)
#undef TILE_OF
#undef TILE_WEIGHTS
#undef TILE_STORAGE
#undef TILE_VALUES
#undef TILE_PRODUCTS
#undef TILE_SOFTMAX
#define TILE_CALL_SOFTMAX(name, rows, ...)                                                                             \
    ((rows) == 2 ? QATTN_PASTE(QATTN_FUNCTION(name), 2)(__VA_ARGS__) : TILE_CALL(name, rows, __VA_ARGS__))
#define TILE_CALL(name, rows, ...)                                                                                     \
    ((rows) > 4   ? QATTN_PASTE(QATTN_FUNCTION(name), 6)(__VA_ARGS__)                                                  \
     : (rows) > 1 ? QATTN_PASTE(QATTN_FUNCTION(name), 4)(__VA_ARGS__)                                                  \
                  : QATTN_PASTE(QATTN_FUNCTION(name), 1)(__VA_ARGS__))

#define TILE_CALL_STORAGE(name, storage, rows, ...)                                                                    \
    switch (storage) {                                                                                                 \
    case QATTN_FLOAT32: TILE_CALL(name##_QATTN_FLOAT32, rows, __VA_ARGS__); break;                                     \
    case QATTN_FLOAT16: TILE_CALL(name##_QATTN_FLOAT16, rows, __VA_ARGS__); break;                                     \
    case QATTN_BFLOAT16: TILE_CALL(name##_QATTN_BFLOAT16, rows, __VA_ARGS__); break;                                   \
    case QATTN_INT8: TILE_CALL(name##_QATTN_INT8, rows, __VA_ARGS__); break;                                           \
    }

/* One tile meets one block, by way of finished scores: what is asked most, softmax of six rows of float32, without a
 * stop in memory. Some row sees a key of vector count - 1 of the block, and none sees any beyond. */
QATTN_INLINE void tile_softmax_finished(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                        size_t block_first, size_t count) {
    const tile_kind kind = {.rows = TILE_ROWS, .storage = QATTN_FLOAT32, .masked = true};
    f32x16 t[TILE_ROWS][BLOCK_VECTORS];
    tile_products(task, kind, 0, count, t);
    const score_finish finish = begin_finish(&args->problem);
    QATTN_UNROLL
    for (size_t i = 0; i < TILE_ROWS; i++) {
        finish_scores(&finish, begin_row_finish(&finish, places[i], task->visible[i], block_first), count, t[i]);
        if (i + 1 < TILE_ROWS) f32x16_in_order(&t[i][count - 1], &t[i + 1][0]);
    }
    tile_softmax(t, TILE_ROWS, count, task->maximum, task->sum, task->weights, task->rescale);
    tile_all_values(task, kind);
}

#define TILE_SOFTMAX_FINISHED(count)                                                                                   \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_softmax_finished), count)(                   \
        tile_task * task, const qattn_forward_args *args, const row_place *places, size_t block_first) {               \
        tile_softmax_finished(task, args, places, block_first, count);                                                 \
    }
TILE_SOFTMAX_FINISHED(1)
TILE_SOFTMAX_FINISHED(2)
TILE_SOFTMAX_FINISHED(3)
TILE_SOFTMAX_FINISHED(4)
#undef TILE_SOFTMAX_FINISHED

/* Which keys of the block the rows see, and whether any. */
QATTN_INLINE bool tile_sees_some(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                 bool *started, size_t count, size_t block_first) {
    task->any = 0;
    task->all = ~UINT64_C(0);
    for (size_t r = 0; r < TILE_ROWS; r++) { /* the rows that fill the last tile follow its last row */
        if (r < count) {
            task->visible[r] = visible_bits(&args->problem, places[r], block_first);
            started[r] |= task->visible[r] != 0;
        } else {
            task->visible[r] = task->visible[count - 1];
        }
        task->any |= task->visible[r];
        task->all &= task->visible[r];
    }
    return task->any != 0;
}

QATTN_INLINE void tile_sees_all(tile_task *task, bool *started, size_t count) {
    memset(started, true, count);
    for (size_t r = 0; r < TILE_ROWS; r++) task->visible[r] = ~UINT64_C(0);
    task->any = task->all = ~UINT64_C(0);
}

#endif
