/* SPDX-License-Identifier: Apache-2.0 */
/* dispatch.c - placeholder */
#include "CKernels.h"
