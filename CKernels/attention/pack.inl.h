/* SPDX-License-Identifier: Apache-2.0 */
/* pack.inl.h - keys and values of one head, laid out for the kernels and widened to float32.
 *
 *     packed_keys[block][d][j]  = keys[64 block + j][d]          a step over d meets 64 keys side by side
 *     packed_values[j][c]       = values[j][c], 0 for c >= value_dim
 *
 * Columns of keys past the end are 0 up to the next multiple of 16 and unwritten after it. */
#ifndef QATTN_PACK_INL_H
#define QATTN_PACK_INL_H

#include "attention/tile_size.h"
#include "simd/half.h"

/* A block of `count` keys, transposed 16 x 16. */
QATTN_INLINE void pack_key_block(const qattn_pack_args *args, const void *keys, size_t count, float *packed,
                                 qattn_storage storage) {
    for (size_t j = 0; j < count; j += QATTN_LANES) {
        for (size_t d = 0; d < args->head_dim; d += QATTN_LANES) {
            const size_t columns = qattn_min(QATTN_LANES, args->head_dim - d);
            f32x16 tile[QATTN_LANES];
            QATTN_UNROLL for (size_t r = 0; r < QATTN_LANES; r++) {
                tile[r] = f32x16_splat(0);
                if (j + r < count)
                    tile[r] = f32x16_load_first(
                        storage_at(keys, (ptrdiff_t)(j + r) * args->key_stride + (ptrdiff_t)d, storage), columns,
                        storage);
            }
            f32x16_transpose(tile);
            float *out = packed + d * QATTN_KEY_BLOCK + j;
            if (columns == QATTN_LANES) {
                QATTN_UNROLL for (size_t r = 0; r < QATTN_LANES; r++) f32x16_store(out + r * QATTN_KEY_BLOCK, tile[r]);
            } else {
                for (size_t r = 0; r < columns; r++) f32x16_store(out + r * QATTN_KEY_BLOCK, tile[r]);
            }
        }
    }
}

QATTN_INLINE void pack_storage(const qattn_pack_args *args, qattn_storage storage) {
    const size_t value_lanes = qattn_round_up(args->value_dim, QATTN_LANES);
    for (size_t block = args->block_begin; block < args->block_end; block++) {
        const size_t first = block * QATTN_KEY_BLOCK;
        const size_t count = qattn_min(QATTN_KEY_BLOCK, args->seq_kv - first);
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
