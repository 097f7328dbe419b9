/* SPDX-License-Identifier: Apache-2.0 */
/* gradient_layout.h - how backward cuts its workspace: into panels of rows and groups of blocks of keys. The one place
 * that knows, for the kernels and for qattn_backward_workspace. */
#ifndef QATTN_GRADIENT_LAYOUT_H
#define QATTN_GRADIENT_LAYOUT_H

#include "tile/tile_size.h"

enum {
    GRADIENT_PANEL = 192, /* rows, at most */
    GRADIENT_GROUP = 8,   /* blocks of keys, at most */
    /* What is taken, unless the smallest panel and group need more. CPUs with tile instructions have 2 MiB of L2, others
     * from 512 KiB on. With 1 MiB instead of 600 KiB 4096 d 128 causal gains 4 %, 1024 d 256 10 %. */
    GRADIENT_BYTES = 600 << 10,
    GRADIENT_BYTES_OF_TILE_UNIT = 1 << 20,
    GRADIENT_ROW_FLOATS = 12, /* of a gradient_row */
    VISIBLE_FLOATS = sizeof(uint64_t) / sizeof(float),
    PANEL_BLOCKS = GRADIENT_PANEL / QATTN_KEY_BLOCK,
    FACTOR_MATRICES = 3, /* of a block of rows and one of keys: p and w by keys, w by rows */
    SUM_BLOCK_ROWS = (QATTN_KEY_BLOCK + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS /* a block in tiles of rows */
};

/* Sizes, and where the parts begin, in floats. Rows of queries and of output gradients stand in tiles of six; where
 * they cannot be read in place, there are copies as rows of floats, of keys too. Products of bfloat16 have rows of factors
 * in the place of tiles, and pairs of rows in that of copies. */
typedef struct gradient_layout {
    size_t head_lanes, value_lanes;
    size_t panel, group; /* rows, blocks */
    size_t query_tiles, gradient_tiles, query_rows, gradient_rows, weights, products, numbers, visible; /* of a panel */
    size_t keys, values, key_rows;                                                                      /* of a group */
    size_t factors, query_sums, key_sums, value_sums; /* of products of bfloat16, the last two of a group */
    size_t floats;
} gradient_layout;

/* The parts of a panel of so many rows in whole tiles; `copies` rows of floats are what its rows take beside their tiles. */
static inline void qattn_take_panel(gradient_layout *layout, size_t rows, size_t copies) {
    layout->query_tiles = qattn_take(&layout->floats, rows * layout->head_lanes);
    layout->gradient_tiles = qattn_take(&layout->floats, rows * layout->value_lanes);
    layout->query_rows = qattn_take(&layout->floats, copies * layout->head_lanes);
    layout->gradient_rows = qattn_take(&layout->floats, copies * layout->value_lanes);
    layout->weights = qattn_take(&layout->floats, rows * QATTN_KEY_BLOCK);
    layout->products = qattn_take(&layout->floats, rows * QATTN_KEY_BLOCK);
    layout->numbers = qattn_take(&layout->floats, rows * GRADIENT_ROW_FLOATS);
    layout->visible = qattn_take(&layout->floats, rows * VISIBLE_FLOATS);
}

/* For a panel of so many rows and a group of so many blocks. */
static inline gradient_layout gradient_layout_of(size_t head_dim, size_t value_dim, bool in_place, size_t panel,
                                                 size_t group) {
    const size_t keys = group * QATTN_KEY_BLOCK;
    gradient_layout layout = {.head_lanes = qattn_round_up(head_dim, QATTN_LANES),
                              .value_lanes = qattn_round_up(value_dim, QATTN_LANES),
                              .panel = panel,
                              .group = group};
    qattn_take_panel(&layout, qattn_round_up(panel, TILE_ROWS), in_place ? 0 : panel);
    layout.keys = qattn_take(&layout.floats, keys * head_dim);
    layout.values = qattn_take(&layout.floats, keys * value_dim);
    layout.key_rows = qattn_take(&layout.floats, in_place ? 0 : keys * layout.head_lanes);
    return layout;
}

/* The largest panel beside which two blocks have room in so many bytes, and as many blocks as have room beside it. */
static inline gradient_layout gradient_layout_for(size_t head_dim, size_t value_dim, bool in_place, size_t bytes) {
    const size_t floats = bytes / sizeof(float);
    size_t panel = GRADIENT_PANEL, group = GRADIENT_GROUP;
    while (panel > QATTN_KEY_BLOCK && gradient_layout_of(head_dim, value_dim, in_place, panel, 2).floats > floats)
        panel -= QATTN_KEY_BLOCK;
    while (group > 1 && gradient_layout_of(head_dim, value_dim, in_place, panel, group).floats > floats) group--;
    return gradient_layout_of(head_dim, value_dim, in_place, panel, group);
}

/* The same of products of bfloat16, for a panel of one block of rows. Factors have room for a float each: sets without tile
 * instructions multiply those. */
static inline gradient_layout pair_gradient_layout_of(size_t head_dim, size_t value_dim, size_t group) {
    const size_t rows = SUM_BLOCK_ROWS;
    gradient_layout layout = {.head_lanes = qattn_round_up(head_dim, QATTN_PAIR_SEGMENT),
                              .value_lanes = qattn_round_up(value_dim, QATTN_PAIR_SEGMENT),
                              .panel = QATTN_KEY_BLOCK,
                              .group = group};
    qattn_take_panel(&layout, rows, QATTN_KEY_BLOCK / 2);
    layout.factors = qattn_take(&layout.floats, FACTOR_MATRICES * QATTN_KEY_BLOCK * QATTN_KEY_BLOCK / 2);
    layout.keys =
        qattn_take(&layout.floats, group * qattn_block_bytes(QATTN_BFLOAT16_PAIRS, head_dim, head_dim) / sizeof(float));
    layout.values =
        qattn_take(&layout.floats, group * qattn_block_bytes(QATTN_BFLOAT16_PAIRS, value_dim, 0) / sizeof(float));
    layout.query_sums = qattn_take(&layout.floats, rows * layout.head_lanes);
    layout.key_sums = qattn_take(&layout.floats, group * rows * layout.head_lanes);
    layout.value_sums = qattn_take(&layout.floats, group * rows * layout.value_lanes);
    return layout;
}

/* As many blocks as have room in so many bytes, or one. */
static inline gradient_layout pair_gradient_layout_for(size_t head_dim, size_t value_dim, size_t bytes) {
    size_t group = GRADIENT_GROUP;
    while (group > 1 && pair_gradient_layout_of(head_dim, value_dim, group).floats > bytes / sizeof(float)) group--;
    return pair_gradient_layout_of(head_dim, value_dim, group);
}

#endif
