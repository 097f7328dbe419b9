/* SPDX-License-Identifier: Apache-2.0 */
/* cross.c - runs the cases of Tests/Fixtures/digests.txt with every kernel set this CPU offers and compares digests.
 *
 * The table's digests come from the Swift reference, so equal words on two machines mean equal bits, where no Swift
 * runs too. Prints `case set digest` per case and set.
 *
 *     cross [SET...] digests.txt        exit 0: all equal, 1: some differ, 2: the table cannot be read, or a set cannot run
 *
 * Of the sets named, if there are any, else of all.
 *
 * The table's columns are described in the table, the inputs in seeded_inputs() below and, in Swift, in
 * DigestCase.swift: both must say the same. */
#include "EmulatedTiles.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The register of the thread's floating-point mode, and the bits for rounding upwards without subnormal numbers. */
#if defined(__x86_64__)
enum { OTHER_MODE = 0xc040 };
static uint64_t mode(void) { return __builtin_ia32_stmxcsr(); }
static void set_mode(uint64_t mode) { __builtin_ia32_ldmxcsr((unsigned)mode); }
#elif defined(__aarch64__)
enum { OTHER_MODE = 1 << 24 | 1 << 22 };
static uint64_t mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode) : : "memory");
    return mode;
}
static void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
enum { OTHER_MODE = 0 };
static uint64_t mode(void) { return 0; }
static void set_mode(uint64_t mode) { (void)mode; }
#endif

/* Every other call of a kernel comes from a caller in that mode, which it finds as it was. */
static unsigned calls;
#define CALL(call)                                                                                                     \
    do {                                                                                                               \
        const uint64_t usual = mode(), caller = usual | (calls++ % 2 ? OTHER_MODE : 0);                                \
        set_mode(caller);                                                                                              \
        call;                                                                                                          \
        const uint64_t after = mode();                                                                                 \
        set_mode(usual);                                                                                               \
        if (after != caller) {                                                                                         \
            fprintf(stderr, "cross: a kernel changed the floating-point mode\n");                                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* SplitMix64 and eight 16-bit parts per normal number, as in SeededGenerator.swift. */
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t next(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    return mix(*state);
}

static float next_normal(uint64_t *state) {
    int64_t sum = -262140; /* less the mean of eight numbers from 0 to 65535 */
    for (int word = 0; word < 2; word++) {
        const uint64_t bits = next(state);
        for (int part = 0; part < 4; part++) sum += (int64_t)((bits >> (16 * part)) & 0xffff);
    }
    return (float)sum * 0x1.3988e2p-16f;
}

/* Room for n elements, at least one, aligned for the kernels. */
static void *allocate(size_t n, size_t size) {
    const size_t bytes = (n * size + QATTN_ALIGNMENT) / QATTN_ALIGNMENT * QATTN_ALIGNMENT;
    void *memory = aligned_alloc(QATTN_ALIGNMENT, bytes);
    if (!memory) {
        fprintf(stderr, "cross: no memory\n");
        exit(2);
    }
    return memory;
}

static float *normals(uint64_t seed, uint64_t stream, size_t n) {
    float *values = allocate(n, sizeof *values);
    uint64_t state = seed + mix(stream);
    for (size_t i = 0; i < n; i++) values[i] = next_normal(&state);
    return values;
}

/* The upper half of a float, and a float16 whose last bits are cut off; magnitudes below 2^-14 become zero. */
static uint16_t cut_to_bfloat16(uint32_t bits) { return (uint16_t)(bits >> 16); }

static uint16_t cut_to_float16(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t sign = (bits >> 16) & 0x8000;
    return (uint16_t)(magnitude < 0x38800000 ? sign : sign | ((magnitude - 0x38000000) >> 13));
}

/* The same values in 16 bits; frees the floats. For float32 the floats themselves. */
static void *stored(float *values, size_t n, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) return values;
    uint16_t *halves = allocate(n, sizeof *halves);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        halves[i] = storage == QATTN_BFLOAT16 ? cut_to_bfloat16(bits) : cut_to_float16(bits);
    }
    free(values);
    return halves;
}

static uint64_t digest(uint64_t hash, const float *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = 0x7fc00000;
        if (!isnan(values[i])) memcpy(&bits, values + i, sizeof bits);
        for (int byte = 0; byte < 4; byte++) hash = (hash ^ ((bits >> (8 * byte)) & 0xff)) * 0x100000001b3u;
    }
    return hash;
}

static const uint64_t EMPTY_DIGEST = 0xcbf29ce484222325u;

/* One line of the table. */
typedef struct test_case {
    char name[32], mask[16], storage[16], extra[16], expected[32];
    unsigned long seed;
    size_t seq_q, seq_kv, head_dim, value_dim;
    long window;
    double scale;
    float sink;
} test_case;

typedef struct inputs {
    void *queries, *keys, *values;
    uint8_t *mask; /* or NULL */
    float *bias;   /* or NULL */
    qattn_storage storage;
} inputs;

static inputs seeded_inputs(const test_case *c) {
    inputs in = {.storage = QATTN_FLOAT32};
    if (!strcmp(c->storage, "float16")) in.storage = QATTN_FLOAT16;
    if (!strcmp(c->storage, "bfloat16")) in.storage = QATTN_BFLOAT16;
    const size_t pairs = c->seq_q * c->seq_kv;
    float *queries = normals(c->seed, 0, c->seq_q * c->head_dim);
    float *keys = normals(c->seed, 1, c->seq_kv * c->head_dim);
    float *values = normals(c->seed, 2, c->seq_kv * c->value_dim);
    if (!strcmp(c->extra, "rising")) { /* every block outweighs those before it */
        for (size_t i = 0; i < c->seq_q; i++) queries[i * c->head_dim] = 1;
        for (size_t j = 0; j < c->seq_kv; j++) keys[j * c->head_dim] = 0.25f * (float)j;
    }
    if (!strcmp(c->extra, "nan")) {
        keys[(c->seq_kv / 2) * c->head_dim] = NAN;
        values[(c->seq_kv / 3) * c->value_dim] = NAN;
    }
    if (!strcmp(c->extra, "mask")) {
        uint64_t state = c->seed + mix(3);
        in.mask = allocate(pairs, 1);
        for (size_t i = 0; i < pairs; i++) in.mask[i] = (uint8_t)(next(&state) >> 63);
    }
    if (!strcmp(c->extra, "bias")) {
        in.bias = normals(c->seed, 4, pairs);
        for (size_t i = 0; i < pairs; i += 5) in.bias[i] = -INFINITY;
    }
    in.queries = stored(queries, c->seq_q * c->head_dim, in.storage);
    in.keys = stored(keys, c->seq_kv * c->head_dim, in.storage);
    in.values = stored(values, c->seq_kv * c->value_dim, in.storage);
    return in;
}

/* What `extra` says of scores. `factors` are the row factors of one of them. */
static void set_scores(const test_case *c, qattn_forward_args *forward, const double *factors, float *constant) {
    static const struct {
        const char *name;
        qattn_normaliser normaliser;
        float constant;
    } normalisers[] = {{"clipped", QATTN_CLIPPED_SOFTMAX, -0.03125f},
                       {"sigmoid", QATTN_SIGMOID, -3},
                       {"softpick", QATTN_SOFTPICK, 0x1p-20f},
                       {"relu", QATTN_RELU_SQUARED, 100},
                       {"quiet_relu", QATTN_NORMALISED_RELU_SQUARED, 1}};
    static const float slope = 0.0625f;
    for (size_t i = 0; i < sizeof normalisers / sizeof *normalisers; i++) {
        if (strcmp(c->extra, normalisers[i].name)) continue;
        *constant = normalisers[i].constant;
        forward->problem.normaliser = normalisers[i].normaliser;
        forward->problem.row_constants = constant;
        forward->problem.zeta = 1.0625f;
        if (forward->problem.normaliser != QATTN_CLIPPED_SOFTMAX) forward->lse = forward->sink_share = NULL;
    }
    if (strcmp(c->extra, "scores")) return;
    forward->problem.row_factors = factors;
    forward->problem.row_factor_strides.query = 1;
    forward->problem.softcap = 5;
    forward->problem.alibi_slopes = &slope;
    forward->problem.alibi_offset = (ptrdiff_t)c->seq_kv - (ptrdiff_t)c->seq_q;
}

/* Digest of out, lse and sink share of one case; the last two are 0 where the normaliser has none. Keys and values are
 * packed before forward or by it, as it goes; and said to be in a cache or beyond. */
static uint64_t run_forward(const test_case *c, const qattn_kernels *kernels, bool unpacked, bool beyond_caches) {
    const inputs in = seeded_inputs(c);
    const ptrdiff_t own = (ptrdiff_t)c->seq_kv - (ptrdiff_t)c->seq_q;
    const int causal = strcmp(c->mask, "none") != 0;
    const size_t blocks = (c->seq_kv + QATTN_KEY_BLOCK - 1) / QATTN_KEY_BLOCK;
    const qattn_storage packed_storage = !strcmp(c->storage, "int8")    ? QATTN_INT8
                                         : !strcmp(c->storage, "pairs") ? QATTN_BFLOAT16_PAIRS
                                                                        : QATTN_FLOAT32;
    void *packed = allocate(blocks, qattn_block_bytes(packed_storage, c->head_dim, c->value_dim));
    float *workspace = allocate(qattn_forward_workspace(c->head_dim, c->value_dim), 1);
    float *out = allocate(c->seq_q * c->value_dim, sizeof *out);
    float *lse = allocate(c->seq_q, sizeof *lse);
    float *sink_share = allocate(c->seq_q, sizeof *sink_share);
    double *factors = allocate(c->seq_q, sizeof *factors);
    for (size_t i = 0; i < c->seq_q; i++) {
        factors[i] = 0.5 + (double)(i % 7) / 4;
        lse[i] = sink_share[i] = 0;
    }
    float constant;
    const qattn_pack_args pack = {
        .keys = in.keys,
        .values = in.values,
        .key_stride = (ptrdiff_t)c->head_dim,
        .value_stride = (ptrdiff_t)c->value_dim,
        .key_storage = in.storage,
        .value_storage = in.storage,
        .key_begin = 0,
        .key_end = c->seq_kv,
        .blocks = {.base = packed, .storage = packed_storage, .head_dim = c->head_dim, .value_dim = c->value_dim},
    };
    if (!unpacked) CALL(kernels->pack(&pack));
    for (size_t begin = 0; begin < c->seq_q; begin += QATTN_QUERY_BLOCK) {
        qattn_forward_args forward = {
            .queries_base = in.queries,
            .query_strides = {.query = (ptrdiff_t)c->head_dim},
            .query_storage = in.storage,
            .blocks = pack.blocks,
            .unpacked = unpacked ? &pack : NULL,
            .beyond_caches = beyond_caches,
            .problem.heads = 1,
            .problem.queries = c->seq_q,
            .row_begin = begin,
            .row_end = begin + QATTN_QUERY_BLOCK < c->seq_q ? begin + QATTN_QUERY_BLOCK : c->seq_q,
            .problem.seq_kv = c->seq_kv,
            .problem.scale = c->scale,
            .problem.sinks = &c->sink,
            .problem.first_key_offset = c->window > 0 ? own + 1 - c->window : -(ptrdiff_t)c->seq_q,
            .problem.last_key_offset = causal ? own + 1 : (ptrdiff_t)c->seq_kv,
            .problem.mask = in.mask,
            .problem.mask_strides = {.query = (ptrdiff_t)c->seq_kv, .key = 1},
            .problem.bias = in.bias,
            .problem.bias_strides = {.query = (ptrdiff_t)c->seq_kv, .key = 1},
            .out = out,
            .out_strides = {.query = (ptrdiff_t)c->value_dim},
            .out_storage = QATTN_FLOAT32,
            .lse = lse,
            .sink_share = sink_share,
            .workspace = workspace,
        };
        set_scores(c, &forward, factors, &constant);
        CALL(kernels->forward(&forward));
    }
    uint64_t hash = digest(EMPTY_DIGEST, out, c->seq_q * c->value_dim);
    hash = digest(digest(hash, lse, c->seq_q), sink_share, c->seq_q);
    free(packed), free(workspace), free(out), free(lse), free(sink_share), free(factors);
    free(in.queries), free(in.keys), free(in.values), free(in.mask), free(in.bias);
    return hash;
}

/* Digest of exp2 over -130 ... 1 in steps of 1/512, of tanh over -10 ... 10 in steps of 1/2048, or of log2 over 65536
 * floats of all binades, by name. */
static uint64_t run_function(const char *name, const qattn_kernels *kernels) {
    enum { EXP2_COUNT = 131 * 512 + 1, TANH_COUNT = 20 * 2048 + 1, LOG2_COUNT = 65536 };
    const int is_exp2 = !strcmp(name, "exp2"), is_tanh = !strcmp(name, "tanh");
    const size_t n = is_exp2 ? EXP2_COUNT : is_tanh ? TANH_COUNT : LOG2_COUNT;
    float *x = allocate(n, sizeof *x);
    float *y = allocate(n, sizeof *y);
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = 0x00800000u + (uint32_t)i * 0x7ef1u; /* up to 2^127, odd steps: all parts of a binade */
        if (is_exp2) x[i] = (float)i * 0x1p-9f - 130;
        else if (is_tanh) x[i] = (float)i * 0x1p-11f - 10;
        else memcpy(x + i, &bits, sizeof bits);
    }
    CALL((is_exp2 ? kernels->exp2 : is_tanh ? kernels->tanh : kernels->log2)(x, y, n));
    const uint64_t hash = digest(EMPTY_DIGEST, y, n);
    free(x), free(y);
    return hash;
}

/* Digest of rows prepared in every way. Cosines and sines are normal numbers: what they are is not the kernel's matter.
 */
static uint64_t run_prepare(const qattn_kernels *kernels) {
    enum { ROWS = 5, DIM = 40, PAIRS = 17, TABLE = 64 };
    float *rows = normals(16, 0, ROWS * DIM), *tables = normals(16, 1, ROWS * TABLE);
    float *gain = normals(16, 2, DIM), *shift = normals(16, 3, DIM);
    float *out = allocate(ROWS * DIM, sizeof *out);
    uint64_t hash = EMPTY_DIGEST;
    for (int variant = 0; variant < 3 * 5 * 2; variant++) {
        const qattn_prepare_args prepare = {
            .rows = rows,
            .stride = DIM,
            .storage = QATTN_FLOAT32,
            .count = ROWS,
            .dim = DIM,
            .norm = (qattn_norm)(variant % 3),
            .epsilon = 0.25f,
            .gain = gain,
            .shift = variant % 3 == 2 ? shift : NULL,
            .rotation = (qattn_rotation)(variant / 3 % 5),
            .pairing = (qattn_pairing)(variant / 15),
            .pairs = PAIRS,
            .tables = tables,
            .out = out,
            .out_stride = DIM,
        };
        CALL(kernels->prepare(&prepare));
        hash = digest(hash, out, ROWS * DIM);
    }
    free(rows), free(tables), free(gain), free(shift), free(out);
    return hash;
}

/* Digest of the gradients of rows prepared in every way, of gains and of shifts, every other one added to what is there. The
 * first row has none. */
static uint64_t run_prepare_backward(const qattn_kernels *kernels) {
    enum { ROWS = 70, DIM = 40, PAIRS = 17, TABLE = 64 };
    float *rows = normals(18, 0, ROWS * DIM), *tables = normals(18, 1, ROWS * TABLE);
    float *gain = normals(18, 2, DIM), *shift = normals(18, 3, DIM), *gradients = normals(18, 4, ROWS * DIM);
    float *out = allocate(ROWS * DIM, sizeof *out), *sums = allocate(2 * DIM, sizeof *sums);
    float *workspace = allocate(QATTN_PREPARE_BACKWARD_ROWS * 48, sizeof *workspace);
    uint64_t hash = EMPTY_DIGEST;
    for (size_t d = 0; d < DIM; d++) gradients[d] = -0.0f;
    for (int variant = 0; variant < 3 * 5 * 2; variant++) {
        for (size_t i = 0; i < ROWS * DIM; i++) out[i] = i % 2 ? -0.0f : 1;
        for (size_t d = 0; d < 2 * DIM; d++) sums[d] = d % 2 ? -0.0f : 1;
        const bool is_normalised = variant % 3 != 0, is_layer = variant % 3 == 2;
        const qattn_prepare_backward_args args = {
            .prepare = {.rows = rows,
                        .stride = DIM,
                        .count = ROWS,
                        .dim = DIM,
                        .norm = (qattn_norm)(variant % 3),
                        .epsilon = 0.25f,
                        .gain = gain,
                        .shift = is_layer ? shift : NULL,
                        .rotation = (qattn_rotation)(variant / 3 % 5),
                        .pairing = (qattn_pairing)(variant / 15),
                        .pairs = PAIRS,
                        .tables = tables},
            .gradients = gradients,
            .gradient_stride = DIM,
            .row_gradients = out,
            .row_gradient_stride = DIM,
            .accumulates = variant % 2,
            .gain_gradient = is_normalised ? sums : NULL,
            .shift_gradient = is_layer ? sums + DIM : NULL,
            .workspace = workspace,
        };
        CALL(kernels->prepare_backward(&args));
        hash = digest(digest(hash, out, ROWS * DIM), sums, 2 * DIM);
    }
    free(rows), free(tables), free(gain), free(shift), free(gradients), free(out), free(sums), free(workspace);
    return hash;
}

/* The sum of what rows add to a number of their head: 16 lanes, then a tree. */
static float ordered_sum(const float *terms, size_t n) {
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++) lanes[i % 16] += terms[i];
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* What forward and backward share of one variant of run_backward. */
enum { GRADIENT_HEADS = 2, GRADIENT_QUERIES = 70, GRADIENT_KEYS = 131, GRADIENT_DIM = 20, GRADIENT_VALUE_DIM = 33 };

static qattn_problem gradient_problem(int variant, const double *factors, const float *constant) {
    static const float sinks[GRADIENT_HEADS] = {0.5f, -1}, slopes[GRADIENT_HEADS] = {0.0625f, 0.125f};
    const ptrdiff_t last = GRADIENT_KEYS - GRADIENT_QUERIES + 1;
    qattn_problem problem = {
        .heads = GRADIENT_HEADS,
        .queries = GRADIENT_QUERIES,
        .seq_kv = GRADIENT_KEYS,
        .scale = 0.25,
        .normaliser = (qattn_normaliser)variant,
        .row_constants = variant ? constant : NULL,
        .zeta = 1.0625f,
        .sinks = sinks,
        .first_key_offset = variant % 3 ? last - 40 : -GRADIENT_QUERIES,
        .last_key_offset = last,
    };
    if (variant % 2) {
        problem.row_factors = factors;
        problem.row_factor_strides = (qattn_strides){.head = GRADIENT_QUERIES, .query = 1};
        problem.softcap = 5;
        problem.alibi_slopes = slopes;
        problem.alibi_offset = last - 1;
    }
    return problem;
}

/* Digest of the gradients of two query heads on one key/value head, by every normaliser, with rules of scores for every
 * other one, and of what their scores have against the second block; or of the gradients of numbers of the heads. By
 * products of float32 or of bfloat16. */
static uint64_t run_backward(const qattn_kernels *kernels, bool of_heads, bool in_pairs) {
    enum { ROWS = GRADIENT_HEADS * GRADIENT_QUERIES, DIM = GRADIENT_DIM, VALUE_DIM = GRADIENT_VALUE_DIM };
    static const float constants[] = {0, -0.03125f, -3, 0x1p-20f, 100, 1};
    float *queries = normals(17, 0, ROWS * DIM), *keys = normals(17, 1, GRADIENT_KEYS * DIM);
    float *values = normals(17, 2, GRADIENT_KEYS * VALUE_DIM), *out_gradients = normals(17, 3, ROWS * VALUE_DIM);
    float *lse_gradients = normals(17, 4, ROWS), *scores = allocate(ROWS * QATTN_KEY_BLOCK, sizeof *scores);
    float *out = allocate(ROWS * VALUE_DIM, sizeof *out), *sums = allocate(3 * ROWS, sizeof *sums);
    float *dq = allocate(ROWS * DIM, sizeof *dq), *dk = allocate(GRADIENT_KEYS * DIM, sizeof *dk);
    float *dv = allocate(GRADIENT_KEYS * VALUE_DIM, sizeof *dv);
    const qattn_storage packed_storage = in_pairs ? QATTN_BFLOAT16_PAIRS : QATTN_FLOAT32;
    void *packed = allocate(3, qattn_block_bytes(packed_storage, DIM, VALUE_DIM));
    float *forward_workspace = allocate(qattn_forward_workspace(DIM, VALUE_DIM), 1);
    float *workspace = allocate(qattn_backward_workspace(kernels, DIM, VALUE_DIM), 1);
    double factors[ROWS];
    for (size_t i = 0; i < ROWS; i++) factors[i] = 0.5 + (double)(i % 7) / 4;
    const qattn_strides query_rows = {.head = GRADIENT_QUERIES * DIM, .query = DIM};
    const qattn_strides value_rows = {.head = GRADIENT_QUERIES * VALUE_DIM, .query = VALUE_DIM};
    const qattn_pack_args pack = {
        .keys = keys,
        .values = values,
        .key_stride = DIM,
        .value_stride = VALUE_DIM,
        .key_end = GRADIENT_KEYS,
        .blocks = {.base = packed, .storage = packed_storage, .head_dim = DIM, .value_dim = VALUE_DIM}};
    CALL(kernels->pack(&pack));
    uint64_t hash = EMPTY_DIGEST;
    for (int variant = 0; variant < 6; variant++) {
        const qattn_problem problem = gradient_problem(variant, factors, constants + variant);
        qattn_forward_args forward = {.problem = problem,
                                      .queries_base = queries,
                                      .query_strides = query_rows,
                                      .blocks = pack.blocks,
                                      .out = out,
                                      .out_strides = value_rows,
                                      .references = sums,
                                      .factors = sums + ROWS,
                                      .sum_head_stride = GRADIENT_QUERIES,
                                      .workspace = forward_workspace};
        for (size_t head = 0; head < GRADIENT_HEADS; head++) {
            forward.row_begin = head * GRADIENT_QUERIES;
            forward.row_end = forward.row_begin + GRADIENT_QUERIES;
            CALL(kernels->forward(&forward));
        }
        memset(dq, 0, ROWS * DIM * sizeof *dq);
        memset(dk, 0, GRADIENT_KEYS * DIM * sizeof *dk);
        memset(dv, 0, GRADIENT_KEYS * VALUE_DIM * sizeof *dv);
        const qattn_backward_args backward = {
            .problem = problem,
            .row_end = ROWS,
            .key_end = GRADIENT_KEYS,
            .queries = queries,
            .query_strides = query_rows,
            .keys = keys,
            .values = values,
            .key_stride = DIM,
            .value_stride = VALUE_DIM,
            .out_gradients = out_gradients,
            .out_gradient_strides = value_rows,
            .out = out,
            .out_strides = value_rows,
            .head_dim = DIM,
            .value_dim = VALUE_DIM,
            .in_pairs = in_pairs,
            .lse_gradients = variant < 2 ? lse_gradients : NULL, /* the softmaxes have one */
            .references = sums,
            .factors = sums + ROWS,
            .deltas = sums + 2 * ROWS,
            .sum_head_stride = GRADIENT_QUERIES,
            .query_gradients = dq,
            .query_gradient_strides = query_rows,
            .key_gradients = dk,
            .value_gradients = dv,
            .key_gradient_stride = DIM,
            .value_gradient_stride = VALUE_DIM,
            .workspace = workspace,
        };
        CALL(kernels->deltas(&backward));
        CALL(kernels->backward(&backward));
        if (of_heads) {
            float totals[2 * GRADIENT_HEADS] = {0};
            for (size_t kind = variant % 2 ? 0 : 1; kind < 2; kind++) { /* slopes where there are some */
                CALL((kind ? kernels->log_scale_gradients : kernels->slope_gradients)(&backward, scores));
                for (size_t head = 0; head < GRADIENT_HEADS; head++)
                    totals[kind * GRADIENT_HEADS + head] =
                        ordered_sum(scores + head * GRADIENT_QUERIES, GRADIENT_QUERIES);
            }
            hash = digest(hash, totals, 2 * GRADIENT_HEADS);
            continue;
        }
        hash = digest(digest(digest(hash, dq, ROWS * DIM), dk, GRADIENT_KEYS * DIM), dv, GRADIENT_KEYS * VALUE_DIM);
        CALL(kernels->score_gradients(&backward, 1, scores));
        for (size_t i = 0; i < ROWS * QATTN_KEY_BLOCK; i++) scores[i] += 0; /* the reference has them as a sum */
        hash = digest(hash, scores, ROWS * QATTN_KEY_BLOCK);
    }
    free(queries), free(keys), free(values), free(out_gradients), free(lse_gradients), free(scores), free(out);
    free(sums), free(dq), free(dk), free(dv), free(packed), free(forward_workspace), free(workspace);
    return hash;
}

/* Prints the digest; returns whether it is the one expected. */
static bool report(const char *name, const qattn_kernels *kernels, uint64_t hash, const char *expected) {
    char word[17];
    snprintf(word, sizeof word, "%016llx", (unsigned long long)hash);
    const bool equal = !strcmp(word, expected);
    printf("%s %s %s", name, kernels->name, word);
    if (!equal) printf(" WRONG, expected %s", expected);
    printf("\n");
    return equal;
}

enum { MOST_SETS = 8 };

static bool is_among(const char *name, char **names, size_t count) {
    while (count > 0 && strcmp(name, names[count - 1])) count--;
    return count > 0;
}

/* The sets that this CPU offers, and those whose instructions are emulated; of them those that are named, if any are.
 * Returns their number, or 0 when a name is none of theirs. */
static size_t kernel_sets(const qattn_kernels *sets[MOST_SETS], char **names, size_t name_count) {
    size_t count, found = 0;
    const qattn_kernels *const *available = qattn_available_kernels(&count);
    const qattn_kernels *const emulated[] = {qattn_emulated_tile_kernels(), qattn_emulated_dot_kernels()};
    for (size_t i = 0; i < count + sizeof emulated / sizeof *emulated; i++) {
        const qattn_kernels *set = i < count ? available[i] : emulated[i - count];
        if (name_count == 0 || is_among(set->name, names, name_count)) sets[found++] = set;
    }
    return name_count == 0 || found == name_count ? found : 0;
}

/* Runs one line of the table with each set; returns the number of wrong digests, or -1 when it does not read. */
static int run_line(const char *line, const qattn_kernels *const *available, size_t sets) {
    test_case c;
    int wrong = 0;
    if (sscanf(line, "function %31s %31s", c.name, c.expected) == 2) {
        const bool is_prepare = !strcmp(c.name, "prepare"), is_prepare_backward = !strcmp(c.name, "prepare_backward");
        const bool in_pairs = strstr(c.name, "_pairs") != NULL;
        const bool is_backward = !strncmp(c.name, "backward", 8), is_of_heads = !strncmp(c.name, "head_gradients", 14);
        for (size_t i = 0; i < sets; i++) {
            const uint64_t hash = is_prepare                   ? run_prepare(available[i])
                                  : is_prepare_backward        ? run_prepare_backward(available[i])
                                  : is_backward || is_of_heads ? run_backward(available[i], is_of_heads, in_pairs)
                                                               : run_function(c.name, available[i]);
            wrong += !report(c.name, available[i], hash, c.expected);
        }
        return wrong;
    }
    if (sscanf(line, "%31s %lu %zu %zu %zu %zu %lf %f %15s %ld %15s %15s %31s", c.name, &c.seed, &c.seq_q, &c.seq_kv,
               &c.head_dim, &c.value_dim, &c.scale, &c.sink, c.mask, &c.window, c.storage, c.extra, c.expected) != 13)
        return -1;
    const bool takes_rows = strcmp(c.storage, "int8") != 0;
    for (size_t i = 0; i < sets; i++) {
        for (int way = 0; way < (takes_rows ? 4 : 2); way++)
            wrong += !report(c.name, available[i], run_forward(&c, available[i], way & 2, way & 1), c.expected);
    }
    return wrong;
}

int main(int argc, char **argv) {
    const qattn_kernels *available[MOST_SETS];
    FILE *table = argc >= 2 ? fopen(argv[argc - 1], "r") : NULL;
    if (!table) {
        fprintf(stderr, "usage: cross [SET...] digests.txt\n");
        return 2;
    }
    const size_t sets = kernel_sets(available, argv + 1, (size_t)argc - 2);
    if (sets == 0) {
        fprintf(stderr, "cross: this CPU does not run every set that is named\n");
        return 2;
    }
    char line[256];
    int wrong = 0, lines = 0;
    while (fgets(line, sizeof line, table)) {
        if (line[0] == '#' || line[0] == '\n') continue;
        const int found = run_line(line, available, sets);
        if (found < 0) {
            fprintf(stderr, "cross: cannot read: %s", line);
            return 2;
        }
        wrong += found;
        lines++;
    }
    fclose(table);
    if (lines == 0) {
        fprintf(stderr, "cross: an empty table\n");
        return 2;
    }
    return wrong != 0;
}
