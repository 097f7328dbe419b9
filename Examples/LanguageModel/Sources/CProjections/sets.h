/* SPDX-License-Identifier: Apache-2.0 */
/* sets.h - the product of each instruction set, and what they share. */
#ifndef LM_SETS_H
#define LM_SETS_H

#include "panel.h"

/* The sum of the integers of a block: below 2^28. */
static inline float lm_total(const lm_activations *x) { return (float)(256 * x->upper_sum + x->lower_sum); }

/* A lone token does little with each weight: what memory gives in the meantime decides. The weights this far on are asked for. */
#define LM_AHEAD 2048

static inline __attribute__((always_inline)) void lm_announce(const uint8_t *panel, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) {
        __builtin_prefetch(panel + LM_AHEAD + line);
    }
}

#if defined(__x86_64__)
void lm_project_v3(const lm_product *product, int first, int last);
void lm_project_v4(const lm_product *product, int first, int last);
#endif

#endif
