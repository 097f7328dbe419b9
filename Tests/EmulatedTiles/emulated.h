/* SPDX-License-Identifier: Apache-2.0 */
/* emulated.h - how a file of emulated kernels opens: instructions that few machines have in plain C, the rest as in portable.c, so
 * that every machine tests them. */
#ifndef EMULATED_H
#define EMULATED_H

#include "EmulatedTiles.h"
#include "isa/isa.h"
#pragma STDC FP_CONTRACT OFF

#define QATTN_BANDS   1
#define QATTN_VECTORS 1
#if defined(__x86_64__)
#undef QATTN_UNROLL
#define QATTN_UNROLL _Pragma("clang loop unroll(disable)")
#endif

#endif
