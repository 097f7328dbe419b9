/* SPDX-License-Identifier: Apache-2.0 */
/* shim.h - OpenBLAS (cblas) and LAPACKE: apt packages libopenblas-dev and liblapacke-dev. */
#include "processor.h"
#include <cblas.h>
#include <lapacke.h>
