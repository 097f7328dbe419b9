/* SPDX-License-Identifier: Apache-2.0 */
/* bands.inl.h - forward by tile instructions: five tiles of six rows, a band, meet a block at once, as twice fifteen rows
 * of the tile unit. The bits are those of the tiles. */
#ifndef QATTN_BANDS_INL_H
#define QATTN_BANDS_INL_H

#include "attention/integer_bands.inl.h"
#include "attention/pair_bands.inl.h"

/* Queries as the tile unit takes them, and the tiles of this thread, until end_bands. */
QATTN_INLINE void begin_bands(const qattn_forward_args *args, const forward_workspace *ws) {
    if (args->blocks.storage == QATTN_INT8) halve_queries(args, ws);
    else narrow_queries(ws);
    tile_unit_begin();
}

QATTN_INLINE void end_bands(void) { tile_unit_end(); }

/* One block against all bands that may see a key of it; each tile asks for `share` lines of `next`, the block to come. */
static __attribute__((noinline)) void QATTN_FUNCTION(bands)(tile_task *task, const qattn_forward_args *args,
                                                            forward_workspace *ws, size_t block_first,
                                                            prefetch_cursor *next, size_t share) {
    const bool integers = args->blocks.storage == QATTN_INT8;
    if (integers) lay_fours(ws, task->block, args->blocks.head_dim);
    for (size_t first = 0; first < ws->tiles; first += BAND_TILES) {
        const size_t end = qattn_min(first + BAND_TILES, ws->tiles), last = qattn_min(end * TILE_ROWS, ws->rows) - 1;
        prefetch_lines(next, (end - first) * share);
        prefetch_lines(&ws->upcoming, (end - first) * ws->upcoming_share);
        const run_keys keys = keys_of_run(&args->problem, ws->places[first * TILE_ROWS], ws->places[last]);
        if (!range_bits(keys.any, block_first)) continue;
        if (integers) QATTN_FUNCTION(integer_band)(task, args, ws, first, end, block_first);
        else QATTN_FUNCTION(pair_band)(task, args, ws, first, end, block_first);
    }
}

#endif
