/* SPDX-License-Identifier: Apache-2.0 */
/* tiles.inl.h - one tile of rows meets one block of keys, from products to values: softmax without a stop in memory
 * between them where it is asked most, and the weights of finished scores for what takes that stop. */
#ifndef QATTN_TILES_INL_H
#define QATTN_TILES_INL_H

#include "attention/scores.inl.h"
#include "attention/weights.inl.h"
#include "tile/values.inl.h"

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
    tile_softmax(t, kind.rows, count, false, task->maximum, task->sum, task->weights + first * QATTN_LANES,
                 task->rescale);
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

/* Instances for full and for masked tiles, of float32 alone, which is what a forward pass packs. 16-bit and int8 caches
 * take the unfused path, scores through memory, which costs them nothing: they are bound by memory. */
#define TILE_SOFTMAX(rows)                                                                                             \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_full), rows)(tile_task * task) {             \
        tile_full(task, (tile_kind){rows, QATTN_FLOAT32, .streams = rows < TILE_ROWS});                                \
    }                                                                                                                  \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_masked), rows)(tile_task * task) {           \
        tile_masked(task, (tile_kind){rows, QATTN_FLOAT32, .masked = true, .streams = rows < TILE_ROWS});              \
    }
/* 2. for scores in memory, by the normalisers with a running maximum. */
#define TILE_SOFTMAX_IN_MEMORY(name, rows, rounds)                                                                     \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(name), rows)(tile_task * task) {                  \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_load(t, task->weights, rows, BLOCK_VECTORS);                                                              \
        tile_softmax(t, rows, BLOCK_VECTORS, rounds, task->maximum, task->sum, task->weights, task->rescale);          \
    }
#define TILE_WEIGHTS(rows)                                                                                             \
    TILE_SOFTMAX_IN_MEMORY(tile_softmax, rows, false)                                                                  \
    TILE_SOFTMAX_IN_MEMORY(tile_softmax_rounded, rows, true)                                                           \
    static __attribute__((noinline)) void QATTN_PASTE(QATTN_FUNCTION(tile_softpick), rows)(tile_task * task,           \
                                                                                           bool rounds) {              \
        f32x16 t[TILE_ROWS][BLOCK_VECTORS];                                                                            \
        tile_load(t, task->weights, rows, BLOCK_VECTORS);                                                              \
        float maximum[QATTN_LANES];                                                                                    \
        f32x16_store(maximum, tile_maximum(t, rows, BLOCK_VECTORS, task->maximum, task->rescale));                     \
        for (size_t i = 0; i < rows; i++)                                                                              \
            softpick_weights(task->weights + i * QATTN_KEY_BLOCK, task->sum + i * QATTN_LANES, task->visible[i],       \
                             maximum[row_lane(i)], task->rescale[row_lane(i)], rounds);                                \
    }
#define TILE_OF(rows)                                                                                                  \
    TILE_SOFTMAX(rows)                                                                                                 \
    TILE_WEIGHTS(rows)
TILE_OF(1)
TILE_SOFTMAX(2)
TILE_OF(4)
TILE_OF(6)
#undef TILE_OF
#undef TILE_WEIGHTS
#undef TILE_SOFTMAX_IN_MEMORY
#undef TILE_SOFTMAX
#define TILE_CALL_SOFTMAX(name, rows, ...)                                                                             \
    ((rows) == 2 ? QATTN_PASTE(QATTN_FUNCTION(name), 2)(__VA_ARGS__) : TILE_CALL(name, rows, __VA_ARGS__))

/* One tile against one block, with scores that have to be finished: the most common case, softmax of six rows of float32,
 * keeps them in registers throughout. Some row sees a key of vector count - 1 of the block, and none sees any beyond. */
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
    tile_softmax(t, TILE_ROWS, count, false, task->maximum, task->sum, task->weights, task->rescale);
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
    for (size_t r = 0; r < TILE_ROWS; r++) { /* padding rows copy the visibility of the last row */
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
