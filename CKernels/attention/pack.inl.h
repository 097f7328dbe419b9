/* SPDX-License-Identifier: Apache-2.0 */
/* pack.inl.h - keys and values of one head, laid out for the kernels and widened to float32.
 *
 *     packed_keys[block][d][j]  = keys[64 block + j][d]          a step over d meets 64 keys side by side
 *     packed_values[j][c]       = values[j][c], 0 for c >= value_dim
 *
 * Columns of keys past the end are 0 up to the next multiple of 16 and unwritten after it. */
#ifndef QATTN_PACK_INL_H
#define QATTN_PACK_INL_H

#include "attention/prefetch.inl.h"
#include "attention/tile_size.h"
#include "simd/half.h"

QATTN_INLINE void prefetch_tensor(const void *base, ptrdiff_t stride, size_t row, size_t rows, size_t dim,
                                  qattn_storage storage) {
    const size_t size = storage_size(storage);
    prefetch_cursor cursor = prefetch_begin((qattn_upcoming_rows){storage_at(base, (ptrdiff_t)row * stride, storage),
                                                                  stride * (ptrdiff_t)size, rows, dim * size});
    prefetch_lines(&cursor, SIZE_MAX);
}

/* packed[c][r] = key[r][c], for `columns` and `rows` of up to 16: a constant 16 for both leaves no test in the loops.
 */
QATTN_INLINE void pack_key_tile(const void *key, ptrdiff_t stride, size_t rows, size_t columns, float *packed,
                                qattn_storage storage) {
    f32x16 tile[QATTN_LANES];
    QATTN_UNROLL
    for (size_t r = 0; r < QATTN_LANES; r++)
        tile[r] = r < rows ? f32x16_load_first(storage_at(key, (ptrdiff_t)r * stride, storage), columns, storage)
                           : f32x16_splat(0);
    f32x16_transpose(tile);
    QATTN_UNROLL
    for (size_t c = 0; c < QATTN_LANES; c++) {
        if (c < columns) f32x16_store(packed + c * QATTN_KEY_BLOCK, tile[c]);
    }
}

/* A block of `count` keys. */
QATTN_INLINE void pack_key_block(const qattn_pack_args *args, const void *keys, size_t count, float *packed,
                                 qattn_storage storage) {
    for (size_t j = 0; j < count; j += QATTN_LANES) {
        const size_t rows = qattn_min(QATTN_LANES, count - j);
        for (size_t d = 0; d < args->head_dim; d += QATTN_LANES) {
            const size_t columns = qattn_min(QATTN_LANES, args->head_dim - d);
            const void *key = storage_at(keys, (ptrdiff_t)j * args->key_stride + (ptrdiff_t)d, storage);
            float *const out = packed + d * QATTN_KEY_BLOCK + j;
            if (rows == QATTN_LANES && columns == QATTN_LANES)
                pack_key_tile(key, args->key_stride, QATTN_LANES, QATTN_LANES, out, storage);
            else pack_key_tile(key, args->key_stride, rows, columns, out, storage);
        }
    }
}

QATTN_INLINE void pack_storage(const qattn_pack_args *args, qattn_storage storage) {
    const size_t value_lanes = qattn_round_up(args->value_dim, QATTN_LANES);
    for (size_t block = args->block_begin; block < args->block_end; block++) {
        const size_t first = block * QATTN_KEY_BLOCK;
        const size_t count = qattn_min(QATTN_KEY_BLOCK, args->seq_kv - first);
        /* Packing reads short pieces of many rows, which the hardware does not foresee. */
        if (block + 1 < args->block_end) {
            const size_t next = first + QATTN_KEY_BLOCK, rows = qattn_min(QATTN_KEY_BLOCK, args->seq_kv - next);
            prefetch_tensor(args->keys, args->key_stride, next, rows, args->head_dim, storage);
            prefetch_tensor(args->values, args->value_stride, next, rows, args->value_dim, storage);
        }
        pack_key_block(args, storage_at(args->keys, (ptrdiff_t)first * args->key_stride, storage), count,
                       args->packed_keys + first * args->head_dim, storage);
        for (size_t j = first; j < first + count; j++) {
            const void *value = storage_at(args->values, (ptrdiff_t)j * args->value_stride, storage);
            for (size_t c = 0; c < args->value_dim; c += QATTN_LANES)
                f32x16_store(args->packed_values + j * value_lanes + c,
                             f32x16_load_first(storage_at(value, (ptrdiff_t)c, storage), args->value_dim - c, storage));
        }
    }
}

static void QATTN_FUNCTION(pack)(const qattn_pack_args *args) {
    assert(args->block_end * QATTN_KEY_BLOCK < args->seq_kv + QATTN_KEY_BLOCK);
    switch (args->storage) {
    case QATTN_FLOAT32: pack_storage(args, QATTN_FLOAT32); break;
    case QATTN_FLOAT16: pack_storage(args, QATTN_FLOAT16); break;
    case QATTN_BFLOAT16: pack_storage(args, QATTN_BFLOAT16); break;
    }
}

#endif
