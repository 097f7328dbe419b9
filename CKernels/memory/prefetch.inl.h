/* SPDX-License-Identifier: Apache-2.0 */
/* prefetch.inl.h - asking memory for rows before they are needed, a few cache lines at a time. */
#ifndef QATTN_PREFETCH_INL_H
#define QATTN_PREFETCH_INL_H

#include "isa/isa.h"
#include "tile/tile_size.h"

enum { CACHE_LINE = 64 };

/* Tensors to ask for, one after another, and where in them a prefetch stands. */
typedef struct prefetch_cursor {
    const qattn_upcoming_rows *tensors; /* those after `rows` */
    size_t count;                       /* of them */
    qattn_upcoming_rows rows;           /* what is left of the current tensor */
    size_t row_bytes_done;
} prefetch_cursor;

/* Rows without gaps between them are one long row. */
QATTN_INLINE qattn_upcoming_rows without_gaps(qattn_upcoming_rows rows) {
    if (!rows.base) rows.rows = 0;
    if (rows.rows && rows.stride_bytes == (ptrdiff_t)rows.row_bytes) {
        rows.row_bytes *= rows.rows;
        rows.rows = 1;
    }
    return rows;
}

QATTN_INLINE prefetch_cursor prefetch_begin(const qattn_upcoming_rows *tensors, size_t count) {
    return (prefetch_cursor){.tensors = tensors, .count = count};
}

QATTN_INLINE size_t prefetch_line_count(const qattn_upcoming_rows *tensors, size_t count) {
    size_t lines = 0;
    for (size_t n = 0; n < count; n++) {
        const qattn_upcoming_rows rows = without_gaps(tensors[n]);
        lines += rows.rows * ((rows.row_bytes + CACHE_LINE - 1) / CACHE_LINE);
    }
    return lines;
}

/* Asks for up to `lines` further lines, into L2: L1 belongs to the tile at work. */
QATTN_INLINE void prefetch_lines(prefetch_cursor *cursor, size_t lines) {
    while (lines) {
        if (!cursor->rows.rows) {
            if (!cursor->count) return;
            cursor->rows = without_gaps(*cursor->tensors++);
            cursor->count--;
            continue;
        }
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

/* A block's own later lines and then the next block's, for tiles so few that they wait for memory: as they read their
 * block from its first byte to its last, they ask for what they will read soon. Memory of Intel's CPUs with AVX-512 answers a
 * single run of reads at 0.8 of its rate: there they ask for the next block whole, a line of each of its quarters at a time. Float32,
 * one to four rows of an Emerald Rapids: 0.75, 0.60, 0.54 and 0.50 of the rate without asking, 0.8 in one run, 0.9 in four. */
typedef struct block_prefetch {
    const char *at, *end;          /* of the row that is asked for */
    qattn_upcoming_rows rows;      /* after it */
    qattn_upcoming_rows following; /* after those */
    ptrdiff_t distance;            /* bytes between the lines of a step, in quarters */
    bool in_quarters;
} block_prefetch;

enum {
    PREFETCH_LINES = 4, /* of a step */
    PREFETCH_STEP = PREFETCH_LINES * CACHE_LINE,
/* Tiles of up to so many rows can ask, in the functions of all steps; higher ones in functions of their own. */
#if defined(QATTN_TILE_UNIT)
    ASKING_TILE_ROWS = TILE_ROWS - 1
#else
    ASKING_TILE_ROWS = STREAMING_ROWS
#endif
};

/* Whether blocks are asked for in quarters: with tile instructions, which Intel's CPUs alone have, always; with AVX-512, which
 * others have, too, as the caller says (qattn_reading_of); else never. */
QATTN_INLINE bool asks_in_quarters(bool wanted) {
    (void)wanted;
#if defined(QATTN_TILE_UNIT)
    return true;
#elif defined(QATTN_AVX512)
    return wanted;
#else
    return false;
#endif
}

/* Rows of a call, up to which it asks. */
QATTN_INLINE size_t asking_rows(bool in_quarters) { return in_quarters ? 4 * TILE_ROWS : STREAMING_ROWS; }

/* Rows of which `distance` is the length, or the height, of a quarter: those of the first. */
QATTN_INLINE qattn_upcoming_rows first_quarter(qattn_upcoming_rows rows, ptrdiff_t *distance) {
    if (rows.rows == 1) {
        rows.row_bytes = rows.row_bytes / PREFETCH_LINES / CACHE_LINE * CACHE_LINE;
        *distance = (ptrdiff_t)rows.row_bytes;
    } else {
        rows.rows = (rows.rows + PREFETCH_LINES - 1) / PREFETCH_LINES;
        *distance = (ptrdiff_t)rows.rows * rows.stride_bytes;
    }
    return rows;
}

/* Goes on with the next row, of those at hand or of what follows. */
QATTN_INLINE void block_prefetch_next_row(block_prefetch *next) {
    if (!next->rows.rows) {
        next->rows = without_gaps(next->following);
        next->following.rows = 0;
        if (asks_in_quarters(next->in_quarters)) next->rows = first_quarter(next->rows, &next->distance);
        if (!next->rows.rows) return;
    }
    next->at = next->rows.base;
    next->end = next->at + next->rows.row_bytes;
    next->rows.base = next->at + next->rows.stride_bytes;
    next->rows.rows--;
}

/* So many bytes ahead, or 0: asks for nothing. */
QATTN_INLINE block_prefetch block_prefetch_begin(const char *block, const char *following, size_t bytes, size_t ahead,
                                                 bool in_quarters) {
    if (!ahead) return (block_prefetch){0};
    if (in_quarters) ahead = bytes;
    return (block_prefetch){.at = block + qattn_min(ahead, bytes),
                            .end = block + bytes,
                            .following = {following, 0, following ? 1 : 0, bytes},
                            .in_quarters = in_quarters};
}

/* Due whenever PREFETCH_STEP bytes of the block have been read. */
QATTN_INLINE void block_prefetch_step(block_prefetch *next) {
    if (next->at >= next->end) {
        if (!(next->rows.rows | next->following.rows)) return;
        block_prefetch_next_row(next);
    }
    const bool in_quarters = asks_in_quarters(next->in_quarters);
    const ptrdiff_t distance = in_quarters ? next->distance : CACHE_LINE;
    QATTN_UNROLL
    for (ptrdiff_t n = 0; n < PREFETCH_LINES; n++) __builtin_prefetch(next->at + n * distance, 0, 2);
    next->at += in_quarters ? CACHE_LINE : PREFETCH_STEP;
}

/* Whether a step is due with step n of a loop of which each reads so many bytes: a constant power of two of them. */
QATTN_INLINE bool block_prefetch_due(size_t n, size_t bytes) {
    const size_t every = PREFETCH_STEP / bytes;
    return n % (every < 1 ? 1 : every) == 0;
}

#endif
