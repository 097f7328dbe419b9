/* SPDX-License-Identifier: Apache-2.0 */
/* CKernels.h - the whole C interface of the attention kernels.
 *
 *     out[i]  = sum_j p[i][j] v[j]
 *     p[i][j] = e^x[i][j] / (e^s + sum_k e^x[i][k])
 *     x[i][j] = scale * q[i].k[j] + bias[i][j]
 *
 * for the rows of one query head against the keys of one key/value head. s is the sink logit: -inf gives softmax,
 * 0 softmax_1, log n softmax_n. Batches, heads, threads, memory and the checking of arguments are the caller's:
 * nothing here allocates, starts a thread or fails. Every kernel set gives the same bits (Documentation/Numerics.md).
 *
 * Dimensions   queries, seq_kv       rows of queries and of keys
 *              head_dim, value_dim   length of a key and of a value, 1 and up
 * Strides      in elements, between rows; the elements of a row are adjacent.
 *
 * Edge cases   A row that sees no key: out = 0, lse = sink, sink_share = 1, or 0 where sink is -inf.
 *              A key that a row does not see is never read into that row: NaN there does no harm.
 *              NaN or +inf in a visible score, or NaN in a visible value, makes that row NaN and no other.
 */
#ifndef CKERNELS_H
#define CKERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    QATTN_LANES = 16,          /* partial sums of a row's denominator; every packed row is padded to a multiple of it */
    QATTN_CHANNEL_BLOCK = 128, /* channels of head_dim summed from 0, in four chains of every fourth */
    QATTN_INTEGER_CHANNELS = 512,    /* the same of int8 keys, in 32-bit integers */
    QATTN_PAIR_SEGMENT = 32,         /* channels, or keys, of bfloat16 summed from 0 in two chains */
    QATTN_KEY_BLOCK = 64,            /* keys that share one rescaling of a row, and whose values are summed from 0 */
    QATTN_KEY_CHUNK = 1024,          /* keys summed from an empty state; chunks merge from left to right */
    QATTN_QUERY_BLOCK = 132,         /* most rows of one call to forward, of any kernel set */
    QATTN_READ_STREAMS = 8,          /* most places that read_probe reads from side by side */
    QATTN_UPCOMING = 4,              /* tensors that forward may be told about in advance */
    QATTN_GRADIENT_UPCOMING = 8,     /* and backward */
    QATTN_PREPARE_BACKWARD_ROWS = 5, /* rows of the workspace of prepare_backward */
    QATTN_ALIGNMENT = 64             /* bytes, for packed keys, packed values and workspace */
};

/* The last two are for packed keys and values alone. QATTN_INT8: one symmetric scale per token and head, value =
 * integer * scale. QATTN_BFLOAT16_PAIRS: bfloat16 that is multiplied as such, with queries and weights rounded to it. */
typedef enum qattn_storage {
    QATTN_FLOAT32,
    QATTN_FLOAT16,
    QATTN_BFLOAT16,
    QATTN_INT8,
    QATTN_BFLOAT16_PAIRS
} qattn_storage;

/* Packed keys and values of one head, in blocks of QATTN_KEY_BLOCK keys. A block is qattn_block_bytes() long, starts at
 * a multiple of QATTN_ALIGNMENT and holds, each part from a multiple of QATTN_ALIGNMENT on:
 *
 *     keys   [QATTN_KEY_BLOCK / QATTN_LANES][head_dim][QATTN_LANES keys]      a step over d meets 16 keys side by side
 *     values [panels][QATTN_KEY_BLOCK][columns of the panel]                  0 past value_dim
 *
 * or, of QATTN_INT8 and QATTN_BFLOAT16_PAIRS, two channels of a key, and two keys of a column, side by side:
 *
 *     keys   [QATTN_KEY_BLOCK / QATTN_LANES][head_dim / 2, rounded up][QATTN_LANES keys][2]            0 past head_dim
 *     values [value_dim / QATTN_LANES, rounded up][QATTN_KEY_BLOCK / 2][QATTN_LANES columns][2]        0 past value_dim
 *     int8: key scales [QATTN_KEY_BLOCK], value scales [QATTN_KEY_BLOCK], float32
 *     pairs: uint32_t, not 0 if a value is not finite, and 0 up to QATTN_ALIGNMENT; head_dim is rounded up to
 *     QATTN_PAIR_SEGMENT
 *
 * which is the order in which forward reads them, from the first byte to the last: memory answers that fastest. The
 * value_dim columns, rounded up to QATTN_LANES, are cut into panels of up to 64 from the left, 80 left into 48 and 32.
 *
 * What stands in the place of a key that was never packed is not read into any row. Of QATTN_BFLOAT16_PAIRS the first
 * keys of a block are packed first, and set the others to 0; keys may be packed again, with those behind them or not. */
typedef struct qattn_blocks {
    void *base;         /* block b is at base + b * qattn_block_bytes(), or */
    void *const *table; /* at table[b], unless NULL: pages of a key/value cache */
    qattn_storage storage;
    size_t head_dim, value_dim;
} qattn_blocks;

/* Packs rows [key_begin, key_end) of one key/value head; other rows of the blocks stay as they are. 16-bit and int8
 * blocks are rounded to nearest even; 16-bit input of the same type is copied exactly. */
typedef struct qattn_pack_args {
    const void *keys;   /* row key_begin: [key_end - key_begin][head_dim] */
    const void *values; /* row key_begin: [key_end - key_begin][value_dim] */
    ptrdiff_t key_stride, value_stride;
    qattn_storage key_storage, value_storage; /* not QATTN_INT8 */
    size_t key_begin, key_end;
    qattn_blocks blocks;
} qattn_pack_args;

typedef enum qattn_norm { QATTN_NO_NORM, QATTN_RMS_NORM, QATTN_LAYER_NORM } qattn_norm;

/* Which channels are pair j of a row with so many pairs: j and j + pairs, or 2j and 2j + 1. */
typedef enum qattn_pairing { QATTN_HALVES, QATTN_INTERLEAVED } qattn_pairing;

/* What becomes of a pair (x1, x2), with R the rotation by its angle, and t = max(0, (x1 + x2) / 2):
 * a rotary embedding, or the queries and keys of collinear constrained attention in both of its forms. */
typedef enum qattn_rotation {
    QATTN_ROTATED,      /* R (x1, x2) */
    QATTN_SLACK_QUERY,  /* x1 and x2 times their places in R (x1, x2) */
    QATTN_SLACK_KEY,    /* R (t, t) */
    QATTN_STRICT_QUERY, /* R (x1^2 + x2^2, 0) */
    QATTN_STRICT_KEY    /* R (t, 0) */
} qattn_rotation;

/* Makes of rows of queries or keys what scores multiply: first normalises each over all its channels,
 *
 *     QATTN_RMS_NORM     x = row factor * gain,                   factor = 1 / sqrt(mean of row^2 + epsilon)
 *     QATTN_LAYER_NORM   x = (row - mean) factor * gain + shift,  factor = 1 / sqrt(mean of (row - mean)^2 + epsilon)
 *
 * then rotates its pairs. Channels from 2 * pairs on are not rotated; pairs = 0 is no rotation. Row r has the cosines and
 * sines tables[r], which may carry a factor of the pair's own: [2][pairs rounded up to QATTN_LANES]. */
typedef struct qattn_prepare_args {
    const void *rows; /* [count][dim] */
    ptrdiff_t stride;
    qattn_storage storage; /* not QATTN_INT8 */
    size_t count, dim;
    qattn_norm norm;
    float epsilon;
    const float *gain, *shift; /* [dim]; or NULL: 1, 0 */
    qattn_rotation rotation;
    qattn_pairing pairing;
    size_t pairs;
    const float *tables; /* [count][2][pairs rounded up to QATTN_LANES] */
    float *out;          /* [count][dim], apart from rows, or rows of float32 in place */
    ptrdiff_t out_stride;
} qattn_prepare_args;

/* The gradients of rows from those of what prepare made of them, and for norms those of gain and shift. Rows whose gradient
 * is 0 in all channels are not read. Sums of gain and shift are of blocks of 64 rows, counted from the first. */
typedef struct qattn_prepare_backward_args {
    qattn_prepare_args
        prepare;            /* as for prepare; out is not used. Neither norm nor pairs: gradients are only rounded */
    const float *gradients; /* [count][dim], of the prepared rows */
    ptrdiff_t gradient_stride;
    void *row_gradients; /* [count][dim], apart from gradients, or float32 in the same place */
    ptrdiff_t row_gradient_stride;
    qattn_storage row_gradient_storage;    /* not QATTN_INT8; rounded to nearest even */
    bool accumulates;                      /* whether they are added to what is there, -0 counting as +0 */
    float *gain_gradient, *shift_gradient; /* [dim], to be added to; or NULL */
    float *workspace; /* QATTN_PREPARE_BACKWARD_ROWS rows of dim rounded up to QATTN_LANES, from QATTN_ALIGNMENT on */
} qattn_prepare_backward_args;

/* Rows that the caller will read or write soon: forward and backward ask for them while they compute, which hides what
 * memory takes to answer. Never needed for the result; base may be NULL. Costs time in proportion to the rows: name
 * what the next call needs. */
typedef struct qattn_upcoming_rows {
    const void *base;
    ptrdiff_t stride_bytes;
    size_t rows, row_bytes;
} qattn_upcoming_rows;

/* How the scores x of a row's visible keys become weights p; Documentation/Systems.md. c is the row's entry in
 * row_constants. Only the softmaxes have a sink, lse and sink_share. */
typedef enum qattn_normaliser {
    QATTN_SOFTMAX,         /* e^x[j] / (e^s + sum_k e^x[k]); c, if there are row_constants, is added to s */
    QATTN_CLIPPED_SOFTMAX, /* clip((zeta - c) softmax[j] + c, 0, 1), c at most 0, in two passes over the keys; no states */
    QATTN_SIGMOID,         /* 1 / (1 + e^-(x[j] + c)) */
    QATTN_SOFTPICK,        /* max(e^x[j] - 1, 0) / (sum_k |e^x[k] - 1| + c), all times e^-max(0, max x) */
    QATTN_RELU_SQUARED,    /* max(x[j], 0)^2 / c */
    QATTN_NORMALISED_RELU_SQUARED /* max(x[j], 0)^2 / (c + sum_k max(x[k], 0)^2) */
} qattn_normaliser;

/* A tensor over heads and queries of a call, and for masks and biases over keys: element strides from (0, 0, 0). */
typedef struct qattn_strides {
    ptrdiff_t head, query, key;
} qattn_strides;

/* What a pass over the query heads that share one key/value head computes, whatever its tensors. Query i of any head
 * attends to the keys j with
 *
 *     max(0, i + first_key_offset) <= j < min(seq_kv, i + last_key_offset),   mask[i][j] != 0,   bias[i][j] not -inf
 *
 * so causal, aligned bottom right, is last_key_offset = seq_kv - queries + 1, and a window of w keys that ends there
 * is first_key_offset = last_key_offset - w. Where there are places, places[i] stands for i in this range and in ALiBi.
 * The finished score of a query and a key is
 *
 *     x[i][j] = cap(scale * row_factors[i] * q[i].k[j]) - alibi_slopes * |i + alibi_offset - j| + bias[i][j]
 *     cap(x)  = softcap * tanh(x / softcap)
 *
 * All pointers are to head 0, query 0, key 0. */
typedef struct qattn_problem {
    size_t heads, queries, seq_kv; /* query heads; queries of each; keys */
    const ptrdiff_t *places;       /* [queries], in any order; or NULL: i */
    double scale;
    const double *row_factors; /* or NULL: 1 */
    qattn_strides row_factor_strides;
    double softcap;            /* 0: none */
    const float *alibi_slopes; /* [heads], or NULL: none */
    ptrdiff_t alibi_offset;
    qattn_normaliser normaliser;
    const float *row_constants; /* c of the normaliser; NULL for QATTN_SOFTMAX */
    qattn_strides row_constant_strides;
    float zeta;         /* of QATTN_CLIPPED_SOFTMAX */
    const float *sinks; /* [heads] */
    ptrdiff_t first_key_offset, last_key_offset;
    const uint8_t *mask; /* or NULL */
    qattn_strides mask_strides;
    const float *bias; /* natural units, or NULL */
    qattn_strides bias_strides;
} qattn_problem;

/* Rows [row_begin, row_end) of the heads * queries rows of a problem, at most QATTN_QUERY_BLOCK of them: row r is query
 * r % queries of head r / queries. */
typedef struct qattn_forward_args {
    qattn_problem problem;
    size_t row_begin, row_end;
    const void *queries_base; /* [heads][queries][head_dim] */
    qattn_strides query_strides;
    qattn_storage query_storage;
    qattn_blocks blocks;
    /* If not NULL: keys [0, seq_kv) and their values as unpacked rows. Each block is packed on demand, into
     * blocks.base, which is room for a single block, unless its rows can be multiplied where they stand. For rows that few
     * queries read, and no other call would read again. */
    const qattn_pack_args *unpacked;
    void *out; /* [heads][queries][value_dim] */
    qattn_strides out_strides;
    qattn_storage out_storage;   /* rounded to nearest even from float32 */
    float *lse;                  /* [heads][queries], sink included, natural units; or NULL */
    float *sink_share;           /* [heads][queries]; or NULL */
    float *references, *factors; /* [heads][queries], what backward needs of a row; or NULL, both */
    ptrdiff_t sum_head_stride;   /* of lse, sink_share, references and factors; queries are adjacent */
    /* If not NULL: nothing is written to out, lse and sink_share; instead, for each chunk of QATTN_KEY_CHUNK keys from
     * chunk_begin to chunk_end (others are left out) the state of every row: states[chunk - chunk_begin][row -
     * row_begin], each qattn_state_floats() long, from a multiple of QATTN_ALIGNMENT on:
     *
     *     [0] m   [1] 1 if the row sees a key of the chunk, otherwise 0   [16, 32) l   [32, ...) o   scores in base 2
     *
     * qattn_kernels.finish turns them into the very same out, lse and sink_share. */
    float *states;
    size_t chunk_begin, chunk_end;
    qattn_upcoming_rows upcoming[QATTN_UPCOMING];
    /* For speed alone: a guess, that the blocks of all calls come from memory; and in_quarters, of
     * qattn_reading_of(). */
    bool beyond_caches, in_quarters;
    float *workspace; /* qattn_forward_workspace() bytes, contents irrelevant, one per concurrent call */
} qattn_forward_args;

/* The gradients of a problem for the pairs of rows [row_begin, row_end), row r as for forward, and keys [key_begin,
 * key_end):
 *
 *     dq[i] += sum_j w[i][j] k[j]      dk[j] += sum_i w[i][j] q[i]      dv[j] += sum_i p[i][j] dout[i]
 *
 * with p and w of Documentation/Numerics.md, B2. key_begin, and the query that row_begin is, are multiples of
 * QATTN_KEY_BLOCK; so are key_end and the query that row_end is, unless they are the last. Calls for the same row come
 * in ascending order of keys, and calls for the same key in ascending order of rows: then the bits do not depend on how
 * the work is cut into calls. dq, dk and dv are set to 0 before the first, or hold sums to be continued. */
typedef struct qattn_backward_args {
    qattn_problem problem;
    size_t row_begin, row_end, key_begin, key_end;
    const void *queries; /* [heads][queries][head_dim], those that forward multiplied */
    qattn_strides query_strides;
    const void *keys, *values; /* rows of key 0: [seq_kv][head_dim], [seq_kv][value_dim] */
    ptrdiff_t key_stride, value_stride;
    const void *out_gradients; /* dout: [heads][queries][value_dim] */
    qattn_strides out_gradient_strides;
    const void *out; /* what forward wrote, [heads][queries][value_dim]; for deltas alone */
    qattn_strides out_strides;
    qattn_storage query_storage, key_storage, value_storage, out_gradient_storage, out_storage; /* not QATTN_INT8 */
    size_t head_dim, value_dim;
    bool in_pairs; /* products of factors of bfloat16, as forward makes over QATTN_BFLOAT16_PAIRS; else of float32 */
    const float *lse_gradients;        /* [heads][queries], or NULL: 0; for deltas alone */
    const float *references, *factors; /* [heads][queries], from forward */
    float *deltas;                     /* [heads][queries]: written by deltas, read by the others */
    ptrdiff_t sum_head_stride;         /* of the five above; queries are adjacent */
    float *query_gradients;            /* dq: [heads][queries][head_dim] */
    qattn_strides query_gradient_strides;
    float *key_gradients, *value_gradients; /* dk, dv: rows of key 0 */
    ptrdiff_t key_gradient_stride, value_gradient_stride;
    qattn_upcoming_rows upcoming[QATTN_GRADIENT_UPCOMING]; /* of products of float32 */
    float *workspace; /* qattn_backward_workspace() bytes, contents irrelevant, one per concurrent call */
} qattn_backward_args;

/* One instruction set's kernels. */
typedef struct qattn_kernels {
    const char *name;   /* portable, x86_64_v3, x86_64_v4, x86_64_v4_bf16, x86_64_amx, arm64_neon */
    size_t tile_rows;   /* rows that share the loads of keys and values: calls of a multiple of it waste none */
    size_t query_block; /* rows of a call that stay in cache while the keys pass by; at most QATTN_QUERY_BLOCK */
    size_t band_rows;   /* tile_rows of bfloat16 pairs where instructions multiply pairs, or 0 where there are none */
    bool has_tiles;     /* these are tile instructions, which multiply int8, too, in bands of as many rows */
    void (*prepare)(const qattn_prepare_args *args);
    void (*pack)(const qattn_pack_args *args);
    void (*forward)(const qattn_forward_args *args);
    /* Merges the states [chunk][row] of rows [row_begin, row_end) from left to right, adds the sinks, and writes out,
     * lse and sink_share as forward would have: args as for forward, with states and all chunks from chunk_begin to
     * chunk_end. */
    void (*finish)(const qattn_forward_args *args);
    /* Joins the states [chunk][row] of rows [row_begin, row_end), any number of them, from left to right to
     * totals[row - row_begin], states of all chunks before or all 0. finish, with totals as the states of a single
     * chunk, then gives what it gives with those of all. Only states, rows, chunks and value_dim are used. */
    void (*merge)(const qattn_forward_args *args, float *totals);
    /* The finished scores x of the rows against the keys of one block, -inf where a row does not see the key:
     * scores[row - row_begin][QATTN_KEY_BLOCK], in base 2 (times log2 e), or as they are for the squared ones. Outputs,
     * sinks and states are not used. */
    void (*scores)(const qattn_forward_args *args, size_t block, float *scores);
    /* Writes the deltas of the rows, of which there may be any number, from any row on: from out and its gradient, and
     * for clipped softmax from all keys that they see. key_begin and key_end are not used. */
    void (*deltas)(const qattn_backward_args *args);
    void (*backward)(const qattn_backward_args *args);
    void (*prepare_backward)(const qattn_prepare_backward_args *args);
    /* The gradients u of the finished scores of the rows, as for deltas, against the keys of one block, in natural units:
     * gradients[row - row_begin][QATTN_KEY_BLOCK], 0 where a row does not see the key. Sums to be written are not used.
     */
    void (*score_gradients)(const qattn_backward_args *args, size_t block, float *gradients);
    /* What the rows, as for deltas, add to the gradients of ALiBi's slopes and of the logarithms of their heads' scales:
     * sums[row - row_begin] = sum_j -u[i][j] distance[i][j], and sum_d q[i][d] dq[i][d]. The latter reads queries and
     * query_gradients alone, which must have been summed from 0. */
    void (*slope_gradients)(const qattn_backward_args *args, float *sums);
    void (*log_scale_gradients)(const qattn_backward_args *args, float *sums);
    /* Adds the terms of slope_gradients to lanes[row - row_begin][QATTN_LANES], key j to lane j mod QATTN_LANES: where the keys of a row
     * come a part at a time, each with its own seq_kv, ascending and from a multiple of QATTN_KEY_BLOCK on. With all of them
     * added the lanes, summed in a tree, have the bits of slope_gradients. */
    void (*slope_lanes)(const qattn_backward_args *args, float *lanes);
    /* Ceilings, for benchmarks; the results only keep the work from being optimised away.
     *
     * fma_probe    n rounds of independent fused multiply-adds, and the float operations that one round counts
     * pair_probe   the same of products of bfloat16 by instructions that multiply pairs of 1 by 1, and their sum on return: 32 n
     *              by tiles, 2 n by dots; NULL where they are multiplied by fused multiply-adds
     * read_probe   a sum over n floats, read from 1, 2, 4 or QATTN_READ_STREAMS places side by side: CPUs differ in
     *              which is fastest */
    float (*fma_probe)(size_t rounds);
    size_t fma_probe_flops;
    float (*pair_probe)(size_t rounds);
    size_t pair_probe_flops;
    float (*read_probe)(const float *data, size_t count, size_t streams);
    /* out[i] = 2^x[i] for x[i] <= 126, log2(x[i]) for positive normal x[i], and tanh(x[i]), as every kernel computes
     * them. out may be x. */
    void (*exp2)(const float *x, float *out, size_t count);
    void (*log2)(const float *x, float *out, size_t count);
    void (*tanh)(const float *x, float *out, size_t count);
} qattn_kernels;

/* The kernel sets this CPU can run, best first; count receives how many, at least 1 (portable is always there).
 * Valid for ever, safe from any thread. */
const qattn_kernels *const *qattn_available_kernels(size_t *count);

/* How a set's kernels best read packed blocks, or rows as they stand, on this CPU. */
typedef struct qattn_reading {
    bool in_quarters; /* four places of a block are asked for at once; else one run of it */
    /* In bytes: a call that reads more than cached_above and at most cached_most of packed blocks finds them in a cache, any
     * other in memory: beyond_caches. */
    size_t cached_above, cached_most;
    /* Keys that at most so many rows see are packed block by block on the way, not all of them first. */
    size_t unpacked_rows;
} qattn_reading;

qattn_reading qattn_reading_of(const qattn_kernels *kernels);

/* Space-separated features of this CPU that matter here ("avx2 fma avx512f ..."). */
const char *qattn_cpu_features(void);

/* Bytes of a block of packed keys and values, bytes of workspace, of backward for one set's kernels, and floats of one row's
 * state. Overflow gives SIZE_MAX. */
size_t qattn_block_bytes(qattn_storage storage, size_t head_dim, size_t value_dim);
size_t qattn_forward_workspace(size_t head_dim, size_t value_dim);
size_t qattn_backward_workspace(const qattn_kernels *kernels, size_t head_dim, size_t value_dim);
size_t qattn_state_floats(size_t value_dim);

/* The floating-point mode of the calling thread, its status flags included. */
typedef struct qattn_float_mode {
    uint64_t control, status;
} qattn_float_mode;

/* Sets the mode of the contract: round to nearest even, subnormal numbers kept, no exception raised. Returns the
 * caller's, for qattn_leave_float_mode to restore. The functions of qattn_kernels that compute do both by themselves,
 * and so leave mode and flags of their caller as they were; a thread that calls many of them need do nothing. */
qattn_float_mode qattn_enter_float_mode(void);
void qattn_leave_float_mode(qattn_float_mode caller);

/* Tells the CPU that the caller is spinning. */
static inline void qattn_spin_hint(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
