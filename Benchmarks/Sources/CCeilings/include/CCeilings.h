/* SPDX-License-Identifier: Apache-2.0 */
/* CCeilings.h - the two ceilings of this machine, measured without the kernels that are judged by them. */
#ifndef CCEILINGS_H
#define CCEILINGS_H

#include <stddef.h>

/* Runs so many rounds of independent fused multiply-adds in the widest vectors of this CPU; returns the float
 * operations done, two for each multiply-add. */
double ceilings_multiply_add(size_t rounds);

/* Room for so many floats, in large pages where there are some, which are read faster; for free(), or NULL. */
float *ceilings_memory(size_t count);

/* The sum of count floats, read once, in the widest vectors of this CPU. */
float ceilings_read(const float *data, size_t count);

#endif
