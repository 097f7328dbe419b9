/* SPDX-License-Identifier: Apache-2.0 */
/* mask.inl.h - which keys of a block a row sees, as 64 bits: bit j for key j of the block.
 *
 * Causal masks, windows and key lengths are ranges of keys; boolean masks and additive biases take bits away (a bias of
 * -inf masks its key). Everything after this file knows nothing but the bits. */
#ifndef QATTN_MASK_INL_H
#define QATTN_MASK_INL_H

#include "simd/vector.h"
#include "tile/tile_size.h"

/* A row of a call: one query of one head. */
typedef struct row_place {
    size_t head, query;
} row_place;

QATTN_INLINE ptrdiff_t row_offset(qattn_strides strides, row_place row) {
    return (ptrdiff_t)row.head * strides.head + (ptrdiff_t)row.query * strides.query;
}

/* What offsets of a query's keys count from. */
QATTN_INLINE ptrdiff_t query_place(const qattn_problem *problem, size_t query) {
    return problem->places ? problem->places[query] : (ptrdiff_t)query;
}

/* The keys [first, last) that a query may see by its range alone; empty ranges have last <= first. */
typedef struct key_range {
    ptrdiff_t first, last;
} key_range;

QATTN_INLINE key_range query_keys(const qattn_problem *problem, size_t query) {
    const ptrdiff_t place = query_place(problem, query);
    const ptrdiff_t first = place + problem->first_key_offset, last = place + problem->last_key_offset;
    const ptrdiff_t seq_kv = (ptrdiff_t)problem->seq_kv;
    return (key_range){first < 0 ? 0 : first, last < seq_kv ? last : seq_kv};
}

/* What a run of rows may see, from `first` to `last`: some of them (any), and every one (all). Both ends of a query's
 * range move right with the query, unless queries have places. */
typedef struct run_keys {
    key_range any, all;
} run_keys;

QATTN_INLINE run_keys keys_of_run(const qattn_problem *problem, row_place first, row_place last) {
    /* A run that goes on in the next head has the last query of one and the first of the other. */
    const bool one_head = first.head == last.head;
    const size_t top_query = one_head ? first.query : 0, bottom_query = one_head ? last.query : problem->queries - 1;
    const key_range top = query_keys(problem, top_query), bottom = query_keys(problem, bottom_query);
    run_keys keys = {.any = {top.first, bottom.last}, .all = {bottom.first, top.last}};
    for (size_t query = top_query; problem->places && query <= bottom_query; query++) {
        const key_range range = query_keys(problem, query);
        if (range.first < keys.any.first) keys.any.first = range.first;
        if (range.last > keys.any.last) keys.any.last = range.last;
        if (range.first > keys.all.first) keys.all.first = range.first;
        if (range.last < keys.all.last) keys.all.last = range.last;
    }
    return keys;
}

/* The bits of `range` in the 64 keys from block_first on. */
QATTN_INLINE uint64_t range_bits(key_range range, size_t block_first) {
    const ptrdiff_t first = range.first - (ptrdiff_t)block_first, last = range.last - (ptrdiff_t)block_first;
    if (last <= 0 || first >= QATTN_KEY_BLOCK) return 0;
    const uint64_t below_last = last >= QATTN_KEY_BLOCK ? ~UINT64_C(0) : (UINT64_C(1) << last) - 1;
    return first <= 0 ? below_last : below_last & (~UINT64_C(0) << first);
}

/* Whether the 64 keys from block_first on are all in `range`. */
QATTN_INLINE bool range_covers(key_range range, size_t block_first) {
    return range.first <= (ptrdiff_t)block_first && range.last >= (ptrdiff_t)(block_first + QATTN_KEY_BLOCK);
}

/* The 16 biases of a row from key j on, where each key with a bit lies inside the tensor; other lanes are anything. */
QATTN_INLINE f32x16 bias_lanes(const qattn_problem *problem, row_place row, size_t j, uint32_t bits) {
    const float *bias =
        problem->bias + row_offset(problem->bias_strides, row) + (ptrdiff_t)j * problem->bias_strides.key;
    if (problem->bias_strides.key == 1 && j + QATTN_LANES <= problem->seq_kv) return f32x16_load(bias);
    float lanes[QATTN_LANES] = {0};
    for (; bits; bits &= bits - 1) {
        const int r = __builtin_ctz(bits);
        lanes[r] = bias[r * problem->bias_strides.key];
    }
    return f32x16_load(lanes);
}

/* The bits that a boolean mask leaves of `bits`. */
QATTN_INLINE uint64_t boolean_bits(const qattn_problem *problem, row_place row, size_t block_first, uint64_t bits) {
    const uint8_t *mask =
        problem->mask + row_offset(problem->mask_strides, row) + (ptrdiff_t)block_first * problem->mask_strides.key;
    if (problem->mask_strides.key == 1 && block_first + QATTN_KEY_BLOCK <= problem->seq_kv) {
        uint64_t allowed = 0;
        for (int v = 0; v < BLOCK_VECTORS; v++)
            allowed |= (uint64_t)u8x16_nonzero_bits(mask + QATTN_LANES * v) << QATTN_LANES * v;
        return bits & allowed;
    }
    for (uint64_t rest = bits; rest; rest &= rest - 1) {
        const int j = __builtin_ctzll(rest);
        if (!mask[j * problem->mask_strides.key]) bits ^= rest & -rest;
    }
    return bits;
}

/* The bits that the biases leave of `bits`: all but those of -inf. */
QATTN_INLINE uint64_t finite_bias_bits(const qattn_problem *problem, row_place row, size_t block_first, uint64_t bits) {
    for (int v = 0; v < BLOCK_VECTORS; v++) {
        const uint32_t lanes = (uint32_t)(bits >> QATTN_LANES * v) & 0xffff;
        if (!lanes) continue;
        const f32x16 bias = bias_lanes(problem, row, block_first + (size_t)(QATTN_LANES * v), lanes);
        bits &= ~((uint64_t)f32x16_equal_bits(bias, -__builtin_inff()) << QATTN_LANES * v);
    }
    return bits;
}

/* The keys of the block that a row sees. */
QATTN_INLINE uint64_t visible_bits(const qattn_problem *problem, row_place row, size_t block_first) {
    uint64_t bits = range_bits(query_keys(problem, row.query), block_first);
    if (problem->mask && bits) bits = boolean_bits(problem, row, block_first, bits);
    if (problem->bias && bits) bits = finite_bias_bits(problem, row, block_first, bits);
    return bits;
}

#endif
