/* SPDX-License-Identifier: Apache-2.0 */
/* ceilings.c - one body for each vector width: chains of multiply-adds, and streams of reads. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* madvise */
#endif
#include "CCeilings.h"

#include <stdlib.h>
#include <sys/mman.h>

#pragma STDC FP_CONTRACT ON /* a * b + c is one instruction where the target has it */

enum { STREAMS = 4 };

#define UNROLL _Pragma("clang loop unroll(full)") for

/* CHAINS: enough to cover latency times units (x86: 4 x 2, Arm: 4 x 4), few enough for the registers. */
#define DEFINE_CEILINGS(SET, ATTRIBUTE, LANES, CHAINS)                                                                 \
    typedef float SET##_vector __attribute__((ext_vector_type(LANES)));                                                \
    typedef float SET##_unaligned __attribute__((ext_vector_type(LANES), aligned(4)));                                 \
                                                                                                                       \
    ATTRIBUTE static double SET##_multiply_add(size_t rounds) {                                                        \
        SET##_vector chain[CHAINS], factor = 0.5f, addend = 0.25f;                                                     \
        UNROLL(int i = 0; i < CHAINS; i++) chain[i] = (float)i;                                                        \
        __asm__ volatile("" : "+m"(factor), "+m"(addend)); /* unknown, so that nothing folds */                        \
        for (size_t n = 0; n < rounds; n++) UNROLL(int i = 0; i < CHAINS; i++) {                                       \
                chain[i] = chain[i] * factor + addend;                                                                 \
            }                                                                                                          \
        UNROLL(int i = 1; i < CHAINS; i++) chain[0] += chain[i];                                                       \
        __asm__ volatile("" : "+m"(chain[0])); /* used, so that nothing is left out */                                 \
        return (double)rounds * CHAINS * LANES * 2;                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    /* A few streams of their own, so that the hardware prefetches several pages ahead. */                             \
    ATTRIBUTE static float SET##_read(const float *data, size_t count) {                                               \
        const size_t stream = count / (STREAMS * LANES) * LANES;                                                       \
        SET##_vector sum[STREAMS];                                                                                     \
        UNROLL(int i = 0; i < STREAMS; i++) sum[i] = 0.0f;                                                             \
        for (size_t n = 0; n < stream; n += LANES) UNROLL(int i = 0; i < STREAMS; i++) {                               \
                sum[i] += *(const SET##_unaligned *)(data + (size_t)i * stream + n);                                   \
            }                                                                                                          \
        UNROLL(int i = 1; i < STREAMS; i++) sum[0] += sum[i];                                                          \
        float total = 0;                                                                                               \
        for (int i = 0; i < LANES; i++) total += sum[0][i];                                                            \
        for (size_t n = STREAMS * stream; n < count; n++) total += data[n];                                            \
        return total;                                                                                                  \
    }

#if defined(__x86_64__)
DEFINE_CEILINGS(v4, __attribute__((target("arch=x86-64-v4"))), 16, 12)
DEFINE_CEILINGS(v3, __attribute__((target("arch=x86-64-v3"))), 8, 12)
DEFINE_CEILINGS(base, , 4, 12)

double ceilings_multiply_add(size_t rounds) {
    if (__builtin_cpu_supports("x86-64-v4")) return v4_multiply_add(rounds);
    if (__builtin_cpu_supports("x86-64-v3")) return v3_multiply_add(rounds);
    return base_multiply_add(rounds);
}

float ceilings_read(const float *data, size_t count) {
    if (__builtin_cpu_supports("x86-64-v4")) return v4_read(data, count);
    if (__builtin_cpu_supports("x86-64-v3")) return v3_read(data, count);
    return base_read(data, count);
}
#else
DEFINE_CEILINGS(base, , 4, 24)

double ceilings_multiply_add(size_t rounds) { return base_multiply_add(rounds); }
float ceilings_read(const float *data, size_t count) { return base_read(data, count); }
#endif

float *ceilings_memory(size_t count) {
    const size_t large_page = 2 << 20, bytes = (count * sizeof(float) + large_page - 1) / large_page * large_page;
    float *const data = aligned_alloc(large_page, bytes);
#if defined(MADV_HUGEPAGE)
    if (data) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
}
