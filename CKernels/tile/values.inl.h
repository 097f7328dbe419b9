/* SPDX-License-Identifier: Apache-2.0 */
/* values.inl.h - step 3 of forward.inl.h: o = o a + sum p v of a tile of rows and the values of a block. */
#ifndef QATTN_VALUES_INL_H
#define QATTN_VALUES_INL_H

#include "tile/products.inl.h"

/* o[i] += p[i][j] v[j] of one key, of `count` vectors of columns. */
QATTN_INLINE void tile_value(const tile_task *task, tile_kind kind, size_t j, const char *value, size_t count,
                             f32x16 (*o)[TILE_ROWS]) {
    f32x16 vectors[PANEL_VECTORS];
    QATTN_UNROLL
    for (size_t c = 0; c < count; c++)
        vectors[c] = f32x16_load_unordered(value + c * QATTN_LANES * storage_size(kind.storage), kind.storage);
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        const f32x16 weight = f32x16_splat(task->scratch->weights[i * QATTN_KEY_BLOCK + j]);
        QATTN_UNROLL
        for (size_t c = 0; c < count; c++) o[c][i] = f32x16_fma(weight, vectors[c], o[c][i]);
    }
}

/* The same for the rows that see the key. Others are left out, never multiplied by 0: 0 * NaN is NaN. */
QATTN_INLINE void tile_value_of_some(const tile_task *task, tile_kind kind, size_t j, const char *value, size_t count,
                                     f32x16 (*o)[TILE_ROWS]) {
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        if (!(task->scratch->visible[i] >> j & 1)) continue;
        const f32x16 weight = f32x16_splat(task->scratch->weights[i * QATTN_KEY_BLOCK + j]);
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
        tile_prefetch(kind, next, j / PASS_STEPS, PASS_STEPS * count * QATTN_LANES * storage_size(kind.storage));
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
    const size_t value_lanes = task->value_lanes; /* not read again after every store, nor is what else a task holds */
    const float *const rescale = task->scratch->rescale;
    float *at = task->out + column;
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        f32x16_store(
            at, f32x16_fma(f32x16_load(at), f32x16_splat(rescale[row_lane(i)]), f32x16_ordered(sum[i], kind.storage)));
        at += value_lanes;
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
    const uint64_t all = kind.masked ? task->scratch->all : ~UINT64_C(0);
    for (uint64_t rest = kind.masked ? task->scratch->any : ~UINT64_C(0); rest;) {
        const key_run run = first_run(rest, all);
        rest = run.rest;
        if (!run.whole) {
            tile_value_of_some(task, kind, run.begin, values + run.begin * stride * size, count, o);
            continue;
        }
        block_prefetch next = task->next;
        QATTN_UNROLL_2
        for (size_t j = run.begin; j < run.end; j++) {
            tile_prefetch(kind, &next, j, count * QATTN_LANES * size);
            ask_for_strided(kind, values + j * stride * size);
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
    const uint64_t all = kind.masked ? task->scratch->all : ~UINT64_C(0);
    for (uint64_t rest = kind.masked ? task->scratch->any : ~UINT64_C(0); rest;) {
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

/* 3. for the panel that begins at `column`: whole where the registers hold its sums or these stay in memory, else vector
 * by vector. */
QATTN_INLINE void tile_panel(tile_task *task, tile_kind kind, const char *panel, size_t column, size_t lanes) {
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
}

/* The panel behind one of so many lanes. */
QATTN_INLINE const char *panel_after(const tile_task *task, qattn_storage storage, const char *panel, size_t lanes) {
    return panel + lanes * (task->value_stride ? 1 : QATTN_KEY_BLOCK) * storage_size(storage);
}

/* All value columns, panel by panel. */
QATTN_INLINE void tile_all_values(tile_task *task, tile_kind kind) {
    const char *panel = task->block.values;
    for (size_t column = 0, lanes; column < task->value_lanes; column += lanes) {
        lanes = panel_lanes(task->value_lanes - column);
        tile_panel(task, kind, panel, column, lanes);
        panel = panel_after(task, kind.storage, panel, lanes);
    }
}

#define TILE_VALUES(storage, rows)                                                                                     \
    TILE_INSTANCE(tile_values_##storage, rows)(tile_task * task) {                                                     \
        tile_all_values(task, (tile_kind){rows, storage, .masked = true, .streams = rows <= ASKING_TILE_ROWS});        \
    }
#define TILE_VALUES_OF(rows)                                                                                           \
    TILE_VALUES(QATTN_FLOAT32, rows)                                                                                   \
    TILE_VALUES(QATTN_FLOAT16, rows)                                                                                   \
    TILE_VALUES(QATTN_BFLOAT16, rows)
TILE_HEIGHTS(TILE_VALUES_OF)
#undef TILE_VALUES_OF
#undef TILE_VALUES

#endif
