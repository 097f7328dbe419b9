/* SPDX-License-Identifier: Apache-2.0 */
/* shim.h - OpenBLAS (cblas): apt package libopenblas-dev; and glibc's settings of its allocator, which Swift does not import. */
#include "processor.h"
#include <cblas.h>
#if defined(__linux__)
#include <malloc.h>
#endif

/* Memory that is freed stays with the process, for arrays of up to 32 MiB, of all threads; elsewhere than with glibc nothing changes. */
static inline void keep_freed_memory(void) {
#if defined(__GLIBC__)
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, -1);
    mallopt(M_TOP_PAD, 16 << 20);
#endif
}
