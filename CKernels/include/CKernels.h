/* SPDX-License-Identifier: Apache-2.0 */
/* CKernels.h - the whole C interface of the attention kernels.
 *
 *     out[i] = sum_j p[i][j] v[j],   p[i][j] = e^x[i][j] / (e^s + sum_k e^x[i][k]),   x[i][j] = scale * q[i].k[j] +
 * bias[i][j]
 *
 * for the rows of one query head against the keys of one key/value head. s is the sink logit: -inf gives softmax,
 * 0 softmax_1, log n softmax_n. Batches, heads, threads, memory and the checking of arguments are the caller's:
 * nothing here allocates, starts a thread or fails. Every kernel set gives the same bits (Documentation/Numerics.md).
 *
 * Dimensions   seq_q, seq_kv    rows of queries, keys           head_dim, value_dim   length of a key, of a value: 1
 * and up Strides      in elements, between rows; the elements of a row are adjacent.
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
    QATTN_KEY_BLOCK = 64,      /* keys that share one rescaling of a row, and whose values are summed from 0 */
    QATTN_KEY_CHUNK = 1024,    /* keys summed from an empty state; chunks merge from left to right */
    QATTN_QUERY_BLOCK = 96,    /* most rows of one call to forward: what stays in cache while the keys pass by */
    QATTN_UPCOMING = 4,        /* tensors that forward may be told about in advance */
    QATTN_ALIGNMENT = 64       /* bytes, for packed keys, packed values and workspace */
};

typedef enum qattn_storage { QATTN_FLOAT32, QATTN_FLOAT16, QATTN_BFLOAT16 } qattn_storage;

/* Packing of one key/value head, blocks [block_begin, block_end) of QATTN_KEY_BLOCK keys.
 *
 *     packed_keys  [blocks][head_dim][QATTN_KEY_BLOCK]                  the keys of a block side by side
 *     packed_values[blocks * QATTN_KEY_BLOCK][value_dim rounded up to QATTN_LANES]
 *
 * Both start at the head's first block. Only rows below seq_kv are read. */
typedef struct qattn_pack_args {
    const void *keys;   /* [seq_kv][head_dim] */
    const void *values; /* [seq_kv][value_dim] */
    ptrdiff_t key_stride, value_stride;
    qattn_storage storage;
    size_t seq_kv, head_dim, value_dim;
    size_t block_begin, block_end;
    float *packed_keys, *packed_values;
} qattn_pack_args;

/* Rows that the caller will read or write soon: forward asks for them while it computes, which hides what memory takes
 * to answer. Never needed for the result; base may be NULL. */
typedef struct qattn_upcoming_rows {
    const void *base;
    ptrdiff_t stride_bytes;
    size_t rows, row_bytes;
} qattn_upcoming_rows;

/* Rows [query_begin, query_end) of one query head, at most QATTN_QUERY_BLOCK of them. Row pointers (queries, out, lse,
 * sink_share, mask, bias) are to row 0. Row i sees the keys j with
 *
 *     max(0, i + first_key_offset) <= j < min(seq_kv, i + last_key_offset),   mask[i][j] != 0,   bias[i][j] > -inf or
 * NaN
 *
 * so causal, aligned bottom right, is last_key_offset = seq_kv - seq_q + 1, and a window of w keys that ends there
 * is first_key_offset = last_key_offset - w. */
typedef struct qattn_forward_args {
    const void *queries; /* [seq_q][head_dim] */
    ptrdiff_t query_stride;
    qattn_storage query_storage;
    const float *packed_keys, *packed_values; /* as packed by the same kernel set or any other */
    size_t query_begin, query_end;
    size_t seq_kv, head_dim, value_dim;
    double scale;
    float sink;
    ptrdiff_t first_key_offset, last_key_offset;
    const uint8_t *mask; /* or NULL */
    ptrdiff_t mask_query_stride, mask_key_stride;
    const float *bias; /* natural units, or NULL */
    ptrdiff_t bias_query_stride, bias_key_stride;
    void *out; /* [seq_q][value_dim] */
    ptrdiff_t out_stride;
    qattn_storage out_storage; /* rounded to nearest even from float32 */
    float *lse;                /* [seq_q], adjacent, sink included, natural units; or NULL */
    float *sink_share;         /* [seq_q], adjacent; or NULL */
    qattn_upcoming_rows upcoming[QATTN_UPCOMING];
    float *workspace; /* qattn_forward_workspace() bytes, contents irrelevant, one per concurrent call */
} qattn_forward_args;

/* One instruction set's kernels. */
typedef struct qattn_kernels {
    const char *name; /* portable, x86_64_v3, x86_64_v4, arm64_neon */
    void (*pack)(const qattn_pack_args *args);
    void (*forward)(const qattn_forward_args *args);
    /* Ceilings, for benchmarks: n rounds of independent fused multiply-adds, and the float operations one round counts;
     * a sum over n floats, as fast as this set reads memory. The results only keep the work from being optimised away.
     */
    float (*fma_probe)(size_t rounds);
    size_t fma_probe_flops;
    float (*read_probe)(const float *data, size_t count);
    /* out[i] = 2^x[i] for x[i] <= 1, and log2(x[i]) for positive normal x[i], as every kernel computes them: for tests.
     */
    void (*exp2)(const float *x, float *out, size_t count);
    void (*log2)(const float *x, float *out, size_t count);
} qattn_kernels;

/* The kernel sets this CPU can run, best first; count receives how many, at least 1 (portable is always there).
 * Valid for ever, safe from any thread. */
const qattn_kernels *const *qattn_available_kernels(size_t *count);

/* Space-separated features of this CPU that matter here ("avx2 fma avx512f ..."). */
const char *qattn_cpu_features(void);

/* Floats of packed keys, of packed values, and bytes of workspace. Products that overflow give SIZE_MAX. */
size_t qattn_packed_key_count(size_t seq_kv, size_t head_dim);
size_t qattn_packed_value_count(size_t seq_kv, size_t value_dim);
size_t qattn_forward_workspace(size_t head_dim, size_t value_dim);

/* Tells the CPU that the caller is spinning. */
static inline void qattn_spin_hint(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
