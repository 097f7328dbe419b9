/* SPDX-License-Identifier: Apache-2.0 */
/* tiles.inl.h - a tile of rows meets a block of keys, step by step: scores with their maximum, weights, and the values of
 * a panel of columns, each a function of its own, so that a block's steps can be taken in turns with other tiles. */
#ifndef QATTN_TILES_INL_H
#define QATTN_TILES_INL_H

#include "attention/scores.inl.h"
#include "attention/weights.inl.h"
#include "tile/values.inl.h"

/* The vectors of a block's keys that hold all that the rows of a tile see. */
typedef struct vector_run {
    size_t first, count;
} vector_run;

QATTN_INLINE vector_run seen_vectors(uint64_t any) {
    const size_t first = (size_t)__builtin_ctzll(any) / QATTN_LANES;
    const size_t count = BLOCK_VECTORS - (size_t)__builtin_clzll(any) / QATTN_LANES - first;
    /* Vectors 1 + (2 + 3) are not part of the row sum's own tree, (0 + 1) + (2 + 3). */
    return count == 3 && first == 1 ? (vector_run){0, BLOCK_VECTORS} : (vector_run){first, count};
}

/* The first half of 2., from the largest scores: m, a, and what the other half subtracts. */
QATTN_INLINE void tile_begin_softmax(tile_task *task, f32x16 row_max[TILE_ROWS]) {
    tile_scratch *const scratch = task->scratch;
    f32x16_store(scratch->reference, tile_maximum(rows_max(row_max), task->maximum, scratch->rescale));
}

/* 1. and the first half of 2., of scores that need nothing but a mask; columns of 16 keys that no row sees cost nothing. */
QATTN_INLINE void tile_scored(tile_task *task, tile_kind kind) {
    tile_scratch *const scratch = task->scratch;
    const vector_run run = kind.masked ? seen_vectors(scratch->any) : (vector_run){0, BLOCK_VECTORS};
    const size_t group_bytes = task->head_dim * QATTN_LANES * storage_size(kind.storage);
    f32x16 row_max[TILE_ROWS];
    QATTN_UNROLL
    for (size_t i = 0; i < TILE_ROWS; i++) row_max[i] = f32x16_splat(-__builtin_inff());
    QATTN_NO_UNROLL
    for (size_t v = run.first; v < run.first + run.count; v++) {
        f32x16 t[TILE_ROWS];
        tile_scores(task, kind, task->block.keys + v * group_bytes, t);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++) {
            if (kind.masked)
                t[i] = f32x16_select((uint32_t)(scratch->visible[i] >> v * QATTN_LANES) & 0xffff, t[i],
                                     f32x16_splat(-__builtin_inff()));
            row_max[i] = f32x16_max(t[i], row_max[i]);
            f32x16_store(scratch->weights + i * QATTN_KEY_BLOCK + v * QATTN_LANES, t[i]);
        }
    }
    tile_begin_softmax(task, row_max);
}

/* The first half of 2., of finished scores in memory, by the normalisers with a running maximum. */
QATTN_INLINE void tile_compared(tile_task *task, size_t rows) {
    f32x16 row_max[TILE_ROWS];
    QATTN_UNROLL
    for (size_t i = 0; i < TILE_ROWS; i++) {
        row_max[i] = f32x16_splat(-__builtin_inff());
        if (i >= rows) continue;
        QATTN_UNROLL
        for (size_t v = 0; v < BLOCK_VECTORS; v++)
            row_max[i] =
                f32x16_max(f32x16_load(task->scratch->weights + i * QATTN_KEY_BLOCK + v * QATTN_LANES), row_max[i]);
    }
    tile_begin_softmax(task, row_max);
}

/* The second half of 2.: weights in the place of scores, and l. */
QATTN_INLINE void tile_weighed(tile_scratch *scratch, size_t rows, vector_run run, bool rounds, float *sum) {
    QATTN_UNROLL
    for (size_t i = 0; i < rows; i++)
        row_softmax(scratch->weights + i * QATTN_KEY_BLOCK + run.first * QATTN_LANES, run.count,
                    scratch->reference[row_lane(i)], scratch->rescale[row_lane(i)], rounds, sum + i * QATTN_LANES);
}

QATTN_INLINE void tile_weighed_as_seen(tile_scratch *scratch, size_t rows, float *sum) {
    const vector_run run = seen_vectors(scratch->any);
    switch (run.count) {
    case 1: tile_weighed(scratch, rows, (vector_run){run.first, 1}, false, sum); break;
    case 2: tile_weighed(scratch, rows, (vector_run){run.first, 2}, false, sum); break;
    case 3: tile_weighed(scratch, rows, (vector_run){run.first, 3}, false, sum); break;
    default: tile_weighed(scratch, rows, (vector_run){0, BLOCK_VECTORS}, false, sum); break;
    }
}

/* Functions of their own, with a constant number of rows, as in products.inl.h. */
#define TILE_PHASES(rows)                                                                                              \
    TILE_INSTANCE(tile_scored_whole, rows)(tile_task * task) {                                                         \
        tile_scored(task, (tile_kind){rows, QATTN_FLOAT32, .streams = rows <= STREAMING_ROWS});                        \
    }                                                                                                                  \
    TILE_INSTANCE(tile_scored_masked, rows)(tile_task * task) {                                                        \
        tile_scored(task, (tile_kind){rows, QATTN_FLOAT32, .masked = true, .streams = rows <= STREAMING_ROWS});        \
    }                                                                                                                  \
    TILE_INSTANCE(tile_weighed, rows)(tile_scratch * scratch, float *sum) {                                            \
        tile_weighed_as_seen(scratch, rows, sum);                                                                      \
    }                                                                                                                  \
    TILE_INSTANCE(tile_panel_whole, rows)(tile_task * task, const char *panel, size_t column, size_t lanes) {          \
        tile_panel(task, (tile_kind){rows, QATTN_FLOAT32, .streams = rows <= STREAMING_ROWS}, panel, column, lanes);   \
    }                                                                                                                  \
    TILE_INSTANCE(tile_panel_masked, rows)(tile_task * task, const char *panel, size_t column, size_t lanes) {         \
        tile_panel(task, (tile_kind){rows, QATTN_FLOAT32, .masked = true, .streams = rows <= STREAMING_ROWS}, panel,   \
                   column, lanes);                                                                                     \
    }
/* The same for what takes scores and weights through memory. */
#define TILE_WEIGHTS(rows)                                                                                             \
    TILE_INSTANCE(tile_compared, rows)(tile_task * task) { tile_compared(task, rows); }                                \
    TILE_INSTANCE(tile_softmax, rows)(tile_task * task, bool rounds) {                                                 \
        tile_compared(task, rows);                                                                                     \
        tile_weighed(task->scratch, rows, (vector_run){0, BLOCK_VECTORS}, rounds, task->sum);                          \
    }                                                                                                                  \
    TILE_INSTANCE(tile_softpick, rows)(tile_task * task, bool rounds) {                                                \
        tile_scratch *const scratch = task->scratch;                                                                   \
        tile_compared(task, rows);                                                                                     \
        for (size_t i = 0; i < rows; i++)                                                                              \
            softpick_weights(scratch->weights + i * QATTN_KEY_BLOCK, task->sum + i * QATTN_LANES, scratch->visible[i], \
                             scratch->reference[row_lane(i)], scratch->rescale[row_lane(i)], rounds);                  \
    }
/* All steps of few rows that stream blocks which they see whole. */
QATTN_INLINE void tile_streamed(tile_task *task, tile_kind kind) {
    tile_scored(task, kind);
    tile_weighed(task->scratch, kind.rows, (vector_run){0, BLOCK_VECTORS}, false, task->sum);
    tile_all_values(task, kind);
}
#define TILE_STREAMED(rows)                                                                                            \
    TILE_INSTANCE(tile_streamed, rows)(tile_task * task) {                                                             \
        tile_streamed(task, (tile_kind){rows, QATTN_FLOAT32, .streams = true});                                        \
    }
#if defined(QATTN_AVX512)
/* Of 16 bit fewer rows ask in all their functions; five and six, of which prefill consists, have functions of their own for that: six
 * lose 15 % by it in caches. */
#define HALVES_STREAMED(storage, rows)                                                                                 \
    TILE_INSTANCE(tile_streamed_##storage, rows)(tile_task * task) {                                                   \
        tile_streamed(task, (tile_kind){rows, storage, .streams = true});                                              \
    }
HALVES_STREAMED(QATTN_FLOAT16, 5)
HALVES_STREAMED(QATTN_FLOAT16, 6)
HALVES_STREAMED(QATTN_BFLOAT16, 5)
HALVES_STREAMED(QATTN_BFLOAT16, 6)
#undef HALVES_STREAMED
#define TILE_CALL_STREAMED(storage, rows, task)                                                                        \
    ((storage) == QATTN_FLOAT16 ? QATTN_PASTE(QATTN_FUNCTION(tile_streamed_QATTN_FLOAT16), rows)(task)                 \
                                : QATTN_PASTE(QATTN_FUNCTION(tile_streamed_QATTN_BFLOAT16), rows)(task))
#endif
TILE_HEIGHTS(TILE_PHASES)
TILE_HEIGHTS(TILE_STREAMED)
TILE_HEIGHTS(TILE_WEIGHTS)
#undef TILE_WEIGHTS
#undef TILE_STREAMED
#undef TILE_PHASES
/* 1. and the first half of 2. of six rows whose scores have to be finished, in registers throughout: of the vectors
 * [0, count) of the block, beyond which no row sees a key. */
QATTN_INLINE void tile_scored_finished(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                       size_t block_first, size_t count) {
    const tile_kind kind = {.rows = TILE_ROWS, .storage = QATTN_FLOAT32, .masked = true};
    f32x16 t[TILE_ROWS][BLOCK_VECTORS], row_max[TILE_ROWS];
    tile_products(task, kind, count, t);
    const score_finish finish = begin_finish(&args->problem);
    QATTN_UNROLL
    for (size_t i = 0; i < TILE_ROWS; i++) {
        finish_scores(&finish, begin_row_finish(&finish, places[i], task->scratch->visible[i], block_first), count,
                      t[i]);
        if (i + 1 < TILE_ROWS) f32x16_in_order(&t[i][count - 1], &t[i + 1][0]);
        row_max[i] = f32x16_splat(-__builtin_inff());
        QATTN_UNROLL
        for (size_t v = 0; v < count; v++) {
            row_max[i] = f32x16_max(t[i][v], row_max[i]);
            f32x16_store(task->scratch->weights + i * QATTN_KEY_BLOCK + v * QATTN_LANES, t[i][v]);
        }
    }
    tile_begin_softmax(task, row_max);
}

#define TILE_SCORED_FINISHED(count)                                                                                    \
    TILE_INSTANCE(tile_scored_finished, count)(tile_task * task, const qattn_forward_args *args,                       \
                                               const row_place *places, size_t block_first) {                          \
        tile_scored_finished(task, args, places, block_first, count);                                                  \
    }
TILE_SCORED_FINISHED(1)
TILE_SCORED_FINISHED(2)
TILE_SCORED_FINISHED(3)
TILE_SCORED_FINISHED(4)
#undef TILE_SCORED_FINISHED

/* Which keys of the block the rows see, and whether any. */
QATTN_INLINE bool tile_sees_some(tile_task *task, const qattn_forward_args *args, const row_place *places,
                                 bool *started, size_t count, size_t block_first) {
    task->scratch->any = 0;
    task->scratch->all = ~UINT64_C(0);
    for (size_t r = 0; r < TILE_ROWS; r++) { /* padding rows copy the visibility of the last row */
        if (r < count) {
            task->scratch->visible[r] = visible_bits(&args->problem, places[r], block_first);
            started[r] |= task->scratch->visible[r] != 0;
        } else {
            task->scratch->visible[r] = task->scratch->visible[count - 1];
        }
        task->scratch->any |= task->scratch->visible[r];
        task->scratch->all &= task->scratch->visible[r];
    }
    return task->scratch->any != 0;
}

QATTN_INLINE void tile_sees_all(tile_task *task, bool *started, size_t count) {
    for (size_t r = 0; r < count; r++) started[r] = true;
    for (size_t r = 0; r < TILE_ROWS; r++) task->scratch->visible[r] = ~UINT64_C(0);
    task->scratch->any = task->scratch->all = ~UINT64_C(0);
}

#endif
