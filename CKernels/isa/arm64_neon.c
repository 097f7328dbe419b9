/* SPDX-License-Identifier: Apache-2.0 */
/* arm64_neon.c - the kernels for 64-bit ARM: NEON is its baseline. 32 registers of 4 floats: 24 hold a tile of 6 x 16.
 */
#include "isa/isa.h"

#if defined(__aarch64__)
#pragma STDC FP_CONTRACT OFF /* the contract: an fma where one is written, nowhere else */

#define QATTN_ISA     arm64_neon
#define QATTN_VECTORS 1
#include "isa/kernels.inl.h"
#endif
