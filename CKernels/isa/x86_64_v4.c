/* SPDX-License-Identifier: Apache-2.0 */
/* x86_64_v4.c - the kernels for x86-64-v4: AVX-512 F, BW, CD, DQ, VL. 32 registers of 16 floats: 24 hold a tile of 6
 * x 64. */
#include "isa/isa.h"

#if defined(__x86_64__)
#pragma STDC FP_CONTRACT OFF /* the contract: an fma where one is written, nowhere else */

#define QATTN_ISA     x86_64_v4
#define QATTN_AVX512  1
#define QATTN_VECTORS 4
/* The level's name alone makes the compiler split 16 lanes in two. */
QATTN_TARGET_BEGIN("arch=x86-64-v4,no-prefer-256-bit")
#include "isa/kernels.inl.h"
QATTN_TARGET_END
#endif
