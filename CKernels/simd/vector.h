/* SPDX-License-Identifier: Apache-2.0 */
/* vector.h - the vector vocabulary: a value of 16 floats on every instruction set, in clang's own vector types.
 *
 * One register of AVX-512, two of AVX2, four of NEON or SSE. Lane r of a result depends on lane r of the operands alone
 * unless the name says otherwise, so the bits do not depend on how many registers a value takes.
 * This folder is the only place for intrinsics. */
#ifndef QATTN_VECTOR_H
#define QATTN_VECTOR_H

#include "isa/isa.h"

typedef float f32x16 __attribute__((ext_vector_type(16)));
typedef float f32x16_unaligned __attribute__((ext_vector_type(16), aligned(4)));
typedef int32_t i32x16 __attribute__((ext_vector_type(16)));
typedef uint32_t u32x16 __attribute__((ext_vector_type(16)));
typedef int16_t i16x16 __attribute__((ext_vector_type(16)));
typedef int16_t i16x32 __attribute__((ext_vector_type(32)));

QATTN_INLINE f32x16 f32x16_load(const float *p) { return *(const f32x16_unaligned *)p; }
QATTN_INLINE void f32x16_store(float *p, f32x16 x) { *(f32x16_unaligned *)p = x; }
QATTN_INLINE f32x16 f32x16_splat(float x) { return (f32x16)x; }
QATTN_INLINE u32x16 f32x16_bits(f32x16 x) { return (u32x16)x; }
QATTN_INLINE f32x16 f32x16_from_bits(u32x16 x) { return (f32x16)x; }

/* Keeps what is made of *second behind the making of *first: left alone, the compiler interleaves the exponentials of a
 * whole tile, 24 values and their intermediates, and spills most of them. No instruction results. */
QATTN_INLINE void f32x16_in_order(f32x16 *first, f32x16 *second) {
#if defined(QATTN_AVX512)
    __asm__ volatile("" : "+v"(*first), "+v"(*second));
#else
    (void)first, (void)second;
#endif
}

/* A compiler barrier: the array at x is in memory here, not in registers. Without it the compiler keeps some of more sums
 * than it has registers for in registers, and spills others with every step. Emits no instruction. */
QATTN_INLINE void f32x16_stay_in_memory(f32x16 *x) { __asm__ volatile("" : : "r"(x) : "memory"); }

/* Each pointer is a register of its own here: left alone, the compiler walks along both with one index, and a product
 * that takes an operand from memory by an index is two operations on some CPUs. No instruction results. */
#define QATTN_OWN_POINTERS(a, b) __asm__ volatile("" : "+r"(a), "+r"(b))

/* The larger of x and the lane of floor; floor where x is NaN. floor itself must not be NaN. */
QATTN_INLINE f32x16 f32x16_max(f32x16 x, f32x16 floor) { return x > floor ? x : floor; }

QATTN_INLINE f32x16 f32x16_abs(f32x16 x) { return __builtin_elementwise_abs(x); }

/* Lanes in fours. */
typedef float f32x4 __attribute__((ext_vector_type(4)));
#define QATTN_JOINED(x) /* of four vectors of four lanes */                                                            \
    __builtin_shufflevector(__builtin_shufflevector((x)[0], (x)[1], 0, 1, 2, 3, 4, 5, 6, 7),                           \
                            __builtin_shufflevector((x)[2], (x)[3], 0, 1, 2, 3, 4, 5, 6, 7), 0, 1, 2, 3, 4, 5, 6, 7,   \
                            8, 9, 10, 11, 12, 13, 14, 15)

/* x[r] = p[r mod 4]. */
QATTN_INLINE f32x16 f32x16_repeat_four(const float *p) {
    f32x4 x;
    memcpy(&x, p, sizeof x);
    return __builtin_shufflevector(x, x, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
}

/* p[step q + r] = x[4 q + r], r < 4. */
QATTN_INLINE void f32x16_store_fours(float *p, size_t step, f32x16 x) {
    const f32x4 fours[4] = {__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7),
                            __builtin_shufflevector(x, x, 8, 9, 10, 11), __builtin_shufflevector(x, x, 12, 13, 14, 15)};
    QATTN_UNROLL
    for (size_t q = 0; q < 4; q++) memcpy(p + q * step, &fours[q], sizeof fours[q]);
}

/* Lane 4 q + r is lane 4 r + q of x. */
QATTN_INLINE f32x16 f32x16_transposed_fours(f32x16 x) {
    return __builtin_shufflevector(x, x, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

/* (x[0] + x[1]) + (x[2] + x[3]) of every four lanes, in all of them. */
QATTN_INLINE f32x16 f32x16_sums_of_fours(f32x16 x) {
    const f32x16 pairs = x + __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return pairs + __builtin_shufflevector(pairs, pairs, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}

#if defined(__x86_64__) && !defined(QATTN_AVX2) && !defined(QATTN_AVX512)
/* a * b + c, rounded once, where no instruction does it. The product of two floats is exact in double, and a double sum
 * that is rounded to odd (an inexact sum with an even last bit moves one step towards the exact value's side) has
 * enough bits left for the second rounding to be right (Boldo and Melquiond 2008). Comparisons with NaN are false, so
 * inf and NaN pass. Not inlined: hundreds of copies would be megabytes. */
QATTN_NOINLINE f32x16 f32x16_fma(f32x16 a, f32x16 b, f32x16 c) {
    typedef double f64x16 __attribute__((ext_vector_type(16)));
    typedef int64_t i64x16 __attribute__((ext_vector_type(16)));
    const f64x16 product = __builtin_convertvector(a, f64x16) * __builtin_convertvector(b, f64x16);
    const f64x16 addend = __builtin_convertvector(c, f64x16);
    const f64x16 sum = product + addend;
    const f64x16 addend_part = sum - product;
    const f64x16 error = (product - (sum - addend_part)) + (addend - addend_part);
    const i64x16 bits = (i64x16)sum;
    const i64x16 inexact_and_even = ((error > 0.0) | (error < 0.0)) & ((bits & 1) - 1);
    const i64x16 outward = (((i64x16)error ^ bits) >> 63) | 1; /* 1 where |exact| > |sum|, else -1 */
    const i64x16 odd = bits + (outward & inexact_and_even);
    return __builtin_convertvector((f64x16)odd, f32x16);
}
#else
/* a * b + c, rounded once. */
QATTN_INLINE f32x16 f32x16_fma(f32x16 a, f32x16 b, f32x16 c) { return __builtin_elementwise_fma(a, b, c); }
#endif

/* x where bit r of bits is set, otherwise other. */
QATTN_INLINE f32x16 f32x16_select(uint32_t bits, f32x16 x, f32x16 other) {
#if defined(QATTN_AVX512)
    return (f32x16)_mm512_mask_blend_ps((__mmask16)bits, (__m512)other, (__m512)x);
#else
    const i32x16 lane_bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return ((i32x16)(int32_t)bits & lane_bit) != 0 ? x : other;
#endif
}

/* a[2r] b[2r] + a[2r + 1] b[2r + 1], exactly; neither may hold -32768, whose square has no room twice. */
QATTN_INLINE i32x16 i16x32_dot_pairs(i16x32 a, i16x32 b) {
#if defined(QATTN_AVX512)
    return (i32x16)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(QATTN_AVX2)
    typedef int32_t i32x8 __attribute__((ext_vector_type(8)));
#define HALF(x, n)                                                                                                     \
    (__m256i) __builtin_shufflevector(x, x, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9, n + 10,  \
                                      n + 11, n + 12, n + 13, n + 14, n + 15)
    const i32x8 low = (i32x8)_mm256_madd_epi16(HALF(a, 0), HALF(b, 0));
    const i32x8 high = (i32x8)_mm256_madd_epi16(HALF(a, 16), HALF(b, 16));
#undef HALF
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__x86_64__)
    typedef int32_t i32x4 __attribute__((ext_vector_type(4)));
#define DOT_QUARTER(n)                                                                                                 \
    (i32x4) _mm_madd_epi16((__m128i)__builtin_shufflevector(a, a, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7), \
                           (__m128i)__builtin_shufflevector(b, b, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7))
    const i32x4 x0 = DOT_QUARTER(0), x1 = DOT_QUARTER(8), x2 = DOT_QUARTER(16), x3 = DOT_QUARTER(24);
#undef DOT_QUARTER
    return __builtin_shufflevector(__builtin_shufflevector(x0, x1, 0, 1, 2, 3, 4, 5, 6, 7),
                                   __builtin_shufflevector(x2, x3, 0, 1, 2, 3, 4, 5, 6, 7), 0, 1, 2, 3, 4, 5, 6, 7, 8,
                                   9, 10, 11, 12, 13, 14, 15);
#else
    typedef int32_t i32x32 __attribute__((ext_vector_type(32)));
    const i32x32 products = __builtin_convertvector(a, i32x32) * __builtin_convertvector(b, i32x32);
    return products.even + products.odd;
#endif
}

/* The same two numbers, the lower half of `pair` first, in every place of two. */
QATTN_INLINE i16x32 i16x32_splat_pair(int32_t pair) { return (i16x32)(i32x16)pair; }

/* Bit r is set where x[r] != 0. */
QATTN_INLINE uint32_t u8x16_nonzero_bits(const uint8_t *x) {
#if defined(QATTN_AVX512) || defined(QATTN_AVX2)
    const __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return 0xffffu & ~(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
#else
    uint32_t bits = 0;
    for (uint32_t r = 0; r < 16; r++) bits |= (uint32_t)(x[r] != 0) << r;
    return bits;
#endif
}

/* Whether every lane is at most `bound`; NaN is not. */
QATTN_INLINE bool f32x16_all_at_most(f32x16 x, float bound) {
#if defined(QATTN_AVX512)
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_NLE_UQ) == 0;
#else
    return __builtin_reduce_and((i32x16)(x <= f32x16_splat(bound))) != 0;
#endif
}

/* Bit r is set where x[r] == value. */
QATTN_INLINE uint32_t f32x16_equal_bits(f32x16 x, float value) {
#if defined(QATTN_AVX512)
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(value), _CMP_EQ_OQ);
#else
    uint32_t bits = 0;
    for (uint32_t r = 0; r < 16; r++) bits |= (uint32_t)(x[r] == value) << r;
    return bits;
#endif
}

/* Shuffles of two vectors that are one instruction each, without an index operand. */
#define QATTN_LOW_HALVES(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define QATTN_HIGH_HALVES(a, b)                                                                                        \
    __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define QATTN_EVEN_QUARTERS(a, b)                                                                                      \
    __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define QATTN_ODD_QUARTERS(a, b)                                                                                       \
    __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#define QATTN_LOW_PAIRS(a, b)  __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define QATTN_HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)

/* Rows per reduction below: a tile has at most this many. */
enum { REDUCE_ROWS = 6 };

/* Of six rows of 16 lanes, the tree over each row's lanes: r with r + 8, then r + 4, r + 2, r + 1. Row i's result
 * stands in lanes 2i and 2i + 1; the last four lanes repeat others. COMBINE(x, y) is commutative. Interleaving the rows
 * makes one instruction reduce several of them. */
#define ROWS_REDUCE(name, COMBINE)                                                                                     \
    QATTN_INLINE f32x16 name(const f32x16 x[REDUCE_ROWS]) {                                                            \
        f32x16 half[3];                                                                                                \
        QATTN_UNROLL                                                                                                   \
        for (int i = 0; i < 3; i++)                                                                                    \
            half[i] = COMBINE(QATTN_LOW_HALVES(x[2 * i], x[2 * i + 1]), QATTN_HIGH_HALVES(x[2 * i], x[2 * i + 1]));    \
        const f32x16 a = COMBINE(QATTN_EVEN_QUARTERS(half[0], half[1]), QATTN_ODD_QUARTERS(half[0], half[1]));         \
        const f32x16 b = COMBINE(QATTN_EVEN_QUARTERS(half[2], half[2]), QATTN_ODD_QUARTERS(half[2], half[2]));         \
        const f32x16 pair =                                                                                            \
            COMBINE(__builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29),           \
                    __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31));        \
        return COMBINE(pair,                                                                                           \
                       __builtin_shufflevector(pair, pair, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));     \
    }
QATTN_INLINE f32x16 f32x16_add(f32x16 x, f32x16 y) { return x + y; }
ROWS_REDUCE(rows_max, f32x16_max)
ROWS_REDUCE(rows_sum, f32x16_add)
#undef ROWS_REDUCE

/* The lane of rows_max and rows_sum that holds row i. */
QATTN_INLINE size_t row_lane(size_t i) { return 2 * i; }

/* The same tree of sixteen rows, row i's result in lane i. */
#define SIXTEEN_ROWS_REDUCE(name, COMBINE)                                                                             \
    QATTN_INLINE f32x16 name(const f32x16 x[QATTN_LANES]) {                                                            \
        f32x16 quarter[4]; /* of rows n, n + 4, n + 8 and n + 12 */                                                    \
        QATTN_UNROLL                                                                                                   \
        for (int n = 0; n < 4; n++) {                                                                                  \
            const f32x16 a = COMBINE(QATTN_LOW_HALVES(x[n], x[n + 4]), QATTN_HIGH_HALVES(x[n], x[n + 4]));             \
            const f32x16 b = COMBINE(QATTN_LOW_HALVES(x[n + 8], x[n + 12]), QATTN_HIGH_HALVES(x[n + 8], x[n + 12]));   \
            quarter[n] = COMBINE(QATTN_EVEN_QUARTERS(a, b), QATTN_ODD_QUARTERS(a, b));                                 \
        }                                                                                                              \
        f32x16 pair[2];                                                                                                \
        QATTN_UNROLL                                                                                                   \
        for (int n = 0; n < 2; n++)                                                                                    \
            pair[n] = COMBINE(QATTN_LOW_PAIRS(quarter[2 * n], quarter[2 * n + 1]),                                     \
                              QATTN_HIGH_PAIRS(quarter[2 * n], quarter[2 * n + 1]));                                   \
        const f32x16 a = pair[0], b = pair[1];                                                                         \
        return COMBINE(__builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30),       \
                       __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31));      \
    }
SIXTEEN_ROWS_REDUCE(sixteen_rows_max, f32x16_max)
SIXTEEN_ROWS_REDUCE(sixteen_rows_sum, f32x16_add)
#undef SIXTEEN_ROWS_REDUCE

/* Lane 4 g + i of x[c] becomes lane 4 g + c of x[i]: a 4 x 4 transposition in every quarter. Each shuffle is one
 * instruction without an index operand. */
QATTN_INLINE void f32x16_transpose_quarters(f32x16 x[4]) {
    f32x16 low[2], high[2];
    QATTN_UNROLL
    for (int i = 0; i < 2; i++) {
        const f32x16 a = x[2 * i], b = x[2 * i + 1];
        low[i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        high[i] = __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    x[0] = QATTN_LOW_PAIRS(low[0], low[1]);
    x[1] = QATTN_HIGH_PAIRS(low[0], low[1]);
    x[2] = QATTN_LOW_PAIRS(high[0], high[1]);
    x[3] = QATTN_HIGH_PAIRS(high[0], high[1]);
}

#endif
