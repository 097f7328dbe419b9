/* SPDX-License-Identifier: Apache-2.0 */
/* x86_64_amx.c - the kernels for x86-64-v4 with the tile instructions AMX-TILE, AMX-BF16 and AMX-INT8: those of
 * x86_64_v4.c, and products of bfloat16 and of int8 a tile at a time. */
#include "isa/isa.h"

#if defined(__x86_64__)
#pragma STDC FP_CONTRACT OFF /* the contract: an fma where one is written, nowhere else */

#define QATTN_ISA       x86_64_amx
#define QATTN_AVX512    1
#define QATTN_TILE_UNIT 1
#define QATTN_BANDS     1
#define QATTN_VECTORS   4
QATTN_TARGET_BEGIN("arch=x86-64-v4,no-prefer-256-bit,avx512bf16,amx-tile,amx-bf16,amx-int8")
#include "isa/kernels.inl.h"
QATTN_TARGET_END
#endif
