/* SPDX-License-Identifier: Apache-2.0 */
/* read.c - the fastest that one thread reads memory: the ceiling of decoding. */
#include "panel.h"

typedef uint64_t words __attribute__((ext_vector_type(8), aligned(8)));

LM_CLONES uint64_t lm_read(const uint8_t *bytes, size_t count) {
    words sums[4] = {0};
    size_t i = 0;
    for (; i + 4 * sizeof(words) <= count; i += 4 * sizeof(words)) {
        const words *from = (const words *)(const void *)(bytes + i);
        for (int j = 0; j < 4; j++) {
            sums[j] += from[j];
        }
    }
    words sum = sums[0] + sums[1] + sums[2] + sums[3];
    uint64_t result = 0;
    for (int j = 0; j < 8; j++) {
        result += sum[j];
    }
    return result;
}
