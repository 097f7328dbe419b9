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

/* Of bands, whose last one may have any number of rows, values that are not finite are summed by six rows at a time, too. */
static inline state_layout state_layout_take(forward_layout *layout, size_t tiles, size_t tile_rows) {
    const size_t rows = tiles * tile_rows, out_rows = rows + (tile_rows == UNIT_ROWS ? TILE_ROWS : 0);
    return (state_layout){.started = qattn_take(&layout->floats, rows), /* a byte each */
                          .maximum = qattn_take(&layout->floats, tiles * QATTN_LANES),
                          .sum = qattn_take(&layout->floats, rows * QATTN_LANES),
                          .out = qattn_take(&layout->floats, out_rows * layout->value_lanes)};
}

/* For so many tiles of TILE_ROWS, or of UNIT_ROWS in bands, whose scratch is not here. */
static inline forward_layout forward_layout_of(size_t head_dim, size_t value_dim, size_t tiles, size_t tile_rows) {
    const size_t rows = tiles * tile_rows;
    forward_layout layout = {.head_lanes = qattn_round_up(head_dim, QATTN_LANES),
                             .value_lanes = qattn_round_up(value_dim, QATTN_LANES)};
    layout.places = qattn_take(&layout.floats, rows * PLACE_FLOATS);
    layout.query_steps = qattn_take(&layout.floats, rows);
    layout.queries = qattn_take(&layout.floats, rows * layout.head_lanes);
    layout.scratch = qattn_take(&layout.floats, tile_rows == TILE_ROWS ? tiles * SCRATCH_FLOATS : 0);
    layout.chunk = state_layout_take(&layout, tiles, tile_rows);
    layout.state = state_layout_take(&layout, tiles, tile_rows);
    layout.totals = qattn_take(&layout.floats, tiles * TOTALS_FLOATS);
    /* A byte for each channel, up to whole rows of tiles, and column of the keys of a block. */
    layout.fours = qattn_take(&layout.floats, (qattn_round_up(head_dim, QATTN_KEY_BLOCK) + layout.value_lanes) *
                                                  (QATTN_KEY_BLOCK / sizeof(float)));
    return layout;
}

#endif
