/* SPDX-License-Identifier: Apache-2.0 */
/* isa.h - how a file of isa/ opens: names, the target region, and everything that must be included outside of it.
 *
 * A file of isa/ says which instruction set it is (QATTN_ISA), how its registers are spent (QATTN_VECTORS), opens the
 * target region and includes every kernel body. Inside the region the compiler may use the set; a helper that is used
 * inside but defined outside would be compiled for the baseline and is a compile error, not a slow binary.
 * System headers stay outside: an inline function of theirs compiled in here could be kept by the linker for everybody.
 */
#ifndef QATTN_ISA_H
#define QATTN_ISA_H

#include "CKernels.h"
#include "simd/coefficients.h"
#include <assert.h>
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define QATTN_PASTE_(a, b)   a##_##b
#define QATTN_PASTE(a, b)    QATTN_PASTE_(a, b)
#define QATTN_FUNCTION(name) QATTN_PASTE(qattn_##name, QATTN_ISA)
#define QATTN_STRING_(x)     #x
#define QATTN_STRING(x)      QATTN_STRING_(x)

#define QATTN_PRAGMA(x) _Pragma(#x)
#define QATTN_TARGET_BEGIN(target_string)                                                                              \
    QATTN_PRAGMA(clang attribute push(__attribute__((target(target_string))), apply_to = function))
#define QATTN_TARGET_END QATTN_PRAGMA(clang attribute pop)

/* A value of 16 lanes has no calling convention on the smaller sets; none is needed, as every function that takes or
 * returns one is inlined. */
#pragma clang diagnostic ignored "-Wpsabi"

/* Always inlined, so that tiles stay in registers and constant arguments unroll their loops; -O0 included. */
#define QATTN_INLINE    static inline __attribute__((always_inline))
#define QATTN_NOINLINE  static __attribute__((noinline))
#define QATTN_UNROLL    _Pragma("clang loop unroll(full)")
#define QATTN_UNROLL_2  _Pragma("clang loop unroll_count(2)")
#define QATTN_UNROLL_4  _Pragma("clang loop unroll_count(4)")
#define QATTN_NO_UNROLL _Pragma("clang loop unroll(disable)")

#endif
