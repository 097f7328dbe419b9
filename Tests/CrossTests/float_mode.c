/* SPDX-License-Identifier: Apache-2.0 */
/* float_mode.c - preloaded into a process (LD_PRELOAD), which then begins in the floating-point mode that FLOAT_MODE names. */
#define _GNU_SOURCE
#include <fenv.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

__attribute__((constructor)) static void enter_mode(void) {
    const char *const mode = getenv("FLOAT_MODE");
    if (!mode || !strcmp(mode, "usual")) return;
    if (!strcmp(mode, "flushing")) _mm_setcsr(_mm_getcsr() | 0x8040); /* flush to zero, and denormals are zero */
    else if (!strcmp(mode, "upward")) fesetround(FE_UPWARD);
    else if (!strcmp(mode, "toward_zero")) fesetround(FE_TOWARDZERO);
    else if (!strcmp(mode, "raising")) feenableexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
    else abort();
}
