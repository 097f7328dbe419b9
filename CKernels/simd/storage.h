/* SPDX-License-Identifier: Apache-2.0 */
/* storage.h - the storage types: widened exactly to float32, rounded from it to nearest even. NaN stays NaN. */
#ifndef QATTN_STORAGE_H
#define QATTN_STORAGE_H

#include "simd/vector.h"

typedef uint16_t u16x16 __attribute__((ext_vector_type(16)));
typedef uint16_t u16x32 __attribute__((ext_vector_type(32)));
typedef uint16_t u16x16_unaligned __attribute__((ext_vector_type(16), aligned(2)));
typedef int8_t i8x16 __attribute__((ext_vector_type(16)));
typedef uint32_t u32x16_unaligned __attribute__((ext_vector_type(16), aligned(4)));
typedef int8_t i8x16_unaligned __attribute__((ext_vector_type(16), aligned(1)));
typedef int8_t i8x32_unaligned __attribute__((ext_vector_type(32), aligned(1)));

QATTN_INLINE f32x16 bf16x16_widen(u16x16 x) { return f32x16_from_bits(__builtin_convertvector(x, u32x16) << 16); }

QATTN_INLINE u16x16 bf16x16_round(f32x16 x) {
    const u32x16 bits = f32x16_bits(x);
    const u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const u32x16 quiet_nan = (bits >> 16) | 0x40; /* rounding could carry a NaN's payload into inf */
    return __builtin_convertvector(x == x ? rounded : quiet_nan, u16x16);
}

/* x as a factor of bfloat16: rounded, or 0 of its sign below `least`. The lower 16 bits are 0. */
QATTN_INLINE f32x16 bf16x16_factor_from(f32x16 x, float least) {
    const u32x16 bits = f32x16_bits(x);
    const u32x16 nearest = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u, nan = (bits & 0xffff0000u) | 0x400000u;
    const f32x16 rounded = f32x16_from_bits(x == x ? nearest : nan);
    return f32x16_abs(rounded) < least ? f32x16_from_bits(bits & 0x80000000u) : rounded;
}

#define QATTN_LEAST_FACTOR          0x1p-56f
#define QATTN_LEAST_GRADIENT_FACTOR 0x1p-31f /* of what is raised by 2^48 */

QATTN_INLINE f32x16 bf16x16_factor(f32x16 x) { return bf16x16_factor_from(x, QATTN_LEAST_FACTOR); }

/* The bits of a number that is one of bfloat16. */
QATTN_INLINE uint16_t bf16_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* Numbers of bfloat16 as factors: 0 of their sign below QATTN_LEAST_FACTOR. */
QATTN_INLINE u16x32 bf16x32_factors_of(u16x32 x) {
    return (x & 0x7fff) < bf16_bits(QATTN_LEAST_FACTOR) ? x & 0x8000 : x;
}

/* The first or the second numbers of 16 pairs. */
QATTN_INLINE f32x16 bf16x32_widen_half(const void *p, bool second) {
    const u32x16 pairs = *(const u32x16_unaligned *)p;
    return f32x16_from_bits(second ? pairs & 0xffff0000u : pairs << 16);
}

/* p[2r] = first[r], p[2r + 1] = second[r], of factors. */
QATTN_INLINE void bf16x32_store_pairs(void *p, f32x16 first, f32x16 second) {
    *(u32x16_unaligned *)p = f32x16_bits(first) >> 16 | f32x16_bits(second);
}

QATTN_INLINE f32x16 f16x16_widen(u16x16 x) {
#if defined(QATTN_AVX512) || defined(QATTN_AVX2) || defined(__aarch64__)
    typedef _Float16 f16x16 __attribute__((ext_vector_type(16)));
    return __builtin_convertvector((f16x16)x, f32x16);
#else
    /* Exponent and mantissa moved into place read as the value times 2^-112, subnormals included; one product repairs
     * the exponent exactly. Inf and NaN, the largest exponent, get the largest exponent of float32. */
    const u32x16 wide = __builtin_convertvector(x, u32x16);
    const u32x16 magnitude = (wide & 0x7fff) << 13;
    const u32x16 finite = f32x16_bits(f32x16_from_bits(magnitude) * 0x1p112f);
    return f32x16_from_bits((magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite) | (wide & 0x8000) << 16);
#endif
}

QATTN_INLINE u16x16 f16x16_round(f32x16 x) {
#if defined(QATTN_AVX512) || defined(QATTN_AVX2) || defined(__aarch64__)
    typedef _Float16 f16x16 __attribute__((ext_vector_type(16)));
    return (u16x16) __builtin_convertvector(x, f16x16);
#else
    const u32x16 bits = f32x16_bits(x);
    const u32x16 magnitude = bits & 0x7fffffffu;
    /* Normal results: rebias the exponent by 112 and round the 13 bits that go, to even; a carry may reach inf.
     * Subnormal results, below 2^-14: adding 0.5 makes the float adder round at the bit that weighs 2^-24. */
    const u32x16 normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const u32x16 tiny = f32x16_bits(f32x16_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    const u32x16 in_range = magnitude < 0x38800000u ? tiny : normal;
    const u32x16 infinite = magnitude >= 0x47800000u ? (u32x16)0x7c00u : in_range;
    const u32x16 half = magnitude > 0x7f800000u ? ((magnitude >> 13) & 0x3ff) | 0x7e00u : infinite;
    return __builtin_convertvector(half | (bits >> 16 & 0x8000u), u16x16);
#endif
}

/* The integer of a symmetric int8 scale: round-to-even(x * inverse_scale), at most 127 from 0, and 0 for NaN. Adding
 * and subtracting 1.5 * 2^23 rounds; larger products than it can round are beyond 127 already. */
QATTN_INLINE f32x16 int8x16_quantised(f32x16 x, f32x16 inverse_scale) {
    const f32x16 magic = f32x16_splat(0x1.8p23f), most = f32x16_splat(127);
    const f32x16 product = x * inverse_scale;
    const f32x16 bounded = product > most ? most : product < -most ? -most : product;
    return bounded == bounded ? (bounded + magic) - magic : f32x16_splat(0);
}

/* The integers of 32 elements of int8. */
QATTN_INLINE i16x32 i8x32_widen(const void *p) { return __builtin_convertvector(*(const i8x32_unaligned *)p, i16x32); }

/* p[2r] = even[r], p[2r + 1] = odd[r], of integers. */
QATTN_INLINE void i8x32_store_pairs(void *p, f32x16 even, f32x16 odd) {
    const i8x16 a = __builtin_convertvector(even, i8x16), b = __builtin_convertvector(odd, i8x16);
    *(i8x32_unaligned *)p = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24,
                                                    9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* p[2r] = x[r], of integers, or p[2r + 1] for the second of each pair; the other stays. */
QATTN_INLINE void i8x32_store_half(void *p, bool second, f32x16 x) {
    typedef uint8_t u8x16 __attribute__((ext_vector_type(16)));
    const u16x16 lanes = __builtin_convertvector((u8x16) __builtin_convertvector(x, i8x16), u16x16);
    const u16x16 old = *(const u16x16_unaligned *)p; /* the second has the upper bits */
    *(u16x16_unaligned *)p = second ? (old & 0xff) | lanes << 8 : (old & 0xff00) | lanes;
}

/* The same of factors. */
QATTN_INLINE void bf16x32_store_half(void *p, bool second, f32x16 x) {
    const f32x16 first = bf16x32_widen_half(p, false);
    bf16x32_store_pairs(p, second ? first : x, second ? x : bf16x32_widen_half(p, true));
}

/* How floats become integers of 15 bits and a sign: x = integer * step, integer = x * factor rounded. */
typedef struct integer_scale {
    float factor, step;
} integer_scale;

/* The power of two for which the integer of a row's largest magnitude, whose bits these are, has its 15th bit set: so
 * that integers are off by at most 2^-15 of the largest. The step is NaN if an element is NaN or infinite. Exponents
 * below 15 count as 15, so that the step, and of magnitudes below 2^-111 the factor too, are normal numbers. */
QATTN_INLINE integer_scale integer_scale_of(uint32_t largest_bits) {
    const uint32_t exponent = largest_bits >> 23 < 15 ? 15 : largest_bits >> 23;
    const uint32_t factor = (268 - exponent) << 23, step = exponent == 255 ? 0x7fc00000u : (exponent - 14) << 23;
    integer_scale scale;
    memcpy(&scale.factor, &factor, sizeof factor);
    memcpy(&scale.step, &step, sizeof step);
    return scale;
}

/* round-to-even(x * factor), at most 32767 from 0, anything for NaN: the product is exact, and adding 1.5 * 2^23 leaves
 * the integer in the lower bits. */
QATTN_INLINE i16x16 i16x16_quantised(f32x16 x, float factor) {
    const f32x16 product = x * f32x16_splat(factor), most = f32x16_splat(32767);
    const f32x16 bounded = f32x16_max(product < most ? product : most, -most);
    return __builtin_convertvector(f32x16_bits(bounded + f32x16_splat(0x1.8p23f)), i16x16);
}

QATTN_INLINE void i16x16_store(void *p, i16x16 x) {
    typedef int16_t i16x16_unaligned __attribute__((ext_vector_type(16), aligned(2)));
    *(i16x16_unaligned *)p = x;
}

/* The larger magnitudes, as the bits of a float: NaN, of larger bits than any number, wins. */
QATTN_INLINE u32x16 u32x16_larger_magnitude(u32x16 largest, f32x16 x) {
    return __builtin_elementwise_max(largest, f32x16_bits(x) & 0x7fffffffu);
}

/* Elements [0, 16) of a row of the given type, which is not int8, as float32. */
QATTN_INLINE f32x16 f32x16_load_storage(const void *p, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) return f32x16_load(p);
    const u16x16 x = *(const u16x16_unaligned *)p;
    return storage == QATTN_BFLOAT16 ? bf16x16_widen(x) : f16x16_widen(x);
}

/* The same with lanes permuted, in the order in which they are widened fastest; f32x16_ordered restores the order of
 * elements, and operations lane by lane may stand in between. AVX2 takes the halves of eight pairs of bfloat16 where
 * they are, three operations for six. */
QATTN_INLINE f32x16 f32x16_load_unordered(const void *p, qattn_storage storage) {
#if defined(QATTN_AVX2)
    if (storage == QATTN_BFLOAT16) {
        typedef uint32_t u32x8 __attribute__((ext_vector_type(8)));
        typedef uint32_t u32x8_unaligned __attribute__((ext_vector_type(8), aligned(2)));
        const u32x8 pairs = *(const u32x8_unaligned *)p, first = pairs << 16, second = pairs & 0xffff0000u;
        return f32x16_from_bits(
            __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    }
#endif
    return f32x16_load_storage(p, storage);
}

QATTN_INLINE f32x16 f32x16_ordered(f32x16 x, qattn_storage storage) {
#if defined(QATTN_AVX2)
    if (storage == QATTN_BFLOAT16)
        return __builtin_shufflevector(x, x, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
    (void)storage;
    return x;
}

/* The first or the second four of each eight numbers of bfloat16. */
QATTN_INLINE f32x16 bf16x32_widen_fours(u16x32 x, bool second) {
    const u16x32 zero = {0};
    return second ? (f32x16)__builtin_shufflevector(zero, x, 0, 36, 0, 37, 0, 38, 0, 39, 8, 44, 8, 45, 8, 46, 8, 47, 16,
                                                    52, 16, 53, 16, 54, 16, 55, 24, 60, 24, 61, 24, 62, 24, 63)
                  : (f32x16)__builtin_shufflevector(zero, x, 0, 32, 0, 33, 0, 34, 0, 35, 8, 40, 8, 41, 8, 42, 8, 43, 16,
                                                    48, 16, 49, 16, 50, 16, 51, 24, 56, 24, 57, 24, 58, 24, 59);
}

/* Elements [d, d + 4) of four rows of the given type, which is not int8, one behind the other. */
QATTN_INLINE f32x16 f32x16_load_fours(const char *const rows[4], size_t d, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) {
        f32x4 x[4];
        QATTN_UNROLL
        for (size_t r = 0; r < 4; r++) memcpy(&x[r], rows[r] + d * sizeof(float), sizeof x[r]);
        return QATTN_JOINED(x);
    }
    typedef uint16_t u16x4 __attribute__((ext_vector_type(4)));
    u16x4 x[4];
    QATTN_UNROLL
    for (size_t r = 0; r < 4; r++) memcpy(&x[r], rows[r] + d * sizeof(uint16_t), sizeof x[r]);
    const u16x16 joined = QATTN_JOINED(x);
    return storage == QATTN_BFLOAT16 ? bf16x16_widen(joined) : f16x16_widen(joined);
}

/* The reverse of f32x16_load_storage; int8 takes integers, bfloat16 pairs take factors. */
QATTN_INLINE void f32x16_store_storage(void *p, f32x16 x, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) f32x16_store(p, x);
    else if (storage == QATTN_INT8) *(i8x16_unaligned *)p = __builtin_convertvector(x, i8x16);
    else *(u16x16_unaligned *)p = storage == QATTN_FLOAT16 ? f16x16_round(x) : bf16x16_round(x);
}

/* The same, but of int8, for the lanes whose bit of `bits` is set; the others keep what stands there. */
QATTN_INLINE void f32x16_store_selected(void *p, uint32_t bits, f32x16 x, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) {
        f32x16_store(p, f32x16_select(bits, x, f32x16_load(p)));
        return;
    }
    const u16x16 lane_bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    const i16x16 chosen = ((u16x16)(uint16_t)bits & lane_bit) != 0;
    const u16x16 lanes = storage == QATTN_BFLOAT16 ? bf16x16_round(x) : f16x16_round(x);
    *(u16x16_unaligned *)p = chosen ? lanes : *(u16x16_unaligned *)p;
}

QATTN_INLINE size_t storage_size(qattn_storage storage) {
    return storage == QATTN_FLOAT32 ? 4 : storage == QATTN_INT8 ? 1 : 2;
}

/* Element `index` of an array of the given type. */
QATTN_INLINE const void *storage_at(const void *base, ptrdiff_t index, qattn_storage storage) {
    return (const char *)base + index * (ptrdiff_t)storage_size(storage);
}

/* Copies n < 16 elements. In pieces, without a call: across one, a loop would keep nothing in vector registers. */
QATTN_INLINE void copy_first(char *to, const char *from, size_t n, qattn_storage storage) {
    QATTN_UNROLL
    for (size_t half = 2; half <= QATTN_LANES; half *= 2) {
        const size_t piece = QATTN_LANES / half;
        if (!(n & piece)) continue;
        memcpy(to, from, piece * storage_size(storage));
        to += piece * storage_size(storage);
        from += piece * storage_size(storage);
    }
}

/* The first n <= 16 elements, and 0 behind them: nothing past the end of a row is read. */
QATTN_INLINE f32x16 f32x16_load_first(const void *p, size_t n, qattn_storage storage) {
    if (n >= QATTN_LANES) return f32x16_load_storage(p, storage);
    float lanes[QATTN_LANES] = {0}; /* all-zero bytes are 0 in every type */
    copy_first((char *)lanes, p, n, storage);
    return f32x16_load_storage(lanes, storage);
}

QATTN_INLINE void f32x16_store_first(void *p, size_t n, f32x16 x, qattn_storage storage) {
    if (n >= QATTN_LANES) {
        f32x16_store_storage(p, x, storage);
        return;
    }
    float lanes[QATTN_LANES];
    f32x16_store_storage(lanes, x, storage);
    copy_first(p, (const char *)lanes, n, storage);
}

#endif
