/* SPDX-License-Identifier: Apache-2.0 */
/* blocks.inl.h - where the parts of a block of packed keys and values are; CKernels.h describes them. */
#ifndef QATTN_BLOCKS_INL_H
#define QATTN_BLOCKS_INL_H

#include "simd/storage.h"
#include "tile/tile_size.h"

/* One block. The scales are of QATTN_INT8 alone. */
typedef struct block_parts {
    char *keys;   /* [4][head_dim][16]; in pairs [4][pairs of channels][16][2] */
    char *values; /* [panels][64][panel_lanes]; in pairs [value_lanes / 16][32][16][2] */
    float *key_scales, *value_scales;
} block_parts;

/* Of QATTN_BFLOAT16_PAIRS, in the place of the scales: not 0 if a value is not finite. */
QATTN_INLINE uint32_t *not_finite(block_parts block) { return (uint32_t *)block.key_scales; }

/* Whether elements stand in pairs: channels of a key, keys of a column of values. */
QATTN_INLINE bool in_pairs(qattn_storage storage) { return storage == QATTN_INT8 || storage == QATTN_BFLOAT16_PAIRS; }

/* Columns of the panel that begins a row's last `lanes` value columns. Five vectors make 3 + 2, not 4 + 1: a panel of
 * one has too few independent sums to fill the pipeline. */
QATTN_INLINE size_t panel_lanes(size_t lanes) {
    return lanes == 5 * QATTN_LANES ? 3 * QATTN_LANES : qattn_min(lanes, 4 * QATTN_LANES);
}

/* Channels of a packed key. */
QATTN_INLINE size_t packed_channels(size_t head_dim, qattn_storage storage) {
    return head_dim + qattn_channel_padding(head_dim, storage);
}

/* Block `index`, whose length is `bytes` = qattn_block_bytes(). */
QATTN_INLINE char *block_at(const qattn_blocks *blocks, size_t index, size_t bytes) {
    return blocks->table ? blocks->table[index] : (char *)blocks->base + index * bytes;
}

QATTN_INLINE block_parts block_cut(const qattn_blocks *blocks, char *block, qattn_storage storage) {
    const size_t size = storage_size(storage) * QATTN_KEY_BLOCK;
    block_parts parts = {.keys = block, .values = block + packed_channels(blocks->head_dim, storage) * size};
    parts.key_scales = (float *)(parts.values + qattn_round_up(blocks->value_dim, QATTN_LANES) * size);
    parts.value_scales = parts.key_scales + QATTN_KEY_BLOCK;
    return parts;
}

#endif
