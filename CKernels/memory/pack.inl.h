/* SPDX-License-Identifier: Apache-2.0 */
/* pack.inl.h - rows of keys and values of one head, laid out for the kernels and rounded to the storage of its blocks.
 *
 *     keys[g][d][r]   = keys[64 block + 16 g + r][d]         a step over d meets 16 keys side by side
 *     values[p][j][c] = values[64 block + j][columns before p + c], 0 for columns from value_dim on
 *
 * int8: x = integer * scale, scale = max |x| / 127 over the row; NaN anywhere in it makes the scale NaN. Two channels
 * of a key, and two keys of a column of values, stand side by side:
 *
 *     keys[g][d / 2][r][d % 2] = keys[64 block + 16 g + r][d]         0 for channel head_dim, if that is odd
 *     values[c / 16][j / 2][c % 16][j % 2] = values[64 block + j][c]
 *
 * and of bfloat16 pairs too, whose channels are 0 up to a whole segment. */
#ifndef QATTN_PACK_INL_H
#define QATTN_PACK_INL_H

#include "memory/blocks.inl.h"
#include "memory/prefetch.inl.h"

/* Fewer keys than this are written element by element: transposing 16 would cost more. */
enum { SCATTERED_KEYS = 4 };

/* The part of a call that is packed into one aligned group of 16 keys of a block. */
typedef struct key_group {
    const char *keys[QATTN_LANES]; /* place 4 i + g: that of lane 4 g + i; the first one's where the call has none */
    size_t begin, end;             /* lanes of the group */
    char *packed;                  /* element 0 of lane 0 */
    float inverse_scales[QATTN_LANES];
} key_group;

QATTN_INLINE size_t place_of_lane(size_t lane) { return lane % 4 * 4 + lane / 4; }

/* Lanes [begin, end), the first of which is at `key`. */
QATTN_INLINE key_group begin_group(const char *key, ptrdiff_t step, size_t begin, size_t end, char *packed) {
    key_group group = {.begin = begin, .end = end, .packed = packed};
    QATTN_UNROLL
    for (size_t lane = 0; lane < QATTN_LANES; lane++) {
        const bool inside = lane >= begin && lane < end;
        group.keys[place_of_lane(lane)] = inside ? key + (ptrdiff_t)(lane - begin) * step : key;
    }
    return group;
}

/* Rows come from memory in one of two ways. Rows one behind the other, read from the first byte to the last, are what
 * hardware prefetches by itself; but transpositions and panels read short pieces of many rows, so those are touched in
 * order first. */
QATTN_NOINLINE void QATTN_FUNCTION(touch)(const char *bytes, size_t count) {
    for (size_t byte = 0; byte < count; byte += CACHE_LINE) (void)*(const volatile char *)(bytes + byte);
}

enum { PAGE_AHEAD = 4096 /* bytes */ };

/* The same from memory, with prefetches across page boundaries. */
QATTN_NOINLINE void QATTN_FUNCTION(touch_far)(const char *bytes, size_t count) {
    for (size_t byte = 0; byte < count; byte += PREFETCH_STEP) __builtin_prefetch(bytes + byte + PAGE_AHEAD, 0, 2);
    QATTN_FUNCTION(touch)(bytes, count);
}

/* Rows with gaps between them are asked for a block ahead. */
QATTN_INLINE void prefetch_tensor(const void *base, ptrdiff_t stride, size_t row, size_t rows, size_t dim,
                                  qattn_storage storage) {
    if (stride == (ptrdiff_t)dim) return;
    const size_t size = storage_size(storage);
    const qattn_upcoming_rows tensor = {storage_at(base, (ptrdiff_t)row * stride, storage), stride * (ptrdiff_t)size,
                                        rows, dim * size};
    prefetch_cursor cursor = prefetch_begin(&tensor, 1);
    prefetch_lines(&cursor, SIZE_MAX);
}

/* What is to be kept of x: all of it, or what int8 and bfloat16 pairs round it to. */
QATTN_INLINE f32x16 packable(f32x16 x, f32x16 inverse_scale, qattn_storage to) {
    if (to == QATTN_BFLOAT16_PAIRS) return bf16x16_factor(x);
    return to == QATTN_INT8 ? int8x16_quantised(x, inverse_scale) : x;
}

/* The same of elements [0, count) of a row: 0 behind them. */
QATTN_INLINE f32x16 load_packable(const void *x, size_t count, float inverse_scale, qattn_storage from,
                                  qattn_storage to) {
    return packable(f32x16_load_first(x, count, from), f32x16_splat(inverse_scale), to);
}

/* 1 / scale of a row for int8, and the scale. */
QATTN_INLINE float row_scale(const void *x, size_t dim, qattn_storage from, float *scale) {
    u32x16 largest = {0};
    for (size_t d = 0; d < dim; d += QATTN_LANES) {
        const f32x16 lanes = f32x16_load_first(storage_at(x, (ptrdiff_t)d, from), dim - d, from);
        largest = u32x16_larger_magnitude(largest, lanes);
    }
    const uint32_t bits = __builtin_reduce_max(largest);
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    *scale = magnitude / 127;
    return 127 / magnitude;
}

/* The same of `count` rows. */
QATTN_INLINE void row_scales(const char *rows, ptrdiff_t step, size_t count, size_t dim, qattn_storage from,
                             float *scales, float *inverse_scales) {
    for (size_t r = 0; r < count; r++, rows += step) inverse_scales[r] = row_scale(rows, dim, from, scales + r);
}

/* packed[d + c][r] = key[r][c] of 16 keys and four channels, of which `count` are there: in pairs of all lanes, else of
 * those that the group has. Four keys' channels are loaded side by side, which leaves the quarters to transpose. */
QATTN_INLINE void pack_channels(const key_group *group, const char *const keys[QATTN_LANES], size_t c, size_t d,
                                size_t count, qattn_storage from, qattn_storage to) {
    f32x16 x[4];
    QATTN_UNROLL
    for (size_t i = 0; i < 4; i++) x[i] = f32x16_load_fours(keys + 4 * i, c, from);
    f32x16_transpose_quarters(x);
    char *const packed = group->packed + d * QATTN_LANES * storage_size(to);
    if (in_pairs(to)) {
        const f32x16 inverse_scales = f32x16_load(group->inverse_scales);
        QATTN_UNROLL
        for (size_t n = 0; n < 4; n += 2) {
            if (n >= count) continue;
            char *const pairs = packed + n * QATTN_LANES * storage_size(to);
            const f32x16 first = packable(x[n], inverse_scales, to), second = packable(x[n + 1], inverse_scales, to);
            if (to == QATTN_INT8) i8x32_store_pairs(pairs, first, second);
            else bf16x32_store_pairs(pairs, first, second);
        }
        return;
    }
    const uint32_t lanes = (1u << group->end) - (1u << group->begin);
    QATTN_UNROLL
    for (size_t n = 0; n < 4; n++) {
        if (n >= count) continue;
        char *const at = packed + n * QATTN_LANES * storage_size(to);
        if (lanes == 0xffff) f32x16_store_storage(at, x[n], to);
        else f32x16_store_selected(at, lanes, x[n], to);
    }
}

/* Channels [d, d + 8) of 16 keys of bfloat16 as pairs of factors: four words of two channels each. */
QATTN_INLINE void pack_channel_pairs(const key_group *group, size_t d) {
    f32x16 x[4];
    QATTN_UNROLL
    for (size_t i = 0; i < 4; i++) x[i] = f32x16_load_fours(group->keys + 4 * i, d / 2, QATTN_FLOAT32);
    f32x16_transpose_quarters(x);
    QATTN_UNROLL
    for (size_t n = 0; n < 4; n++) {
        const u16x32 factors = bf16x32_factors_of((u16x32)x[n]);
        memcpy(group->packed + (d + 2 * n) * QATTN_LANES * 2, &factors, sizeof factors);
    }
}

/* The same, key by key. */
QATTN_INLINE void scatter_keys(const key_group *group, size_t head_dim, qattn_storage from, qattn_storage to) {
    const size_t size = storage_size(to), side_by_side = in_pairs(to) ? 2 : 1;
    for (size_t r = group->begin; r < group->end; r++) {
        const char *const key = group->keys[place_of_lane(r)];
        for (size_t d = 0; d < head_dim; d += QATTN_LANES) {
            const size_t columns = qattn_min(QATTN_LANES, head_dim - d);
            char lanes[QATTN_LANES * sizeof(float)];
            f32x16_store_storage(
                lanes, load_packable(storage_at(key, (ptrdiff_t)d, from), columns, group->inverse_scales[r], from, to),
                to);
            for (size_t c = 0; c < qattn_round_up(columns, side_by_side); c += side_by_side)
                memcpy(group->packed + ((d + c) * QATTN_LANES + r * side_by_side) * size, lanes + c * size,
                       side_by_side * size);
        }
    }
}

QATTN_INLINE void pack_keys(const key_group *group, size_t head_dim, qattn_storage from, qattn_storage to) {
    const bool all_lanes = group->end - group->begin == QATTN_LANES;
    if (to == QATTN_BFLOAT16_PAIRS && group->begin == 0) {
        const size_t written = qattn_round_up(head_dim, 2), channels = packed_channels(head_dim, to);
        memset(group->packed + written * QATTN_LANES * 2, 0, (channels - written) * QATTN_LANES * 2);
    }
    if (group->end - group->begin < SCATTERED_KEYS || (in_pairs(to) && !all_lanes)) {
        scatter_keys(group, head_dim, from, to);
        return;
    }
    size_t d = 0;
    for (; from == QATTN_BFLOAT16 && to == QATTN_BFLOAT16_PAIRS && d + 8 <= head_dim; d += 8)
        pack_channel_pairs(group, d);
    for (; d + 4 <= head_dim; d += 4) pack_channels(group, group->keys, d, d, 4, from, to);
    if (d == head_dim) return;
    /* Nothing past the end of a key is read: its last channels, and 0 behind them. */
    float last[QATTN_LANES][4] = {0};
    const char *keys[QATTN_LANES];
    for (size_t n = 0; n < QATTN_LANES; n++) {
        memcpy(last[n], storage_at(group->keys[n], (ptrdiff_t)d, from), (head_dim - d) * storage_size(from));
        keys[n] = (const char *)last[n];
    }
    pack_channels(group, keys, 0, d, head_dim - d, from, to);
}

/* Whether a value of a block of bfloat16 pairs is not finite. */
QATTN_INLINE bool some_value_is_not_finite(block_parts block) {
    u32x16 largest = {0};
    for (const char *pairs = block.values; pairs < (const char *)not_finite(block); pairs += 4 * QATTN_LANES) {
        largest = u32x16_larger_magnitude(largest, bf16x32_widen_half(pairs, false));
        largest = u32x16_larger_magnitude(largest, bf16x32_widen_half(pairs, true));
    }
    return __builtin_reduce_max(largest) >= 0x7f800000u;
}

/* Values j and j + 1 of a block, whole vectors of columns of bfloat16, as pairs of factors; the larger magnitudes, as bits. */
QATTN_INLINE u16x32 pack_value_pairs(const char *value, ptrdiff_t step, size_t columns, char *pairs, u16x32 largest) {
    for (size_t c = 0; c + QATTN_LANES <= columns; c += QATTN_LANES) {
        const u32x16 first = __builtin_convertvector(*(const u16x16_unaligned *)(value + 2 * c), u32x16);
        const u32x16 second = __builtin_convertvector(*(const u16x16_unaligned *)(value + step + 2 * c), u32x16);
        const u16x32 factors = bf16x32_factors_of((u16x32)(first | second << 16));
        memcpy(pairs + c * QATTN_KEY_BLOCK * 2, &factors, sizeof factors);
        largest = __builtin_elementwise_max(largest, factors & 0x7fff);
    }
    return largest;
}

/* Values [begin, end) of a block, at most 16, the first of which is at `value`: panel by panel. */
QATTN_INLINE void pack_values(const char *value, ptrdiff_t step, size_t value_dim, block_parts block, size_t begin,
                              size_t end, const float *inverse_scales, qattn_storage from, qattn_storage to) {
    const size_t value_lanes = qattn_round_up(value_dim, QATTN_LANES), size = storage_size(to);
    char *values = block.values;
    u32x16 largest = {0};
    if (from == QATTN_BFLOAT16 && to == QATTN_BFLOAT16_PAIRS && value_dim == value_lanes && begin % 2 == 0) {
        u16x32 largest_pair = {0};
        for (; begin + 2 <= end; begin += 2, inverse_scales += 2, value += 2 * step)
            largest_pair = pack_value_pairs(value, step, value_dim, values + begin * 2 * QATTN_LANES, largest_pair);
        *not_finite(block) |= __builtin_reduce_max(largest_pair) >= 0x7f80;
    }
    for (size_t column = 0; column < value_lanes && begin < end;) {
        const size_t lanes = in_pairs(to) ? QATTN_LANES : panel_lanes(value_lanes - column);
        const char *from_row = value + column * storage_size(from);
        for (size_t j = begin; j < end; j++, from_row += step) {
            for (size_t c = 0; c < lanes; c += QATTN_LANES) {
                const f32x16 x = load_packable(storage_at(from_row, (ptrdiff_t)c, from), value_dim - column - c,
                                               inverse_scales[j - begin], from, to);
                if (to == QATTN_INT8) i8x32_store_half(values + j / 2 * 2 * QATTN_LANES, j % 2, x);
                else if (to == QATTN_BFLOAT16_PAIRS) {
                    bf16x32_store_half(values + j / 2 * 4 * QATTN_LANES, j % 2, x);
                    largest = u32x16_larger_magnitude(largest, x);
                } else f32x16_store_storage(values + (j * lanes + c) * size, x, to);
            }
        }
        column += lanes;
        values += lanes * QATTN_KEY_BLOCK * size;
    }
    if (to == QATTN_BFLOAT16_PAIRS) *not_finite(block) |= __builtin_reduce_max(largest) >= 0x7f800000u;
}

/* Keys [begin, end) of one block, which are rows from `row` on of the call. */
QATTN_INLINE void pack_block(const qattn_pack_args *args, block_parts block, size_t begin, size_t end, size_t row,
                             qattn_storage key_from, qattn_storage value_from, qattn_storage to) {
    const size_t head_dim = args->blocks.head_dim, value_dim = args->blocks.value_dim;
    const char *key = storage_at(args->keys, (ptrdiff_t)row * args->key_stride, key_from);
    const char *value = storage_at(args->values, (ptrdiff_t)row * args->value_stride, value_from);
    const ptrdiff_t key_step = args->key_stride * (ptrdiff_t)storage_size(key_from);
    const ptrdiff_t value_step = args->value_stride * (ptrdiff_t)storage_size(value_from);
    if (to == QATTN_BFLOAT16_PAIRS && begin == 0) {
        if (end < QATTN_KEY_BLOCK) memset(block.keys, 0, (size_t)((char *)not_finite(block) - block.keys));
        memset(not_finite(block), 0, QATTN_ALIGNMENT);
    }
    for (size_t j = begin; j < end;) {
        const size_t first = j / QATTN_LANES * QATTN_LANES, group_end = qattn_min(end, first + QATTN_LANES);
        const size_t count = group_end - j;
        key_group group = begin_group(key, key_step, j - first, group_end - first,
                                      block.keys + first * packed_channels(head_dim, to) * storage_size(to));
        float *const inverse_scales = group.inverse_scales + group.begin;
        if (to == QATTN_INT8)
            row_scales(key, key_step, count, head_dim, key_from, block.key_scales + j, inverse_scales);
        if (args->key_stride == (ptrdiff_t)head_dim)
            QATTN_FUNCTION(touch)(key, count * head_dim * storage_size(key_from));
        pack_keys(&group, head_dim, key_from, to);
        if (to == QATTN_INT8)
            row_scales(value, value_step, count, value_dim, value_from, block.value_scales + j, inverse_scales);
        if (value_dim > panel_lanes(value_dim) && args->value_stride == (ptrdiff_t)value_dim)
            QATTN_FUNCTION(touch)(value, count * value_dim * storage_size(value_from));
        pack_values(value, value_step, value_dim, block, j, group_end, inverse_scales, value_from, to);
        key += (ptrdiff_t)count * key_step;
        value += (ptrdiff_t)count * value_step;
        j = group_end;
    }
    /* Values that were packed before may have made way: what a full block says is of its own values alone. */
    if (to == QATTN_BFLOAT16_PAIRS && begin && end == QATTN_KEY_BLOCK && *not_finite(block))
        *not_finite(block) = some_value_is_not_finite(block);
}

QATTN_INLINE void pack_rows(const qattn_pack_args *args, qattn_storage key_from, qattn_storage value_from,
                            qattn_storage to) {
    const size_t head_dim = args->blocks.head_dim, value_dim = args->blocks.value_dim;
    const size_t bytes = qattn_block_bytes(to, head_dim, value_dim);
    for (size_t key = args->key_begin; key < args->key_end;) {
        const size_t block = key / QATTN_KEY_BLOCK, first = block * QATTN_KEY_BLOCK;
        const size_t end = qattn_min(args->key_end, first + QATTN_KEY_BLOCK);
        if (end < args->key_end) {
            const size_t next = end - args->key_begin, rows = qattn_min(QATTN_KEY_BLOCK, args->key_end - end);
            prefetch_tensor(args->keys, args->key_stride, next, rows, head_dim, key_from);
            prefetch_tensor(args->values, args->value_stride, next, rows, value_dim, value_from);
        }
        pack_block(args, block_cut(&args->blocks, block_at(&args->blocks, block, bytes), to), key - first, end - first,
                   key - args->key_begin, key_from, value_from, to);
        key = end;
    }
}

/* What a forward pass packs to bfloat16 pairs is of one type, or prepared keys beside values of another. */
QATTN_INLINE void pack_pairs(const qattn_pack_args *args) {
    const qattn_storage keys = args->key_storage, values = args->value_storage, to = QATTN_BFLOAT16_PAIRS;
    if (keys == QATTN_BFLOAT16 && values == QATTN_BFLOAT16) pack_rows(args, QATTN_BFLOAT16, QATTN_BFLOAT16, to);
    else if (keys == QATTN_FLOAT32 && values == QATTN_FLOAT32) pack_rows(args, QATTN_FLOAT32, QATTN_FLOAT32, to);
    else pack_rows(args, keys, values, to);
}

static void QATTN_FUNCTION(pack)(const qattn_pack_args *args) {
    const qattn_storage keys = args->key_storage, values = args->value_storage, to = args->blocks.storage;
    assert(keys != QATTN_INT8 && values != QATTN_INT8);
    /* A cache is packed once and read for ever: the types of its input may be looked up as it goes. So may those of
     * prepared keys beside 16-bit values. */
    if (to != QATTN_FLOAT32) {
        switch (to) {
        case QATTN_FLOAT16: pack_rows(args, keys, values, QATTN_FLOAT16); break;
        case QATTN_BFLOAT16: pack_rows(args, keys, values, QATTN_BFLOAT16); break;
        case QATTN_BFLOAT16_PAIRS: pack_pairs(args); break;
        default: pack_rows(args, keys, values, QATTN_INT8); break;
        }
    } else if (keys != values) pack_rows(args, keys, values, QATTN_FLOAT32);
    else if (keys == QATTN_FLOAT32) pack_rows(args, QATTN_FLOAT32, QATTN_FLOAT32, QATTN_FLOAT32);
    else if (keys == QATTN_FLOAT16) pack_rows(args, QATTN_FLOAT16, QATTN_FLOAT16, QATTN_FLOAT32);
    else pack_rows(args, QATTN_BFLOAT16, QATTN_BFLOAT16, QATTN_FLOAT32);
}

#endif
