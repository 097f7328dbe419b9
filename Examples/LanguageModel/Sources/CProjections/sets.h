/* SPDX-License-Identifier: Apache-2.0 */
/* sets.h - the product of each instruction set, and what they share. */
#ifndef LM_SETS_H
#define LM_SETS_H

#include "panel.h"

/* The sum of the integers of a block: below 2^28. */
static inline float lm_total(const lm_activations *x) { return (float)(256 * x->upper_sum + x->lower_sum); }

#if defined(__x86_64__)
void lm_project_v3(const lm_product *product, int first, int last);
void lm_project_v4(const lm_product *product, int first, int last);
#endif

#endif
