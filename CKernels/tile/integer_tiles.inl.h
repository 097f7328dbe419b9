/* SPDX-License-Identifier: Apache-2.0 */
/* integer_tiles.inl.h - one tile of rows meets one block of int8 keys and values: steps 1 and 3 of forward.inl.h.
 *
 *     t[j] = (sum_d n[d] k[j][d]) * (scale of key j * step),   q'[d] = n[d] * step
 *     o[c] = o[c] a + (sum_j n[j] v[j][c]) * step,             p[j] * scale of value j = n[j] * step
 *
 * n are integers of 15 bits and a sign, the step a power of two: of a query once, of weights block by block. Sums of
 * products of integers are exact, and so the same in any order. Two products of 16 bits go into each sum at a time:
 * pairs of channels, pairs of keys. A key that a row does not see has n = 0: whatever integers are in memory, it adds
 * nothing. */
#ifndef QATTN_INTEGER_TILES_INL_H
#define QATTN_INTEGER_TILES_INL_H

#include "tile/values.inl.h"

enum {
    PAIR_BYTES = 2 * QATTN_LANES, /* of 16 keys, or 16 columns of values */
    STEP_PAIRS = PREFETCH_STEP / PAIR_BYTES,
    CHANNEL_PAIRS = QATTN_INTEGER_CHANNELS / 2,
    KEY_PAIRS = QATTN_KEY_BLOCK / 2
};

/* sum[i] += n[i] x of one pair. Row i's pairs begin i * row_bytes behind `pairs`. */
QATTN_INLINE void tile_pair(tile_kind kind, const char *pairs, size_t row_bytes, const char *packed,
                            i32x16 sum[TILE_ROWS]) {
    const i16x32 x = i8x32_widen(packed);
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) {
        int32_t pair;
        memcpy(&pair, pairs + i * row_bytes, sizeof pair);
        sum[i] += i16x32_dot_pairs(i16x32_splat_pair(pair), x);
    }
}

/* sum[i] of `count` pairs. */
QATTN_INLINE void tile_pairs(tile_task *task, tile_kind kind, const char *pairs, size_t row_bytes, const char *packed,
                             size_t count, i32x16 sum[TILE_ROWS]) {
    block_prefetch next = task->next;
    QATTN_UNROLL
    for (size_t i = 0; i < kind.rows; i++) sum[i] = (i32x16)0;
    for (size_t begin = 0; begin < count; begin += STEP_PAIRS) {
        block_prefetch_step(&next);
        /* More at a time, and the compiler adds up products before sums, and spills. */
        QATTN_UNROLL_2
        for (size_t p = begin; p < qattn_min(begin + STEP_PAIRS, count); p++)
            tile_pair(kind, pairs + p * sizeof(int32_t), row_bytes, packed + p * PAIR_BYTES, sum);
    }
    task->next = next;
}

/* The scales of a block's keys, or values, are one more step of what is read. */
QATTN_INLINE void tile_scales_read(tile_task *task) { block_prefetch_step(&task->next); }

/* The scores of 16 keys, from the sums of all channels; and o a + the sums of a block's values. */
QATTN_INLINE f32x16 integer_scores(f32x16 sum, f32x16 scales, float step) {
    return sum * (scales * f32x16_splat(step));
}

QATTN_INLINE void add_integer_values(float *out, float rescale, i32x16 sum, float step) {
    const f32x16 block = __builtin_convertvector(sum, f32x16) * f32x16_splat(step);
    f32x16_store(out, f32x16_fma(f32x16_load(out), f32x16_splat(rescale), block));
}

/* 1. Scores. Sums of 512 channels have room in 32 bits: 512 * 32767 * 127 < 2^31. */
QATTN_INLINE void tile_integer_scores(tile_task *task, tile_kind kind) {
    const size_t count = packed_channels(task->head_dim, QATTN_INT8) / 2;
    for (size_t v = 0; v < BLOCK_VECTORS; v++) {
        const char *const keys = task->block.keys + v * count * PAIR_BYTES;
        f32x16 t[TILE_ROWS];
        for (size_t begin = 0; begin < count; begin += CHANNEL_PAIRS) {
            i32x16 sum[TILE_ROWS];
            tile_pairs(task, kind, (const char *)task->queries + begin * sizeof(int32_t),
                       task->head_lanes * sizeof(float), keys + begin * PAIR_BYTES,
                       qattn_min(count - begin, CHANNEL_PAIRS), sum);
            QATTN_UNROLL
            for (size_t i = 0; i < kind.rows; i++) {
                const f32x16 channels = __builtin_convertvector(sum[i], f32x16);
                t[i] = begin ? t[i] + channels : channels;
            }
        }
        const f32x16 scales = f32x16_load(task->block.key_scales + v * QATTN_LANES);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++)
            f32x16_store(task->scratch->weights + i * QATTN_KEY_BLOCK + v * QATTN_LANES,
                         integer_scores(t[i], scales, task->query_steps[i]));
    }
    tile_scales_read(task);
}

/* A row's weights times the scales of the values, in place as integers; returns the step. The step of a row that sees
 * no key of the block is -0, so that its sum, 0, adds -0, which alone leaves every number as it is. */
QATTN_INLINE float quantise_weights(float *weights, const float *scales, uint64_t visible) {
    f32x16 w[BLOCK_VECTORS];
    u32x16 largest = {0};
    QATTN_UNROLL
    for (size_t v = 0; v < BLOCK_VECTORS; v++) {
        w[v] = f32x16_load(weights + v * QATTN_LANES) * f32x16_load(scales + v * QATTN_LANES);
        if (visible != ~UINT64_C(0)) /* what stands in the scales of unseen keys is not used */
            w[v] = f32x16_select((uint32_t)(visible >> v * QATTN_LANES) & 0xffff, w[v], f32x16_splat(0));
        largest = u32x16_larger_magnitude(largest, w[v]);
    }
    const integer_scale scale = integer_scale_of(__builtin_reduce_max(largest));
    QATTN_UNROLL
    for (size_t v = 0; v < BLOCK_VECTORS; v++)
        i16x16_store(weights + v * QATTN_LANES / 2, i16x16_quantised(w[v], scale.factor));
    return visible ? scale.step : -0.0f;
}

/* 3. Values: sums of 64 keys have room in 32 bits. */
QATTN_INLINE void tile_integer_values(tile_task *task, tile_kind kind) {
    float steps[TILE_ROWS];
    tile_scales_read(task);
    for (size_t i = 0; i < kind.rows; i++)
        steps[i] = quantise_weights(task->scratch->weights + i * QATTN_KEY_BLOCK, task->block.value_scales,
                                    task->scratch->visible[i]);
    for (size_t column = 0; column < task->value_lanes; column += QATTN_LANES) {
        i32x16 sum[TILE_ROWS];
        tile_pairs(task, kind, (const char *)task->scratch->weights, QATTN_KEY_BLOCK * sizeof(float),
                   task->block.values + column * QATTN_KEY_BLOCK, KEY_PAIRS, sum);
        QATTN_UNROLL
        for (size_t i = 0; i < kind.rows; i++)
            add_integer_values(task->out + i * task->value_lanes + column, task->scratch->rescale[row_lane(i)], sum[i],
                               steps[i]);
    }
}

#define TILE_INTEGERS(rows)                                                                                            \
    TILE_INSTANCE(tile_products_QATTN_INT8, rows)(tile_task * task) {                                                  \
        tile_integer_scores(task, (tile_kind){rows, QATTN_INT8, .streams = true});                                     \
    }                                                                                                                  \
    TILE_INSTANCE(tile_values_QATTN_INT8, rows)(tile_task * task) {                                                    \
        tile_integer_values(task, (tile_kind){rows, QATTN_INT8, .streams = true});                                     \
    }
TILE_HEIGHTS(TILE_INTEGERS)
#undef TILE_INTEGERS

#endif
