/* SPDX-License-Identifier: Apache-2.0 */
/* half.h - the 16-bit storage types: widened exactly to float32, rounded from it to nearest even. NaN stays NaN. */
#ifndef QATTN_HALF_H
#define QATTN_HALF_H

#include "simd/vector.h"

typedef uint16_t u16x16 __attribute__((ext_vector_type(16)));
typedef uint16_t u16x16_unaligned __attribute__((ext_vector_type(16), aligned(2)));

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

/* Elements [0, 16) of a row of the given type, as float32. */
QATTN_INLINE f32x16 f32x16_load_storage(const void *p, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) return f32x16_load(p);
    const u16x16 x = *(const u16x16_unaligned *)p;
    return storage == QATTN_BFLOAT16 ? bf16x16_widen(x) : f16x16_widen(x);
}

QATTN_INLINE void f32x16_store_storage(void *p, f32x16 x, qattn_storage storage) {
    if (storage == QATTN_FLOAT32) f32x16_store(p, x);
    else *(u16x16_unaligned *)p = storage == QATTN_BFLOAT16 ? bf16x16_round(x) : f16x16_round(x);
}

QATTN_INLINE size_t storage_size(qattn_storage storage) { return storage == QATTN_FLOAT32 ? 4 : 2; }

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
