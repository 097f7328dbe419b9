/* SPDX-License-Identifier: Apache-2.0 */
/* CCeilings.h - the ceilings of this machine, measured without the kernels that are judged by them. */
#ifndef CCEILINGS_H
#define CCEILINGS_H

#include <stddef.h>

/* Runs so many rounds of independent fused multiply-adds in the widest vectors of this CPU; returns the float
 * operations done, two for each multiply-add. */
double ceilings_multiply_add(size_t rounds);

/* The instruction that multiplies bfloat16 fastest on this CPU, "amx" or "avx512_bf16", or "" where there is none that this
 * process may use: products of bfloat16 are then multiply-adds of float32. */
const char *ceilings_bfloat16_unit(void);

/* Runs so many rounds of independent products of bfloat16 into float32 by that instruction; returns the float operations
 * done, two for each multiply-add, or 0 where there is none. */
double ceilings_bfloat16(size_t rounds);

/* Room for so many floats, in large pages where there are some, which are read faster; for free(), or NULL. */
float *ceilings_memory(size_t count);

/* The sum of count floats, read once, in the widest vectors of this CPU. */
float ceilings_read(const float *data, size_t count);

#endif
