/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_amx.c - the kernels of x86_64_amx with the tile instructions of simd/tile_unit.h in plain C. */
#include "emulated.h"

#define QATTN_ISA            emulated_amx
#define QATTN_TILE_UNIT      1
#define QATTN_EMULATED_TILES 1
#include "isa/kernels.inl.h"

const qattn_kernels *qattn_emulated_tile_kernels(void) { return &QATTN_FUNCTION(kernels); }
size_t qattn_emulated_products(void) { return QATTN_FUNCTION(tiles).products; }
bool qattn_emulated_tiles_are_held(void) { return QATTN_FUNCTION(tiles).shape.rows != 0; }
