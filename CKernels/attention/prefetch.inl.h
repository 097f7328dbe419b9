/* SPDX-License-Identifier: Apache-2.0 */
/* prefetch.inl.h - asking memory for rows before they are needed, a few cache lines at a time. */
#ifndef QATTN_PREFETCH_INL_H
#define QATTN_PREFETCH_INL_H

#include "attention/tile_size.h"
#include "isa/isa.h"

enum { CACHE_LINE = 64 };

/* Where in its rows a prefetch stands. */
typedef struct prefetch_cursor {
    qattn_upcoming_rows rows;
    size_t row_bytes_done;
} prefetch_cursor;

QATTN_INLINE prefetch_cursor prefetch_begin(qattn_upcoming_rows rows) {
    if (!rows.base) rows.rows = 0;
    return (prefetch_cursor){.rows = rows};
}

QATTN_INLINE size_t prefetch_line_count(const prefetch_cursor *cursor) {
    return cursor->rows.rows * ((cursor->rows.row_bytes + CACHE_LINE - 1) / CACHE_LINE);
}

/* Asks for up to `lines` further lines, into L2: L1 belongs to the tile at work. */
QATTN_INLINE void prefetch_lines(prefetch_cursor *cursor, size_t lines) {
    while (lines && cursor->rows.rows) {
        const char *const at = (const char *)cursor->rows.base + cursor->row_bytes_done;
        const size_t left = (cursor->rows.row_bytes - cursor->row_bytes_done + CACHE_LINE - 1) / CACHE_LINE;
        const size_t count = qattn_min(lines, left);
        for (size_t line = 0; line < count; line++) __builtin_prefetch(at + line * CACHE_LINE, 0, 2);
        lines -= count;
        cursor->row_bytes_done += count * CACHE_LINE;
        if (count < left) return;
        cursor->row_bytes_done = 0;
        cursor->rows.rows--;
        cursor->rows.base = (const char *)cursor->rows.base + cursor->rows.stride_bytes;
    }
}

#endif
