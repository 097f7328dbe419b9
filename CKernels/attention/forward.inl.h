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
 *                                 3. o = o a + sum p v, in registers   value columns across lanes, keys ascending
 *
 * Online softmax: Milakov and Gimelshein 2018; tiling: Dao et al. 2022. */
#ifndef QATTN_FORWARD_INL_H
#define QATTN_FORWARD_INL_H

#include "attention/blocks.inl.h"
#include "attention/prefetch.inl.h"
#include "attention/scores.inl.h"
#include "attention/weights.inl.h"

/* A score is the sum of four chains: side by side where the registers hold them for all rows, else one after another.
 */
enum { QATTN_CHAINS = 4, PANEL_VECTORS = 4, CHUNK_BLOCKS = QATTN_KEY_CHUNK / QATTN_KEY_BLOCK };

/* The caller's workspace, cut up, and what else a call knows from its start. */
typedef struct forward_workspace {
    qattn_normaliser normaliser; /* of the pass over the keys at hand */
    bool plain;                  /* softmax of scores that need nothing but a mask */
    float *queries;         /* q' [rows][head_lanes], scaled, 0 past head_dim and in the rows that fill the last tile */
    row_state state, chunk; /* the sums so far, and those of the chunk at hand */
    size_t head_lanes, value_lanes, rows, tiles, block_bytes;
    row_place places[QATTN_QUERY_BLOCK]; /* of the rows; the last one's for those that fill the last tile */
    prefetch_cursor upcoming[QATTN_UPCOMING];
    size_t upcoming_share[QATTN_UPCOMING]; /* lines to ask for with each tile and block */
    row_totals totals[QUERY_TILES];        /* of the first pass of clipped softmax */
} forward_workspace;

/* A tile's share of the work on one block. */
typedef struct tile_task {
    const float *queries; /* [6][head_lanes] */
    block_parts block;
    float *maximum, *sum, *out;
    size_t head_dim, head_lanes, value_lanes, block_bytes;
    uint64_t visible[TILE_ROWS]; /* by row, after mask.inl.h */
    uint64_t any, all;           /* of them */
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

QATTN_INLINE prefetch_pace tile_pace(tile_kind kind) {
    return prefetch_pace_of(kind.rows * CACHE_LINE / (QATTN_LANES * storage_size(kind.storage)));
}

/* Chains of scores, or vectors of value columns, side by side in a tile of so many rows. */
QATTN_INLINE size_t vectors_at_once(size_t rows) {
    return qattn_min(QATTN_VECTORS * (rows == 1 ? 4 : rows == 2 ? 2 : 1), PANEL_VECTORS);
}

/* sum[i] += q'[i][d] k[d] of one channel d, for 16 keys. */
QATTN_INLINE void tile_channel(const tile_task *task, tile_kind kind, const char *keys, size_t d,
                               f32x16 sum[TILE_ROWS]) {
    const f32x16 key = f32x16_load_storage(keys + d * QATTN_LANES * storage_size(kind.storage), kind.storage);
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++)
        sum[i] = f32x16_fma(f32x16_splat(task->queries[i * task->head_lanes + d]), key, sum[i]);
}

/* 1. t[i] = q'[i].k for 16 keys. In every block of 128 channels, four chains take every fourth channel each, which
 * halves the rounding errors of one long chain; with registers for all four they run side by side. */
QATTN_INLINE void tile_scores(tile_task *task, tile_kind kind, const char *keys, f32x16 t[TILE_ROWS]) {
    const size_t at_once = vectors_at_once(kind.rows);
    block_prefetch next = task->next;
    for (size_t begin = 0; begin < task->head_dim; begin += QATTN_CHANNEL_BLOCK) {
        const size_t end = qattn_min(begin + QATTN_CHANNEL_BLOCK, task->head_dim);
        f32x16 sum[QATTN_CHAINS][TILE_ROWS];
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain++) {
            QATTN_UNROLL
            for (size_t i = 0; i < kind.rows; i++) sum[chain][i] = f32x16_splat(0);
        }
        QATTN_UNROLL
        for (size_t chain = 0; chain < QATTN_CHAINS; chain += at_once) {
            size_t d = begin + chain;
            for (; d + at_once <= end; d += QATTN_CHAINS) {
                if (kind.streams &&
                    block_prefetch_due(d / QATTN_CHAINS, at_once * QATTN_LANES * storage_size(kind.storage)))
                    block_prefetch_step(&next, task->block_bytes, tile_pace(kind));
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
    if (kind.streams) task->next = next;
}

/* int8: a score counts by the scale of its key, a weight by the scale of its value. What stands in the scales of keys
 * that are not seen is not used. */
QATTN_INLINE void scale_scores(f32x16 t[TILE_ROWS][BLOCK_VECTORS], size_t rows, size_t count, const float *scales) {
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        const f32x16 scale = f32x16_load(scales + v * QATTN_LANES);
        QATTN_UNROLL
        for (size_t i = 0; i < rows; i++) t[i][v] = t[i][v] * scale;
    }
}

QATTN_INLINE void scale_weights(float *weights, size_t rows, size_t count, const float *scales) {
    for (size_t i = 0; i < rows; i++, weights += QATTN_KEY_BLOCK) {
        QATTN_UNROLL
        for (size_t v = 0; v < count; v++)
            f32x16_store(weights + v * QATTN_LANES,
                         f32x16_load(weights + v * QATTN_LANES) * f32x16_load(scales + v * QATTN_LANES));
    }
}

/* 1. for the `count` vectors of keys from vector `first` of the block on. */
QATTN_INLINE void tile_products(tile_task *task, tile_kind kind, size_t first, size_t count,
                                f32x16 t[TILE_ROWS][BLOCK_VECTORS]) {
    const size_t group_bytes = task->head_dim * QATTN_LANES * storage_size(kind.storage);
    const char *const keys = task->block.keys + first * group_bytes;
    QATTN_UNROLL
    for (size_t v = 0; v < count; v++) {
        f32x16 scores[TILE_ROWS];
        tile_scores(task, kind, keys + v * group_bytes, scores);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) t[i][v] = scores[i];
    }
    if (kind.storage == QATTN_INT8) scale_scores(t, kind.rows, count, task->block.key_scales + first * QATTN_LANES);
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
    float *const weights = task->weights + first * QATTN_LANES;
    tile_softmax(t, kind.rows, count, task->maximum, task->sum, weights, task->rescale);
    if (kind.storage == QATTN_INT8)
        scale_weights(weights, kind.rows, count, task->block.value_scales + first * QATTN_LANES);
}

/* o[i] += p[i][j] v[j] of one key, for the rows that see it. Others are left out, never multiplied by 0: 0 * NaN is
 * NaN. */
QATTN_INLINE void tile_value_of_some(const tile_task *task, tile_kind kind, size_t j, const char *value, size_t count,
                                     f32x16 o[TILE_ROWS][PANEL_VECTORS]) {
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        if (!(task->visible[i] >> j & 1)) continue;
        const f32x16 weight = f32x16_splat(task->weights[i * QATTN_KEY_BLOCK + j]);
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++)
            o[i][c] = f32x16_fma(
                weight, f32x16_load_storage(storage_at(value, (ptrdiff_t)c * QATTN_LANES, kind.storage), kind.storage),
                o[i][c]);
    }
}

/* The same for the keys [j, end), which all rows see. */
QATTN_INLINE void tile_values_of_all(tile_task *task, tile_kind kind, size_t j, size_t end, const char *values,
                                     size_t stride, size_t count, f32x16 o[TILE_ROWS][PANEL_VECTORS]) {
    block_prefetch next = task->next;
    QATTN_UNROLL_4
    for (; j < end; j++) {
        if (kind.streams && block_prefetch_due(j, count * QATTN_LANES * storage_size(kind.storage)))
            block_prefetch_step(&next, task->block_bytes, tile_pace(kind));
        f32x16 value[PANEL_VECTORS];
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++)
            value[c] =
                f32x16_load_storage(values + (j * stride + c * QATTN_LANES) * storage_size(kind.storage), kind.storage);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) {
            const f32x16 weight = f32x16_splat(task->weights[i * QATTN_KEY_BLOCK + j]);
            QATTN_UNROLL
            for (size_t c = 0; c < count; c++) o[i][c] = f32x16_fma(weight, value[c], o[i][c]);
        }
    }
    if (kind.streams) task->next = next;
}

/* 3. for `count` vectors of value columns: the block's own sum, then o = o a + sum. Runs of keys that all rows see, and
 * single keys that some see. The sum starts at -0, which alone leaves every number as it is when added: so a row that
 * sees no key of the block keeps its bits. */
QATTN_INLINE void tile_values(tile_task *task, tile_kind kind, const char *values, size_t stride, size_t column,
                              size_t count) {
    float *const out = task->out + column;
    f32x16 o[TILE_ROWS][PANEL_VECTORS];
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) o[i][c] = f32x16_splat(-0.0f);
    }
    for (uint64_t rest = task->any; rest;) {
        const size_t j = (size_t)__builtin_ctzll(rest);
        const uint64_t unseen = ~(task->all >> j); /* bit n: not every row sees key j + n */
        if (unseen & 1) {
            tile_value_of_some(task, kind, j, values + j * stride * storage_size(kind.storage), count, o);
            rest &= rest - 1;
            continue;
        }
        const size_t end = j + (unseen ? (size_t)__builtin_ctzll(unseen) : QATTN_KEY_BLOCK);
        tile_values_of_all(task, kind, j, end, values, stride, count, o);
        rest = end < QATTN_KEY_BLOCK ? rest >> end << end : 0;
    }
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        const f32x16 rescale = f32x16_splat(task->rescale[row_lane(i)]);
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) {
            float *const at = out + i * task->value_lanes + c * QATTN_LANES;
            f32x16_store(at, f32x16_fma(f32x16_load(at), rescale, o[i][c]));
        }
    }
}

/* All value columns, panel by panel: whole ones where the registers hold their sums, and then their stride is a
 * constant too; else vector by vector or two by two. */
QATTN_INLINE void tile_all_values(tile_task *task, tile_kind kind) {
    const size_t at_once = vectors_at_once(kind.rows);
    const char *panel = task->block.values;
    for (size_t column = 0; column < task->value_lanes;) {
        const size_t stride = panel_lanes(task->value_lanes - column);
        if (at_once == PANEL_VECTORS) {
            switch (stride / QATTN_LANES) {
            case 4: tile_values(task, kind, panel, 4 * QATTN_LANES, column, 4); break;
            case 3: tile_values(task, kind, panel, 3 * QATTN_LANES, column, 3); break;
            case 2: tile_values(task, kind, panel, 2 * QATTN_LANES, column, 2); break;
            default: tile_values(task, kind, panel, QATTN_LANES, column, 1); break;
            }
        } else {
            for (size_t c = 0; c < stride;) {
                const char *const values = panel + c * storage_size(kind.storage);
                const size_t count = qattn_min(at_once, (stride - c) / QATTN_LANES);
                if (count == 2) tile_values(task, kind, values, stride, column + c, 2);
                else tile_values(task, kind, values, stride, column + c, 1);
                c += count * QATTN_LANES;
            }
        }
        column += stride;
        panel += stride * QATTN_KEY_BLOCK * storage_size(kind.storage);
    }
}

/* One tile meets one block that all its rows see whole. */
QATTN_INLINE void tile_full(tile_task *task, tile_kind kind) {
    tile_probabilities(task, kind, 0, BLOCK_VECTORS);
    tile_all_values(task, kind);
}

/* One tile meets one block that its rows see by task->visible; columns of 16 keys that no row sees cost nothing. */
QATTN_INLINE void tile_masked(tile_task *task, tile_kind kind) {
    /* Caches of 16-bit and int8 values wait for memory: they compute whole blocks, which takes a quarter of the code.
     */
    size_t first = 0, count = BLOCK_VECTORS;
    if (kind.storage == QATTN_FLOAT32) {
        first = (size_t)__builtin_ctzll(task->any) / QATTN_LANES;
        count -= (size_t)__builtin_clzll(task->any) / QATTN_LANES + first;
        if (count == 3 && first == 1) { /* vectors 1 + (2 + 3): the row sum's own tree is (0 + 1) + (2 + 3) */
            first = 0;
            count = BLOCK_VECTORS;
        }
        switch (count) {
        case 1: tile_probabilities(task, kind, first, 1); break;
        case 2: tile_probabilities(task, kind, first, 2); break;
        case 3: tile_probabilities(task, kind, first, 3); break;
        default: break;
        }
    }
    if (count == BLOCK_VECTORS) tile_probabilities(task, kind, 0, BLOCK_VECTORS);
    tile_all_values(task, kind);
}

QATTN_INLINE void tile_load(f32x16 t[TILE_ROWS][BLOCK_VECTORS], const float *scores, size_t rows) {
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++) {
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++)
            t[i][v] = f32x16_load(scores + i * QATTN_KEY_BLOCK + v * QATTN_LANES);
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

/* The two, with a constant number of rows and a constant storage, so that a tile of few rows does not pay for six.
 * Functions of their own: what the compiler keeps in registers must not depend on what surrounds them. Whole blocks
 * and tiles of two rows have theirs for float32 alone, which is what a forward pass packs; the others gain too little.
 */
#define TILE_FULL(rows)                                                                                                \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_full), rows)(tile_task * task) {             \
        tile_full(task, (tile_kind){rows, QATTN_FLOAT32, .streams = rows < TILE_ROWS});                                \
    }
#define TILE_MASKED(storage, rows)                                                                                     \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_masked_##storage), rows)(tile_task * task) { \
        tile_masked(task, (tile_kind){rows, storage, .masked = true, .streams = rows < TILE_ROWS});                    \
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
        if (storage == QATTN_INT8) scale_weights(task->weights, rows, BLOCK_VECTORS, task->block.value_scales);        \
        tile_all_values(task, (tile_kind){rows, storage, .masked = true, .streams = rows < TILE_ROWS});                \
    }
#define TILE_STORAGE(storage, rows)                                                                                    \
    TILE_MASKED(storage, rows)                                                                                         \
    TILE_PRODUCTS(storage, rows)                                                                                       \
    TILE_VALUES(storage, rows)
/* 2. for scores in memory, by the normalisers with a running maximum. */
#define TILE_WEIGHTS(rows)                                                                                             \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_softmax), rows)(tile_task * task) {          \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_load(t, task->weights, rows);                                                                             \
        tile_softmax(t, rows, BLOCK_VECTORS, task->maximum, task->sum, task->weights, task->rescale);                  \
    }                                                                                                                  \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_softpick), rows)(tile_task * task) {         \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_load(t, task->weights, rows);                                                                             \
        float maximum[QATTN_LANES];                                                                                    \
        f32x16_store(maximum, tile_maximum(t, rows, BLOCK_VECTORS, task->maximum, task->rescale));                     \
        for (size_t i = 0; i < rows; i++)                                                                              \
            softpick_weights(task->weights + i * QATTN_KEY_BLOCK, task->sum + i * QATTN_LANES, task->visible[i],       \
                             maximum[row_lane(i)], task->rescale[row_lane(i)]);                                        \
    }
#define TILE_OF(rows)                                                                                                  \
    TILE_FULL(rows)                                                                                                    \
    TILE_STORAGE(QATTN_FLOAT32, rows)                                                                                  \
    TILE_STORAGE(QATTN_FLOAT16, rows)                                                                                  \
    TILE_STORAGE(QATTN_BFLOAT16, rows)                                                                                 \
    TILE_STORAGE(QATTN_INT8, rows)                                                                                     \
    TILE_WEIGHTS(rows)
TILE_OF(1)
TILE_FULL(2)
TILE_MASKED(QATTN_FLOAT32, 2)
TILE_OF(4)
TILE_OF(6)
#undef TILE_OF
#undef TILE_WEIGHTS
#undef TILE_STORAGE
#undef TILE_VALUES
#undef TILE_PRODUCTS
#undef TILE_MASKED
#undef TILE_FULL
#define TILE_CALL_FLOAT32(name, rows, ...)                                                                             \
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

/* The c of a row's normaliser. */
QATTN_INLINE float row_constant(const qattn_forward_args *args, row_place row) {
    return args->row_constants[row_offset(args->row_constant_strides, row)];
}

/* 1., up to the finished scores, in memory: of the rows of the smallest tile that holds `count`. */
QATTN_INLINE void tile_finished_scores(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                       size_t count, size_t block_first) {
    TILE_CALL_STORAGE(tile_products, args->blocks.storage, count, task)
    if (scores_are_plain(args) && task->all == ~UINT64_C(0)) return;
    const score_finish finish = begin_finish(args);
    for (size_t r = 0; r < count; r++) {
        f32x16 t[1][BLOCK_VECTORS];
        tile_load(t, task->weights + r * QATTN_KEY_BLOCK, 1);
        finish_scores(&finish, begin_row_finish(&finish, places[r], task->visible[r], block_first), BLOCK_VECTORS,
                      t[0]);
        tile_store(task->weights + r * QATTN_KEY_BLOCK, t, 1);
    }
}

/* 2., from scores in memory: the rows from row i on. */
QATTN_INLINE void tile_weights(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t i,
                               size_t count) {
    if (ws->normaliser == QATTN_SOFTMAX) {
        TILE_CALL(tile_softmax, count, task);
        return;
    }
    if (ws->normaliser == QATTN_SOFTPICK) {
        TILE_CALL(tile_softpick, count, task);
        return;
    }
    f32x16_store(task->rescale, f32x16_splat(1));
    const row_totals *const totals = &ws->totals[i / TILE_ROWS];
    for (size_t r = 0; r < count; r++) {
        float *const weights = task->weights + r * QATTN_KEY_BLOCK, *const sum = task->sum + r * QATTN_LANES;
        const float c = row_constant(args, ws->places[i + r]);
        if (ws->normaliser == QATTN_SIGMOID) sigmoid_weights(weights, c);
        else if (ws->normaliser == QATTN_CLIPPED_SOFTMAX)
            clipped_weights(weights,
                            (clipped_row){totals->maximum[row_lane(r)], totals->factor[row_lane(r)], c, args->zeta});
        else relu_squared_weights(weights, sum);
    }
}

/* One tile meets one block, by way of finished scores: what is asked most, softmax of six rows of float32, without a
 * stop in memory. Some row sees a key of vector count - 1 of the block, and none sees any beyond. */
QATTN_INLINE void tile_softmax_finished(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                        size_t block_first, size_t count) {
    const tile_kind kind = {.rows = TILE_ROWS, .storage = QATTN_FLOAT32, .masked = true};
    f32x16 t[TILE_ROWS][BLOCK_VECTORS];
    tile_products(task, kind, 0, count, t);
    const score_finish finish = begin_finish(args);
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

/* One tile of `count` rows from row i on meets one block, by way of finished scores. */
QATTN_INLINE void tile_finished(tile_task *task, const qattn_forward_args *args, const forward_workspace *ws, size_t i,
                                size_t count, size_t block_first) {
    const row_place *const places = ws->places + i;
    if (ws->normaliser == QATTN_SOFTMAX && args->blocks.storage == QATTN_FLOAT32 && count > 4) {
        switch (BLOCK_VECTORS - (size_t)__builtin_clzll(task->any) / QATTN_LANES) {
        case 1: QATTN_PASTE(QATTN_FUNCTION(tile_softmax_finished), 1)(task, args, places, block_first); return;
        case 2: QATTN_PASTE(QATTN_FUNCTION(tile_softmax_finished), 2)(task, args, places, block_first); return;
        case 3: QATTN_PASTE(QATTN_FUNCTION(tile_softmax_finished), 3)(task, args, places, block_first); return;
        default: QATTN_PASTE(QATTN_FUNCTION(tile_softmax_finished), 4)(task, args, places, block_first); return;
        }
    }
    tile_finished_scores(task, args, places, count, block_first);
    tile_weights(task, args, ws, i, count);
    if (ws->value_lanes) TILE_CALL_STORAGE(tile_values, args->blocks.storage, count, task)
}

/* Which keys of the block the rows see, and whether any. */
QATTN_INLINE bool tile_sees_some(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                 bool *started, size_t count, size_t block_first) {
    task->any = 0;
    task->all = ~UINT64_C(0);
    for (size_t r = 0; r < TILE_ROWS; r++) { /* the rows that fill the last tile follow its last row */
        if (r < count) {
            task->visible[r] = visible_bits(args, places[r], block_first);
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

QATTN_INLINE tile_task block_task(const qattn_forward_args *args, const forward_workspace *ws, size_t block) {
    return (tile_task){
        .block = block_cut(&args->blocks, block_at(&args->blocks, block, ws->block_bytes), args->blocks.storage),
        .head_dim = args->blocks.head_dim,
        .head_lanes = ws->head_lanes,
        .value_lanes = ws->value_lanes,
        .block_bytes = ws->block_bytes};
}

/* One block against every tile. */
QATTN_INLINE void forward_block(const qattn_forward_args *args, forward_workspace *ws, size_t block, size_t block_end) {
    const size_t block_first = block * QATTN_KEY_BLOCK, block_last = block_first + QATTN_KEY_BLOCK;
    tile_task task = block_task(args, ws, block);
    /* The next block comes from memory or L3 while this one is at work: each tile asks for a share of it before it
     * starts, or, where tiles are so few that they wait for memory, as it goes. */
    const char *const following = block + 1 < block_end ? block_at(&args->blocks, block + 1, ws->block_bytes) : NULL;
    const bool streams = ws->rows <= STREAMING_ROWS;
    if (streams)
        task.next = block_prefetch_begin(task.block.keys, following, ws->block_bytes,
                                         tile_pace((tile_kind){.rows = ws->rows, .storage = args->blocks.storage}));
    prefetch_cursor next = prefetch_begin((qattn_upcoming_rows){streams ? NULL : following, 0, 1, ws->block_bytes});
    const size_t share = (prefetch_line_count(&next) + ws->tiles - 1) / ws->tiles;
    const bool ranges_only = !args->mask && !args->bias;
    for (size_t tile = 0; tile < ws->tiles; tile++) {
        const size_t i = tile * TILE_ROWS, count = qattn_min(TILE_ROWS, ws->rows - i);
        const run_keys keys = keys_of_run(args, ws->places[i], ws->places[i + count - 1]);
        prefetch_lines(&next, share);
        for (size_t n = 0; n < QATTN_UPCOMING; n++) prefetch_lines(&ws->upcoming[n], ws->upcoming_share[n]);
        if (keys.any.first >= (ptrdiff_t)block_last || keys.any.last <= (ptrdiff_t)block_first) continue;
        task.queries = ws->queries + i * ws->head_lanes;
        task.maximum = ws->chunk.maximum + tile * QATTN_LANES;
        task.sum = ws->chunk.sum + i * QATTN_LANES;
        task.out = ws->chunk.out + i * ws->value_lanes;
        const bool whole =
            ranges_only && keys.all.first <= (ptrdiff_t)block_first && keys.all.last >= (ptrdiff_t)block_last;
        if (whole) tile_sees_all(&task, ws->chunk.started + i, count);
        else if (!tile_sees_some(&task, args, ws->places + i, ws->chunk.started + i, count, block_first)) continue;
        if (!ws->plain) tile_finished(&task, args, ws, i, count, block_first);
        else if (args->blocks.storage != QATTN_FLOAT32)
            TILE_CALL_STORAGE(tile_masked, args->blocks.storage, count, &task)
        else if (whole) TILE_CALL_FLOAT32(tile_full, count, &task);
        else TILE_CALL_FLOAT32(tile_masked_QATTN_FLOAT32, count, &task);
    }
}

/* q' = q * c, c = Float(scale * log2 e) unless scores.inl.h has more to say: scores live in base 2. */
QATTN_INLINE void scale_queries(const qattn_forward_args *args, forward_workspace *ws, qattn_storage storage) {
    const size_t head_dim = args->blocks.head_dim;
    const float uniform = query_factor(args, ws->places[0]);
    for (size_t i = 0; i < ws->tiles * TILE_ROWS; i++) {
        float *const out = ws->queries + i * ws->head_lanes;
        const f32x16 c = f32x16_splat(args->row_factors ? query_factor(args, ws->places[i]) : uniform);
        const void *q = storage_at(args->queries_base, row_offset(args->query_strides, ws->places[i]), storage);
        for (size_t d = 0; d < ws->head_lanes; d += QATTN_LANES) {
            f32x16 x = f32x16_splat(0);
            if (i < ws->rows) x = f32x16_load_first(storage_at(q, (ptrdiff_t)d, storage), head_dim - d, storage) * c;
            f32x16_store(out + d, x);
        }
    }
}

QATTN_INLINE void scale_all_queries(const qattn_forward_args *args, forward_workspace *ws) {
    switch (args->query_storage) {
    case QATTN_FLOAT32: scale_queries(args, ws, QATTN_FLOAT32); break;
    case QATTN_FLOAT16: scale_queries(args, ws, QATTN_FLOAT16); break;
    default: scale_queries(args, ws, QATTN_BFLOAT16); break;
    }
}

QATTN_INLINE void reset_state(row_state state, const forward_workspace *ws) {
    const bool is_softmax = ws->normaliser == QATTN_SOFTMAX;
    for (size_t i = 0; i < ws->tiles * QATTN_LANES; i++) state.maximum[i] = is_softmax ? -__builtin_inff() : 0;
    memset(state.sum, 0, ws->tiles * TILE_ROWS * QATTN_LANES * sizeof(float));
    memset(state.out, 0, ws->tiles * TILE_ROWS * ws->value_lanes * sizeof(float));
    memset(state.started, false, ws->rows * sizeof(bool));
}

QATTN_INLINE void merge_chunk(const forward_workspace *ws) {
    for (size_t i = 0; i < ws->rows; i++) {
        if (ws->chunk.started[i])
            merge_row(row_of(ws->state, i, ws->value_lanes), ws->state.started + i,
                      row_of(ws->chunk, i, ws->value_lanes), ws->value_lanes);
    }
}

/* What remains to be said of the rows of a tile, from all their sums. A row without keys has o = 0, so only its lse
 * needs a word. */
QATTN_INLINE row_totals tile_result(const qattn_forward_args *args, const forward_workspace *ws, row_state state,
                                    size_t tile) {
    const size_t first = tile * TILE_ROWS, count = qattn_min(TILE_ROWS, ws->rows - first);
    const row_place *const places = ws->places + first;
    const float *const maximum = state.maximum + tile * QATTN_LANES, *const sum = state.sum + first * QATTN_LANES;
    row_totals totals;
    if (ws->normaliser == QATTN_SOFTMAX) {
        float sinks[QATTN_LANES];
        f32x16_store(sinks, f32x16_splat(args->sinks[places[0].head]));
        for (size_t r = 0; places[count - 1].head != places[0].head && r < count; r++)
            sinks[row_lane(r)] = args->sinks[places[r].head];
        for (size_t r = 0; args->normaliser == QATTN_SOFTMAX && args->row_constants && r < count; r++)
            sinks[row_lane(r)] += row_constant(args, places[r]);
        tile_totals(maximum, sum, sinks, &totals, args->lse, args->sink_share);
        for (size_t r = 0; args->lse && r < count; r++) {
            if (!state.started[first + r]) totals.lse[row_lane(r)] = sinks[row_lane(r)];
        }
    } else if (ws->normaliser == QATTN_CLIPPED_SOFTMAX) {
        totals = ws->totals[tile];
        f32x16_store(totals.factor, f32x16_splat(1));
    } else {
        float sums[QATTN_LANES];
        f32x16_store(sums, tile_lane_sums(sum));
        for (size_t r = 0; r < count; r++)
            totals.factor[row_lane(r)] =
                weights_factor(ws->normaliser, sums[row_lane(r)], row_constant(args, places[r]));
    }
    return totals;
}

QATTN_INLINE void store_rows(const qattn_forward_args *args, const forward_workspace *ws, row_state state,
                             qattn_storage storage) {
    const size_t value_dim = args->blocks.value_dim;
    for (size_t tile = 0; tile < ws->tiles; tile++) {
        const size_t first = tile * TILE_ROWS, count = qattn_min(TILE_ROWS, ws->rows - first);
        const row_totals totals = tile_result(args, ws, state, tile);
        for (size_t r = 0; r < count; r++) {
            const row_place place = ws->places[first + r];
            const f32x16 row_factor = f32x16_splat(totals.factor[row_lane(r)]);
            const float *const o = state.out + (first + r) * ws->value_lanes;
            char *const out =
                (char *)args->out + row_offset(args->out_strides, place) * (ptrdiff_t)storage_size(storage);
            for (size_t c = 0; c < value_dim; c += QATTN_LANES)
                f32x16_store_first(out + c * storage_size(storage), value_dim - c, f32x16_load(o + c) * row_factor,
                                   storage);
            const ptrdiff_t at = (ptrdiff_t)place.head * args->sum_head_stride + (ptrdiff_t)place.query;
            if (args->lse) args->lse[at] = totals.lse[row_lane(r)];
            if (args->sink_share) args->sink_share[at] = totals.sink_share[row_lane(r)];
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

/* The parts of a row's state in the caller's array, `index` counted over chunks and rows; *seen is its `seen`. */
QATTN_INLINE row_sums state_at(const qattn_forward_args *args, size_t index, float **seen) {
    float *const state = args->states + index * qattn_state_floats(args->blocks.value_dim);
    *seen = state + 1;
    return (row_sums){.maximum = state, .sum = state + QATTN_LANES, .out = state + 2 * QATTN_LANES};
}

QATTN_INLINE void store_states(const qattn_forward_args *args, const forward_workspace *ws, size_t chunk) {
    for (size_t i = 0; i < ws->rows; i++) {
        float *seen;
        const row_sums state = state_at(args, (chunk - args->chunk_begin) * ws->rows + i, &seen);
        copy_row(state, row_of(ws->chunk, i, ws->value_lanes), ws->value_lanes);
        *seen = ws->chunk.started[i];
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

QATTN_INLINE void cut_workspace(const qattn_forward_args *args, forward_workspace *ws) {
    ws->normaliser = args->normaliser;
    ws->plain = args->normaliser == QATTN_SOFTMAX && scores_are_plain(args);
    ws->rows = args->row_end - args->row_begin;
    ws->tiles = (ws->rows + TILE_ROWS - 1) / TILE_ROWS;
    ws->head_lanes = qattn_round_up(args->blocks.head_dim, QATTN_LANES);
    ws->value_lanes = qattn_round_up(args->blocks.value_dim, QATTN_LANES);
    ws->block_bytes = qattn_block_bytes(args->blocks.storage, args->blocks.head_dim, args->blocks.value_dim);
    row_place place = {.head = args->row_begin / args->queries, .query = args->row_begin % args->queries};
    for (size_t i = 0; i < ws->tiles * TILE_ROWS; i++) {
        ws->places[i] = place;
        if (i + 1 >= ws->rows) continue;
        if (++place.query == args->queries) place = (row_place){.head = place.head + 1, .query = 0};
    }
    float *cursor = args->workspace;
    ws->queries = take(&cursor, ws->tiles * TILE_ROWS * ws->head_lanes);
    ws->state = take_state(&cursor, ws);
    ws->chunk = take_state(&cursor, ws);
}

/* Blocks [begin, end) of one chunk, from the empty state; the next block of the call is fetched ahead up to block_end.
 */
QATTN_INLINE void forward_chunk(const qattn_forward_args *args, forward_workspace *ws, size_t begin, size_t end,
                                size_t block_end) {
    reset_state(ws->chunk, ws);
    for (size_t block = begin; block < end; block++) forward_block(args, ws, block, block_end);
}

/* Blocks [begin, end), whose first one may be anywhere in its chunk: the rows' sums over all of them. Keys of a single
 * chunk need no merge: the first chunk that a row sees is the row's state as it is. */
QATTN_INLINE row_state forward_blocks(const qattn_forward_args *args, forward_workspace *ws, size_t begin, size_t end) {
    const bool one_chunk = end <= (begin / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS;
    if (!one_chunk) reset_state(ws->state, ws);
    size_t block = begin;
    do {
        const size_t chunk_end = qattn_min(end, (block / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS);
        forward_chunk(args, ws, block, chunk_end, end);
        if (!one_chunk) merge_chunk(ws);
        block = chunk_end;
    } while (block < end);
    return one_chunk ? ws->chunk : ws->state;
}

/* Clipped softmax: the maximum and the sum of each row, without values, so that the pass over the values that follows
 * knows every weight as it meets it. */
static __attribute__((noinline)) void QATTN_FUNCTION(first_pass)(const qattn_forward_args *args, forward_workspace *ws,
                                                                 size_t begin, size_t end) {
    const size_t value_lanes = ws->value_lanes;
    ws->value_lanes = 0;
    ws->normaliser = QATTN_SOFTMAX;
    const row_state state = forward_blocks(args, ws, begin, end);
    for (size_t tile = 0; tile < ws->tiles; tile++) ws->totals[tile] = tile_result(args, ws, state, tile);
    ws->value_lanes = value_lanes;
    ws->normaliser = QATTN_CLIPPED_SOFTMAX;
}

static void QATTN_FUNCTION(forward)(const qattn_forward_args *args) {
    assert(args->row_begin <= args->row_end && args->row_end - args->row_begin <= QATTN_QUERY_BLOCK);
    assert(args->row_end <= args->heads * args->queries);
    if (args->row_end == args->row_begin) return;
    assert(args->normaliser != QATTN_CLIPPED_SOFTMAX || !args->states);
    forward_workspace ws;
    cut_workspace(args, &ws);
    scale_all_queries(args, &ws);

    /* The keys that some row may see. */
    const key_range keys = keys_of_run(args, ws.places[0], ws.places[ws.rows - 1]).any;
    size_t block_begin = (size_t)keys.first / QATTN_KEY_BLOCK, block_end = block_begin;
    if (keys.last > keys.first) block_end = ((size_t)keys.last + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK;
    if (args->states) {
        block_begin = qattn_max(block_begin, args->chunk_begin * CHUNK_BLOCKS);
        block_end = qattn_min(block_end, args->chunk_end * CHUNK_BLOCKS);
    }
    const size_t tile_blocks = block_begin < block_end ? ws.tiles * (block_end - block_begin) : 1;
    for (size_t n = 0; n < QATTN_UPCOMING; n++) {
        ws.upcoming[n] = prefetch_begin(args->upcoming[n]);
        ws.upcoming_share[n] = (prefetch_line_count(&ws.upcoming[n]) + tile_blocks - 1) / tile_blocks;
    }

    if (args->states) {
        for (size_t chunk = args->chunk_begin; chunk < args->chunk_end; chunk++) {
            const size_t first = chunk * CHUNK_BLOCKS;
            forward_chunk(args, &ws, qattn_max(block_begin, first), qattn_min(block_end, first + CHUNK_BLOCKS),
                          block_end);
            store_states(args, &ws, chunk);
        }
        return;
    }
    if (args->normaliser == QATTN_CLIPPED_SOFTMAX) QATTN_FUNCTION(first_pass)(args, &ws, block_begin, block_end);
    store_result(args, &ws, forward_blocks(args, &ws, block_begin, block_end));
}

/* The states of chunks that forward left, merged from left to right as forward itself merges them. */
static void QATTN_FUNCTION(finish)(const qattn_forward_args *args) {
    assert(args->row_begin <= args->row_end && args->row_end - args->row_begin <= QATTN_QUERY_BLOCK);
    if (args->row_end == args->row_begin) return;
    forward_workspace ws;
    cut_workspace(args, &ws);
    reset_state(ws.state, &ws);
    for (size_t index = 0; index < (args->chunk_end - args->chunk_begin) * ws.rows; index++) {
        float *seen;
        const size_t i = index % ws.rows;
        const row_sums chunk = state_at(args, index, &seen);
        if (*seen != 0) merge_row(row_of(ws.state, i, ws.value_lanes), ws.state.started + i, chunk, ws.value_lanes);
    }
    store_result(args, &ws, ws.state);
}

/* The finished scores of the rows against one block. */
static void QATTN_FUNCTION(scores)(const qattn_forward_args *args, size_t block, float *scores) {
    assert(args->row_begin <= args->row_end && args->row_end - args->row_begin <= QATTN_QUERY_BLOCK);
    if (args->row_end == args->row_begin) return;
    forward_workspace ws;
    cut_workspace(args, &ws);
    scale_all_queries(args, &ws);
    tile_task task = block_task(args, &ws, block);
    bool started[TILE_ROWS];
    for (size_t tile = 0; tile < ws.tiles; tile++) {
        const size_t i = tile * TILE_ROWS, count = qattn_min(TILE_ROWS, ws.rows - i);
        task.queries = ws.queries + i * ws.head_lanes;
        tile_sees_some(&task, args, ws.places + i, started, count, block * QATTN_KEY_BLOCK);
        task.all = 0; /* every score passes its mask, so that nothing but -inf stands where a row sees nothing */
        tile_finished_scores(&task, args, ws.places + i, count, block * QATTN_KEY_BLOCK);
        memcpy(scores + i * QATTN_KEY_BLOCK, task.weights, count * QATTN_KEY_BLOCK * sizeof(float));
    }
}

#endif
