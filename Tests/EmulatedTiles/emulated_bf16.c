/* SPDX-License-Identifier: Apache-2.0 */
/* emulated_bf16.c - the kernels of x86_64_v4_bf16 with the dots of simd/pair_dot.h in plain C. */
#include "emulated.h"

#define QATTN_ISA           emulated_bf16
#define QATTN_EMULATED_DOTS 1
#include "isa/kernels.inl.h"

const qattn_kernels *qattn_emulated_dot_kernels(void) { return &QATTN_FUNCTION(kernels); }
size_t qattn_emulated_dots(void) { return QATTN_FUNCTION(dots); }
