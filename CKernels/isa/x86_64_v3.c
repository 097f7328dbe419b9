/* SPDX-License-Identifier: Apache-2.0 */
/* x86_64_v3.c - the kernels for x86-64-v3: AVX2, FMA and F16C. 16 registers of 8 floats: 12 hold a tile of 6 x 16. */
#include "isa/isa.h"

#if defined(__x86_64__)
#pragma STDC FP_CONTRACT OFF /* the contract: an fma where one is written, nowhere else */

#define QATTN_ISA     x86_64_v3
#define QATTN_AVX2    1
#define QATTN_VECTORS 1
QATTN_TARGET_BEGIN("arch=x86-64-v3")
#include "isa/kernels.inl.h"
QATTN_TARGET_END
#endif
