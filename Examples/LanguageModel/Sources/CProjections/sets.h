/* SPDX-License-Identifier: Apache-2.0 */
/* sets.h - the product of each instruction set, and what they share. */
#ifndef LM_SETS_H
#define LM_SETS_H

#include "panel.h"

#if defined(__x86_64__)
void lm_project_v3(const lm_product *product, int first, int last);
void lm_project_v4(const lm_product *product, int first, int last);
#endif

#endif
