/* SPDX-License-Identifier: Apache-2.0 */
/* band_rows.inl.h - which rows form bands: what tile instructions multiply at once. */
#ifndef QATTN_BAND_ROWS_INL_H
#define QATTN_BAND_ROWS_INL_H

#include "attention/rows.inl.h"

/* The tile behind the band that begins with tile `first`. */
QATTN_INLINE size_t band_end(const forward_workspace *ws, size_t first) {
    return qattn_min(first + BAND_TILES, ws->tiles);
}

/* The keys that some row of it may see. */
QATTN_INLINE key_range band_keys(const qattn_forward_args *args, const forward_workspace *ws, size_t first) {
    const size_t last = qattn_min(band_end(ws, first) * TILE_ROWS, ws->rows) - 1;
    return keys_of_run(&args->problem, ws->places[first * TILE_ROWS], ws->places[last]).any;
}

/* The first tile of the first band from tile `first` on that may see a key of the block, or ws->tiles. */
QATTN_INLINE size_t next_band(const qattn_forward_args *args, const forward_workspace *ws, size_t first,
                              size_t block_first) {
    for (; first < ws->tiles; first += BAND_TILES) {
        if (range_bits(band_keys(args, ws, first), block_first)) return first;
    }
    return ws->tiles;
}

#endif
