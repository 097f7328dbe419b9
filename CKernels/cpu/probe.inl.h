/* SPDX-License-Identifier: Apache-2.0 */
/* probe.inl.h - the machine's ceilings, as this instruction set can reach them: multiply-adds of float32, products of pairs
 * of bfloat16, and memory reads. */
#ifndef QATTN_PROBE_INL_H
#define QATTN_PROBE_INL_H

#include "simd/vector.h"
#if defined(QATTN_TILE_UNIT)
#include "simd/tile_unit.h"
#elif defined(QATTN_BANDS)
#include "simd/pair_dot.h"
#endif

/* Independent chains: AVX-512 and AVX2 start two a cycle at most and take four cycles, NEON four and four. A dot takes six,
 * one a cycle. */
enum {
    FMA_PROBE_CHAINS = 6 * QATTN_VECTORS > 12 ? 12 : 6 * QATTN_VECTORS,
    FMA_PROBE_FLOPS = FMA_PROBE_CHAINS * QATTN_LANES * 2
};

static float QATTN_FUNCTION(fma_probe)(size_t rounds) {
    f32x16 chain[FMA_PROBE_CHAINS];
    QATTN_UNROLL
    for (int i = 0; i < FMA_PROBE_CHAINS; i++) chain[i] = f32x16_splat((float)i);
    f32x16 factor = f32x16_splat(0.5f), addend = f32x16_splat(0.25f);
    __asm__ volatile("" : "+m"(factor), "+m"(addend)); /* else the loop could be folded */
    for (size_t n = 0; n < rounds; n++) {
        QATTN_UNROLL
        for (int i = 0; i < FMA_PROBE_CHAINS; i++) chain[i] = f32x16_fma(chain[i], factor, addend);
    }
    QATTN_UNROLL
    for (int i = 1; i < FMA_PROBE_CHAINS; i++) chain[0] += chain[i];
    return chain[0][0];
}

#if defined(QATTN_TILE_UNIT)
enum { PAIR_PROBE_FLOPS = UNIT_SUMS * UNIT_ROWS * QATTN_LANES * QATTN_PAIR_SEGMENT * 2 };

/* Products as bands take them, 32 rows by 32 columns, of tiles that stay where they are: 1 times 1, since zeros would let the
 * clock rise. */
static float QATTN_FUNCTION(pair_probe)(size_t rounds) {
    uint16_t ones[QATTN_LANES * UNIT_ROW_BYTES / sizeof(uint16_t)];
    float sums[UNIT_ROWS * QATTN_LANES];
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) ones[i] = 0x3f80;
    tile_unit_begin((unit_shape){UNIT_ROWS, QATTN_LANES, 0});
    unit_zero(0);
    unit_zero(1);
    unit_zero(2);
    unit_zero(3);
    unit_load(4, ones, UNIT_ROW_BYTES);
    unit_load(5, ones, UNIT_ROW_BYTES);
    unit_load(6, ones, UNIT_ROW_BYTES);
    unit_load(7, ones, UNIT_ROW_BYTES);
    for (size_t n = 0; n < rounds; n++) {
        unit_multiply(0, 4, 6);
        unit_multiply(2, 5, 6);
        unit_multiply(1, 4, 7);
        unit_multiply(3, 5, 7);
    }
    unit_store(0, sums, UNIT_ROW_BYTES);
    tile_unit_end();
    return sums[0];
}
#elif defined(QATTN_BANDS)
enum { PAIR_PROBE_FLOPS = FMA_PROBE_CHAINS * QATTN_LANES * 4 };

static float QATTN_FUNCTION(pair_probe)(size_t rounds) {
    float zeros[FMA_PROBE_CHAINS][QATTN_LANES] = {0};
    __asm__ volatile("" : "+m"(zeros)); /* else the chains would be one */
    f32x16 chain[FMA_PROBE_CHAINS];
    QATTN_UNROLL
    for (int i = 0; i < FMA_PROBE_CHAINS; i++) chain[i] = f32x16_load(zeros[i]);
    const uint32_t one = 0x3f803f80u;
    for (size_t n = 0; n < rounds; n++) {
        QATTN_UNROLL
        for (int i = 0; i < FMA_PROBE_CHAINS; i++) chain[i] = pair_dot(chain[i], &one, (u32x16)one);
    }
    QATTN_UNROLL
    for (int i = 1; i < FMA_PROBE_CHAINS; i++) chain[0] += chain[i];
    return chain[0][0] / FMA_PROBE_CHAINS;
}
#endif

/* The sum of `streams` equal parts read side by side, a constant. */
QATTN_INLINE float read_streams(const float *data, size_t count, size_t streams) {
    const size_t stream = count / (streams * QATTN_LANES) * QATTN_LANES;
    f32x16 sum[QATTN_READ_STREAMS];
    QATTN_UNROLL
    for (size_t i = 0; i < streams; i++) sum[i] = f32x16_splat(0);
    for (size_t n = 0; n < stream; n += QATTN_LANES) {
        QATTN_UNROLL
        for (size_t i = 0; i < streams; i++) sum[i] += f32x16_load(data + i * stream + n);
    }
    QATTN_UNROLL
    for (size_t i = 1; i < streams; i++) sum[0] += sum[i];
    float total = sum[0][0];
    for (size_t n = streams * stream; n < count; n++) total += data[n];
    return total;
}

static float QATTN_FUNCTION(read_probe)(const float *data, size_t count, size_t streams) {
    switch (streams) {
    case 1: return read_streams(data, count, 1);
    case 2: return read_streams(data, count, 2);
    case 4: return read_streams(data, count, 4);
    default: return read_streams(data, count, QATTN_READ_STREAMS);
    }
}

#endif
