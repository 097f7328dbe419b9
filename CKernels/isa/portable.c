/* SPDX-License-Identifier: Apache-2.0 */
/* portable.c - the kernels for any CPU of the architecture: on x86-64 the SSE2 baseline, where fma is emulated exactly.
 */
#include "isa/isa.h"
#pragma STDC FP_CONTRACT OFF /* the contract: an fma where one is written, nowhere else */

#define QATTN_ISA     portable
#define QATTN_VECTORS 1
#include "isa/kernels.inl.h"
