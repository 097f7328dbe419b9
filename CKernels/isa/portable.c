/* SPDX-License-Identifier: Apache-2.0 */
/* portable.c - the kernels for any CPU of the architecture: on x86-64 the SSE2 baseline, where fma is emulated exactly.
 */
#include "isa/isa.h"
#pragma STDC FP_CONTRACT OFF /* the contract: an fma where one is written, nowhere else */

#define QATTN_ISA     portable
#define QATTN_VECTORS 1
#if defined(__x86_64__)
/* A loop of calls to the emulated fma gains nothing unrolled, and takes eight times the code. */
#undef QATTN_UNROLL
#define QATTN_UNROLL _Pragma("clang loop unroll(disable)")
#endif
#include "isa/kernels.inl.h"
