/* SPDX-License-Identifier: Apache-2.0 */
/* storage.h - the storage types: widened exactly to float32, rounded from it to nearest even. NaN stays NaN. */
#ifndef QATTN_STORAGE_H
#define QATTN_STORAGE_H

#include "simd/vector.h"

typedef uint16_t u16x16 __attribute__((ext_vector_type(16)));
typedef uint16_t u16x16_unaligned __attribute__((ext_vector_type(16), aligned(2)));
typedef int8_t i8x16 __attribute__((ext_vector_type(16)));
typedef int8_t i8x16_unaligned __attribute__((ext_vector_type(16), aligned(1)));

QATTN_INLINE f32x16 bf16x16_widen(u16x16 x) { return f32x16_from_bits(__builtin_convertvector(x, u32x16) << 16); }

QATTN_INLINE u16x16 bf16x16_round(f32x16 x) {
    const u32x16 bits = f32x16_bits(x);
    const u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const u32x16 quiet_nan = (bits >> 16) | 0x40; /* rounding could carry a NaN's payload into inf */
    return __builtin_convertvector(x == x ? rounded : quiet_nan, u16x16);
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
QATTN_INLINE f32x16 int8x16_quantised(f32x16 x, float inverse_scale) {
    const f32x16 magic = f32x16_splat(0x1.8p23f), most = f32x16_splat(127);
    const f32x16 product = x * f32x16_splat(inverse_scale);
    const f32x16 bounded = product > most ? most : product < -most ? -most : product;
    return bounded == bounded ? (bounded + magic) - magic : f32x16_splat(0);
}

/* The largest magnitude of n elements, as the bits of a float; NaN, of larger bits than any number, wins. */
QATTN_INLINE uint32_t u32x16_largest(u32x16 x) {
    uint32_t largest = 0;
    for (int r = 0; r < QATTN_LANES; r++) largest = x[r] > largest ? x[r] : largest;
    return largest;
}

/* Elements [0, 16) of a row of the given type, as float32; of int8 the integers. */
QATTN_INLINE f32x16 f32x16_load_storage(const void *p, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) return f32x16_load(p);
    if (storage == QATTN_INT8) return __builtin_convertvector(*(const i8x16_unaligned *)p, f32x16);
    const u16x16 x = *(const u16x16_unaligned *)p;
    return storage == QATTN_BFLOAT16 ? bf16x16_widen(x) : f16x16_widen(x);
}

/* The reverse; int8 takes integers. */
QATTN_INLINE void f32x16_store_storage(void *p, f32x16 x, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) f32x16_store(p, x);
    else if (storage == QATTN_INT8) *(i8x16_unaligned *)p = __builtin_convertvector(x, i8x16);
    else *(u16x16_unaligned *)p = storage == QATTN_BFLOAT16 ? bf16x16_round(x) : f16x16_round(x);
}

/* The same for the lanes whose bit of `bits` is set; the others keep what stands there. */
QATTN_INLINE void f32x16_store_selected(void *p, uint32_t bits, f32x16 x, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) {
        f32x16_store(p, f32x16_select(bits, x, f32x16_load(p)));
        return;
    }
    typedef int16_t i16x16 __attribute__((ext_vector_type(16)));
    const u16x16 lane_bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    const i16x16 chosen = ((u16x16)(uint16_t)bits & lane_bit) != 0;
    if (storage == QATTN_INT8) {
        const i8x16 lanes = __builtin_convertvector(x, i8x16);
        *(i8x16_unaligned *)p = __builtin_convertvector(chosen, i8x16) ? lanes : *(i8x16_unaligned *)p;
    } else {
        const u16x16 lanes = storage == QATTN_BFLOAT16 ? bf16x16_round(x) : f16x16_round(x);
        *(u16x16_unaligned *)p = chosen ? lanes : *(u16x16_unaligned *)p;
    }
}

QATTN_INLINE size_t storage_size(qattn_storage storage) {
    return storage == QATTN_FLOAT32 ? 4 : storage == QATTN_INT8 ? 1 : 2;
}

/* Element `index` of an array of the given type. */
QATTN_INLINE const void *storage_at(const void *base, ptrdiff_t index, qattn_storage storage) {
    return (const char *)base + index * (ptrdiff_t)storage_size(storage);
}

/* The first n <= 16 elements, and 0 behind them: nothing past the end of a row is read. */
QATTN_INLINE f32x16 f32x16_load_first(const void *p, size_t n, qattn_storage storage) {
    if (n >= QATTN_LANES) return f32x16_load_storage(p, storage);
    float lanes[QATTN_LANES] = {0}; /* all-zero bytes are 0 in every type */
    memcpy(lanes, p, n * storage_size(storage));
    return f32x16_load_storage(lanes, storage);
}

QATTN_INLINE void f32x16_store_first(void *p, size_t n, f32x16 x, qattn_storage storage) {
    if (n >= QATTN_LANES) {
        f32x16_store_storage(p, x, storage);
        return;
    }
    float lanes[QATTN_LANES];
    f32x16_store_storage(lanes, x, storage);
    memcpy(p, lanes, n * storage_size(storage));
}

#endif
