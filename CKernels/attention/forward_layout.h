/* SPDX-License-Identifier: Apache-2.0 */
/* forward_layout.h - how forward cuts its workspace. The one place that knows, for the kernels and for
 * qattn_forward_workspace. */
#ifndef QATTN_FORWARD_LAYOUT_H
#define QATTN_FORWARD_LAYOUT_H

#include "tile/tile_size.h"

enum {
    PLACE_FLOATS = 2 * sizeof(size_t) / sizeof(float),             /* of a row_place */
    TOTALS_FLOATS = 4 * QATTN_LANES,                               /* of a row_totals, one a tile */
    SCRATCH_FLOATS = TILE_ROWS * QATTN_KEY_BLOCK + 3 * QATTN_LANES /* of a tile_scratch, one a tile */
};

/* Where the parts begin, in floats: of a row_state, and of the workspace. */
typedef struct state_layout {
    size_t started, maximum, sum, out;
} state_layout;

typedef struct forward_layout {
    size_t head_lanes, value_lanes;
    size_t places, query_steps, queries, scratch, totals, fours;
    state_layout chunk, state;
    size_t floats;
} forward_layout;

static inline state_layout state_layout_take(forward_layout *layout, size_t tiles) {
    const size_t rows = tiles * TILE_ROWS;
    return (state_layout){.started = qattn_take(&layout->floats, rows), /* a byte each */
                          .maximum = qattn_take(&layout->floats, tiles * QATTN_LANES),
                          .sum = qattn_take(&layout->floats, rows * QATTN_LANES),
                          .out = qattn_take(&layout->floats, rows * layout->value_lanes)};
}

/* So many tiles, and those that fill up what tile instructions read and write of the last band: a half or all of it. */
static inline size_t band_tiles(size_t tiles) {
    const size_t half = (BAND_TILES + 1) / 2, whole = tiles / BAND_TILES * BAND_TILES, rest = tiles - whole;
    return whole + (rest == 0 ? 0 : rest < half ? half : BAND_TILES);
}

static inline forward_layout forward_layout_of(size_t head_dim, size_t value_dim, size_t tiles) {
    const size_t rows = tiles * TILE_ROWS;
    forward_layout layout = {.head_lanes = qattn_round_up(head_dim, QATTN_LANES),
                             .value_lanes = qattn_round_up(value_dim, QATTN_LANES)};
    layout.places = qattn_take(&layout.floats, rows * PLACE_FLOATS);
    layout.query_steps = qattn_take(&layout.floats, rows);
    layout.queries = qattn_take(&layout.floats, rows * layout.head_lanes);
    layout.scratch = qattn_take(&layout.floats, tiles * SCRATCH_FLOATS);
    layout.chunk = state_layout_take(&layout, tiles);
    layout.state = state_layout_take(&layout, tiles);
    layout.totals = qattn_take(&layout.floats, tiles * TOTALS_FLOATS);
    /* A byte for each channel, up to whole rows of tiles, and column of the keys of a block. */
    layout.fours = qattn_take(&layout.floats, (qattn_round_up(head_dim, QATTN_KEY_BLOCK) + layout.value_lanes) *
                                                  (QATTN_KEY_BLOCK / sizeof(float)));
    return layout;
}

#endif
