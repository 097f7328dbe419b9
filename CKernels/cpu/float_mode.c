/* SPDX-License-Identifier: Apache-2.0 */
/* float_mode.c - the floating-point mode of the calling thread: the contract's for the time of a call, then the caller's
 * again.
 *
 * These functions are compiled on their own, and so a call of one is a place across which the compiler moves no access
 * to memory. What a kernel computes starts from memory and ends there. */
#include "CKernels.h"

#if defined(__x86_64__)

/* MXCSR: all exceptions masked, round to nearest even, neither flush-to-zero nor denormals-are-zero, no flag set. */
static const unsigned contract = 0x1f80;

qattn_float_mode qattn_enter_float_mode(void) {
    const unsigned caller = __builtin_ia32_stmxcsr();
    /* Flags need no clearing, they do nothing: in the contract's mode this is the only instruction that costs. */
    if ((caller & ~0x3fu) != contract) __builtin_ia32_ldmxcsr(contract);
    return (qattn_float_mode){.control = caller};
}

void qattn_leave_float_mode(qattn_float_mode caller) {
    /* Also where only a flag differs: a call leaves no trace. */
    if (__builtin_ia32_stmxcsr() != (unsigned)caller.control) __builtin_ia32_ldmxcsr((unsigned)caller.control);
}

#elif defined(__aarch64__)

/* FPCR 0: round to nearest even, subnormal numbers kept, no traps, IEEE half precision, NaN operands passed on. */
qattn_float_mode qattn_enter_float_mode(void) {
    qattn_float_mode caller;
    __asm__ volatile("mrs %0, fpcr" : "=r"(caller.control) : : "memory");
    __asm__ volatile("mrs %0, fpsr" : "=r"(caller.status) : : "memory");
    if (caller.control != 0) __asm__ volatile("msr fpcr, %0" : : "r"(UINT64_C(0)) : "memory");
    return caller;
}

void qattn_leave_float_mode(qattn_float_mode caller) {
    uint64_t status;
    __asm__ volatile("mrs %0, fpsr" : "=r"(status) : : "memory");
    if (status != caller.status) __asm__ volatile("msr fpsr, %0" : : "r"(caller.status) : "memory");
    if (caller.control != 0) __asm__ volatile("msr fpcr, %0" : : "r"(caller.control) : "memory");
}

#else
#include <fenv.h>

/* Of the rest only the direction of rounding is known. */
qattn_float_mode qattn_enter_float_mode(void) {
    const int caller = fegetround();
    if (caller != FE_TONEAREST) fesetround(FE_TONEAREST);
    return (qattn_float_mode){.control = (uint64_t)caller};
}

void qattn_leave_float_mode(qattn_float_mode caller) {
    if ((int)caller.control != FE_TONEAREST) fesetround((int)caller.control);
}

#endif
