/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_amx.c - the kernels of x86_64_amx with the tile instructions of simd/tile_unit.h in plain C, and the rest as in
 * portable.c: so that every machine tests them. */
#include "EmulatedTiles.h"
#include "isa/isa.h"
#pragma STDC FP_CONTRACT OFF

#define QATTN_ISA            emulated_amx
#define QATTN_TILE_UNIT      1
#define QATTN_BANDS          1
#define QATTN_EMULATED_TILES 1
#define QATTN_VECTORS        1
#if defined(__x86_64__)
#undef QATTN_UNROLL
#define QATTN_UNROLL _Pragma("clang loop unroll(disable)")
#endif
#include "isa/kernels.inl.h"

const qattn_kernels *qattn_emulated_tile_kernels(void) { return &QATTN_FUNCTION(kernels); }
size_t qattn_emulated_products(void) { return QATTN_FUNCTION(tiles).products; }
bool qattn_emulated_tiles_are_held(void) { return QATTN_FUNCTION(tiles).shape.rows != 0; }
