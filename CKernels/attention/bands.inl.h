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
    tile_unit_begin(UNIT_ROWS);
}

QATTN_INLINE void end_bands(void) { tile_unit_end(); }

#endif
