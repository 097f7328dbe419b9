/* SPDX-License-Identifier: Apache-2.0 */
/* bands.inl.h - the beginning and the end of a call to forward whose rows meet blocks in bands. */
#ifndef QATTN_BANDS_INL_H
#define QATTN_BANDS_INL_H

#include "attention/integer_bands.inl.h"
#include "attention/pair_bands.inl.h"

/* Queries as the tile unit takes them, and the tiles of this thread, until end_bands. Tiles of few rows are faster. */
QATTN_INLINE void begin_bands(const qattn_forward_args *args, const forward_workspace *ws) {
    if (args->blocks.storage == QATTN_INT8) halve_queries(args, ws);
    tile_unit_begin(qattn_min(ws->rows, UNIT_ROWS));
}

QATTN_INLINE void end_bands(void) { tile_unit_end(); }

#endif
