/* SPDX-License-Identifier: Apache-2.0 */
/* bfloat16.c - products of bfloat16 by tiles (AMX) or vectors (AVX512-BF16), as many as the CPU can start. */
#if !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* syscall */
#endif
#include "CCeilings.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Eight tiles of 16 rows of 64 bytes: four of sums, two by two of factors. */
enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, TILE_FLOPS = ROWS * 16 * 32 * 2, VECTOR_CHAINS = 12 };

/* The CPU has tiles of bfloat16, the system saves them, and lets this process have them. */
static int has_amx(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, TILE_STATE = 3 << 17, BF16_AND_TILES = 1 << 22 | 1 << 24 };
    unsigned a, b, c, d, saved, upper;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & 1 << 27)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BF16_AND_TILES) != BF16_AND_TILES) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    if ((saved & TILE_STATE) != TILE_STATE) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* Factors of 1: zeros would let the clock rise. */
__attribute__((target("amx-tile,amx-bf16"))) static double amx(size_t rounds) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    uint16_t ones[ROWS * ROW_BYTES / 2];
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) ones[i] = 0x3f80;
    for (size_t t = 0; t < TILES; t++) {
        shapes.row_bytes[t] = ROW_BYTES;
        shapes.rows[t] = ROWS;
    }
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, ROW_BYTES);
    _tile_loadd(5, ones, ROW_BYTES);
    _tile_loadd(6, ones, ROW_BYTES);
    _tile_loadd(7, ones, ROW_BYTES);
    for (size_t n = 0; n < rounds; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)rounds * 4 * TILE_FLOPS;
}

__attribute__((target("avx512f,avx512bf16"))) static double avx512(size_t rounds) {
    __m512 chain[VECTOR_CHAINS];
    for (int i = 0; i < VECTOR_CHAINS; i++) chain[i] = _mm512_set1_ps((float)i);
    __m512i ones = _mm512_set1_epi16(0x3f80);
    __asm__ volatile("" : "+v"(ones)); /* unknown, so that nothing folds */
    __m512bh factors;
    memcpy(&factors, &ones, sizeof factors);
    for (size_t n = 0; n < rounds; n++) {
#pragma clang loop unroll(full)
        for (int i = 0; i < VECTOR_CHAINS; i++) chain[i] = _mm512_dpbf16_ps(chain[i], factors, factors);
    }
    for (int i = 1; i < VECTOR_CHAINS; i++) chain[0] = _mm512_add_ps(chain[0], chain[i]);
    __asm__ volatile("" : : "v"(chain[0])); /* used, so that nothing is left out */
    return (double)rounds * VECTOR_CHAINS * 16 * 2 * 2;
}

const char *ceilings_bfloat16_unit(void) {
    __builtin_cpu_init();
    if (has_amx()) return "amx";
    return __builtin_cpu_supports("avx512bf16") ? "avx512_bf16" : "";
}

double ceilings_bfloat16(size_t rounds) {
    const char *const unit = ceilings_bfloat16_unit();
    return !strcmp(unit, "amx") ? amx(rounds) : *unit ? avx512(rounds) : 0;
}
#else
const char *ceilings_bfloat16_unit(void) { return ""; }

double ceilings_bfloat16(size_t rounds) {
    (void)rounds;
    return 0;
}
#endif
