/* SPDX-License-Identifier: Apache-2.0 */
/* dispatch.c - which kernel sets this CPU can run, best first. */
#define _DEFAULT_SOURCE /* for syscall() */
#include "attention/forward_layout.h"
#include "tile/gradient_layout.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const qattn_kernels qattn_kernels_portable;
#if defined(__x86_64__)
extern const qattn_kernels qattn_kernels_x86_64_v3, qattn_kernels_x86_64_v4, qattn_kernels_x86_64_v4_bf16,
    qattn_kernels_x86_64_amx;
#elif defined(__aarch64__)
extern const qattn_kernels qattn_kernels_arm64_neon;
#endif

#if defined(__x86_64__)
/* Whether this process may use tile instructions on bfloat16 and on bytes: the CPU has them, and vectors that round to
 * bfloat16 beside them; the system saves their registers (XCR0 bits 17 and 18), and grants this process and its threads to
 * come the larger of the two, which is asked for once. */
static bool tile_unit_is_ours(void) {
#if defined(__linux__)
    enum {
        REQUEST_PERMISSION = 0x1023,
        TILE_DATA = 18,
        TILE_STATE = 3 << 17,
        BF16_TILES_BYTES = 1 << 22 | 3 << 24,
        ROUNDS = 1 << 5
    };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & 1 << 27)) return false; /* OSXSAVE: xgetbv exists */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BF16_TILES_BYTES) != BF16_TILES_BYTES) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & ROUNDS)) return false;
    unsigned saved, upper;
    __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    if ((saved & TILE_STATE) != TILE_STATE) return false;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}
#endif

/* The sets of a list but for the first, and their number in *count. */
#define SETS_BEHIND(list, skipped, count) (*(count) = sizeof list / sizeof *list - (size_t)(skipped), list + (skipped))

const qattn_kernels *const *qattn_available_kernels(size_t *count) {
#if defined(__x86_64__)
    /* A dot of two products takes the time of one multiply-add on a Zen 4, and of four on an Emerald Rapids. */
    static const qattn_kernels *const best_of_intel[] = {&qattn_kernels_x86_64_amx, &qattn_kernels_x86_64_v4,
                                                         &qattn_kernels_x86_64_v4_bf16, &qattn_kernels_x86_64_v3,
                                                         &qattn_kernels_portable};
    static const qattn_kernels *const best_of_others[] = {&qattn_kernels_x86_64_v4_bf16, &qattn_kernels_x86_64_v4,
                                                          &qattn_kernels_x86_64_v3, &qattn_kernels_portable};
    /* The words are those of the sets' target regions, and cover the operating system's part too. */
    __builtin_cpu_init();
    const bool v4 = __builtin_cpu_supports("x86-64-v4"), dots = v4 && __builtin_cpu_supports("avx512bf16");
    const bool tiles = dots && tile_unit_is_ours();
    if (tiles || (dots && __builtin_cpu_is("intel"))) return SETS_BEHIND(best_of_intel, !tiles, count);
    return SETS_BEHIND(best_of_others, dots ? 0 : v4 ? 1 : __builtin_cpu_supports("x86-64-v3") ? 2 : 3, count);
#elif defined(__aarch64__)
    static const qattn_kernels *const best_first[] = {&qattn_kernels_arm64_neon, &qattn_kernels_portable};
    return SETS_BEHIND(best_first, 0, count); /* NEON is part of 64-bit ARM */
#else
    static const qattn_kernels *const best_first[] = {&qattn_kernels_portable};
    return SETS_BEHIND(best_first, 0, count);
#endif
}

/* Intel's CPUs with AVX-512, which are servers with few exceptions, are read in quarters. Blocks of more than a megabyte count as in memory
 * there, half of what L2 has on those with tile instructions: the last cache is slow (26 GB/s from it, asked or not; in L2 asking takes
 * 15 to 30 % of one row's speed, 10 % of three's), and a model's layers pass through the caches one after another, so that the
 * 1.5 MB of a layer are in memory again when their turn comes. Elsewhere more than 64 MB count as in memory: more than the last
 * cache that one process usually has to itself. On x86 CPUs that are not Intel's, calls of up to 16 MB count as in memory as well, for the sake of
 * such layers: from the last cache of a Zen 4 AVX-512 reads them as fast either way, AVX2 up to 12 % slower; from memory AVX-512 gains a third,
 * AVX2 a sixth.
 *
 * On Intel's CPUs keys are best packed on the way for all rows that one call takes: packing all of them first, and reading
 * them back, takes 1.5 times as long with 18 rows over 4096 keys of d 64, 1.05 times with 128 rows over 64 to 256. On a Zen 4
 * 32 rows of d 64 gain nothing. */
qattn_reading qattn_reading_of(const qattn_kernels *kernels) {
    qattn_reading reading = {
        .in_quarters = kernels->has_tiles, .cached_above = 0, .cached_most = 64 << 20, .unpacked_rows = 16};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_is("intel")) {
        reading.in_quarters |= kernels == &qattn_kernels_x86_64_v4 || kernels == &qattn_kernels_x86_64_v4_bf16;
        reading.unpacked_rows = QATTN_QUERY_BLOCK;
    } else {
        reading.cached_above = 16 << 20;
    }
#endif
    if (reading.in_quarters) {
        reading.cached_above = 0;
        reading.cached_most = 1 << 20;
    }
    return reading;
}

/* What the features are for: f16c and avx512_bf16 widen or multiply 16-bit storage, avx512_vnni multiplies int8, and amx
 * multiplies bfloat16 and int8. */
const char *qattn_cpu_features(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        if (tile_unit_is_ours()) return "avx2 fma f16c avx512f avx512vnni avx512bf16 amx";
        if (__builtin_cpu_supports("avx512bf16")) return "avx2 fma f16c avx512f avx512vnni avx512bf16";
        return __builtin_cpu_supports("avx512vnni") ? "avx2 fma f16c avx512f avx512vnni" : "avx2 fma f16c avx512f";
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2 fma f16c";
    return "sse2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "";
#endif
}

/* a * b, or SIZE_MAX. */
static size_t product(size_t a, size_t b) {
    size_t result;
    return __builtin_mul_overflow(a, b, &result) ? SIZE_MAX : result;
}

/* a + b, or SIZE_MAX. */
static size_t sum(size_t a, size_t b) {
    size_t result;
    return __builtin_add_overflow(a, b, &result) ? SIZE_MAX : result;
}

/* dim rounded up to QATTN_LANES, or SIZE_MAX. */
static size_t lanes(size_t dim) { return dim > SIZE_MAX - QATTN_LANES ? SIZE_MAX : qattn_round_up(dim, QATTN_LANES); }

size_t qattn_block_bytes(qattn_storage storage, size_t head_dim, size_t value_dim) {
    const size_t size = storage == QATTN_FLOAT32 ? 4 : storage == QATTN_INT8 ? 1 : 2;
    const size_t scales = storage == QATTN_INT8             ? 2 * QATTN_KEY_BLOCK * sizeof(float)
                          : storage == QATTN_BFLOAT16_PAIRS ? QATTN_ALIGNMENT
                                                            : 0;
    const size_t channels = sum(head_dim, qattn_channel_padding(head_dim, storage));
    return sum(product(sum(channels, lanes(value_dim)), QATTN_KEY_BLOCK * size), scales);
}

size_t qattn_state_floats(size_t value_dim) { return sum(lanes(value_dim), 2 * QATTN_LANES); }

/* Whether the workspaces of such rows can be counted: they take less than 2^20 times a row. */
static bool rows_have_room(size_t head_dim, size_t value_dim) {
    return head_dim <= SIZE_MAX >> 20 && value_dim <= SIZE_MAX >> 20;
}

size_t qattn_forward_workspace(size_t head_dim, size_t value_dim) {
    if (!rows_have_room(head_dim, value_dim)) return SIZE_MAX;
    /* Of all storages, the one whose keys are filled up most. */
    const size_t channels = head_dim + qattn_channel_padding(head_dim, QATTN_BFLOAT16_PAIRS);
    const size_t tiles = forward_layout_of(channels, value_dim, QUERY_TILES, TILE_ROWS).floats;
    const size_t bands = forward_layout_of(channels, value_dim, QUERY_UNITS, UNIT_ROWS).floats;
    return sizeof(float) * qattn_max(tiles, bands);
}

size_t qattn_backward_workspace(const qattn_kernels *kernels, size_t head_dim, size_t value_dim) {
    if (!rows_have_room(head_dim, value_dim)) return SIZE_MAX;
    const size_t bytes = kernels->has_tiles ? GRADIENT_BYTES_OF_TILE_UNIT : GRADIENT_BYTES;
    const size_t in_place = gradient_layout_for(head_dim, value_dim, true, bytes).floats;
    const size_t copied = gradient_layout_for(head_dim, value_dim, false, bytes).floats;
    const size_t in_pairs = pair_gradient_layout_for(head_dim, value_dim, bytes).floats;
    return sizeof(float) * qattn_max(qattn_max(in_place, copied), in_pairs);
}
