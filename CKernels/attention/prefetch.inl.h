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

/* The next block of keys and values, for tiles so few that they wait for memory: they ask for it as fast as they read
 * their own. */
typedef struct block_prefetch {
    const char *at, *end; /* in the first stream */
    size_t stream_bytes;
} block_prefetch;

/* Lines that a step asks for, one in each of as many parts of the block: memory answers several pages at once faster
 * than one (8 streams read 1.4 times as fast as 1, and 1.1 times as fast as 4 or 16, on a Zen 4 server). */
enum { PREFETCH_STREAMS = 8, PREFETCH_STEP_BYTES = PREFETCH_STREAMS * CACHE_LINE };

/* block may be NULL. */
QATTN_INLINE block_prefetch block_prefetch_begin(const char *block, size_t bytes) {
    const size_t stream_bytes = qattn_round_up(bytes, PREFETCH_STEP_BYTES) / PREFETCH_STREAMS;
    return (block_prefetch){.at = block, .end = block ? block + stream_bytes : NULL, .stream_bytes = stream_bytes};
}

QATTN_INLINE void block_prefetch_step(block_prefetch *next) {
    if (next->at == next->end) return;
    QATTN_UNROLL
    for (size_t n = 0; n < PREFETCH_STREAMS; n++) __builtin_prefetch(next->at + n * next->stream_bytes, 0, 2);
    next->at += CACHE_LINE;
}

/* Whether a step is due with step n of a loop of which each reads so many bytes: a constant power of two of them. */
QATTN_INLINE bool block_prefetch_due(size_t n, size_t bytes) {
    const size_t every = PREFETCH_STEP_BYTES / bytes;
    return n % (every < 1 ? 1 : every) == 0;
}

#endif
