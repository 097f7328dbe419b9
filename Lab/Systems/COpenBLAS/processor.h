/* SPDX-License-Identifier: Apache-2.0 */
/* processor.h - OpenBLAS's kernels for the processor at hand, where an older OpenBLAS does not know it. */
#ifndef OPENBLAS_PROCESSOR_H
#define OPENBLAS_PROCESSOR_H

#include <cblas.h>

#if defined(__linux__) && defined(__x86_64__)
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* An OpenBLAS older than the processor takes it for a Prescott of 2004: with version 0.3.21, on an Emerald Rapids, 14 GFLOP/s
 * instead of 150. OpenBLAS reads the name of its kernels from the environment before main begins, so the program starts itself
 * again with that name set: the first thing that main does. Whoever has set it keeps his choice; without a known name, or where the
 * system refuses, the program goes on as it is. */
static inline void restart_with_openblas_kernels(char *const *arguments) {
    if (getenv("OPENBLAS_CORETYPE") || strcmp(openblas_get_corename(), "Prescott") != 0) return;
    __builtin_cpu_init();
    const char *name = NULL;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) name = "Haswell";
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        name = "SkylakeX";
    char path[4096];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (!name || length <= 0 || setenv("OPENBLAS_CORETYPE", name, 0) != 0) return;
    path[length] = 0;
    execv(path, arguments);
}
#else
static inline void restart_with_openblas_kernels(char *const *arguments) { (void)arguments; }
#endif

#endif
