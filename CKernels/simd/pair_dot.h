/* SPDX-License-Identifier: Apache-2.0 */
/* pair_dot.h - the dot of AVX512-BF16, or with QATTN_EMULATED_DOTS the same in plain C, for tests on machines without it.
 *
 *     pair_dot(c, a, b)[n] = a_low b[n]_low + (a_high b[n]_high + c[n]), by fma
 *
 * of a pair *a of bfloat16 and 16 pairs b, the second number of a pair in the upper half. The instruction takes subnormal numbers for 0 and ignores the
 * floating-point mode otherwise: with factors of tile/pair_tiles.inl.h there are none. */
#ifndef QATTN_PAIR_DOT_H
#define QATTN_PAIR_DOT_H

#include "simd/storage.h"

#if defined(QATTN_EMULATED_DOTS)
static _Thread_local size_t QATTN_FUNCTION(dots); /* of a thread, so far */
#endif

QATTN_INLINE f32x16 pair_dot(f32x16 c, const uint32_t *a, u32x16 b) {
#if defined(QATTN_EMULATED_DOTS)
    QATTN_FUNCTION(dots)++;
    const f32x16 high = f32x16_from_bits((u32x16)(*a & 0xffff0000u)), low = f32x16_from_bits((u32x16)(*a << 16));
    return f32x16_fma(low, f32x16_from_bits(b << 16), f32x16_fma(high, f32x16_from_bits(b & 0xffff0000u), c));
#else
    /* In assembly, as the compiler would load the factor by an instruction of its own: 1.5 times the time on a Zen 4. */
    __asm__("vdpbf16ps %1%{1to16%}, %2, %0" : "+v"(c) : "m"(*a), "v"(b));
    return c;
#endif
}

/* Elements 4n to 4n + 3 of a segment of 32 as the pairs (4n + 2, 4n) and (4n + 3, 4n + 1), whose second number comes first. */
QATTN_INLINE void store_dot_order(uint32_t *pairs, const void *elements) {
    u16x32 x;
    memcpy(&x, elements, sizeof x);
    x = __builtin_shufflevector(x, x, 2, 0, 3, 1, 6, 4, 7, 5, 10, 8, 11, 9, 14, 12, 15, 13, 18, 16, 19, 17, 22, 20, 23,
                                21, 26, 24, 27, 25, 30, 28, 31, 29);
    memcpy(pairs, &x, sizeof x);
}

#endif
