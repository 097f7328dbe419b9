/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_bf16.c - the kernels of x86_64_v4_bf16 with the dots of simd/pair_dot.h in plain C, and the rest as in portable.c. */
#include "EmulatedTiles.h"
#include "isa/isa.h"
#pragma STDC FP_CONTRACT OFF

#define QATTN_ISA           emulated_bf16
#define QATTN_BANDS         1
#define QATTN_EMULATED_DOTS 1
#define QATTN_VECTORS       1
#if defined(__x86_64__)
#undef QATTN_UNROLL
#define QATTN_UNROLL _Pragma("clang loop unroll(disable)")
#endif
#include "isa/kernels.inl.h"

const qattn_kernels *qattn_emulated_dot_kernels(void) { return &QATTN_FUNCTION(kernels); }
size_t qattn_emulated_dots(void) { return QATTN_FUNCTION(dots); }
