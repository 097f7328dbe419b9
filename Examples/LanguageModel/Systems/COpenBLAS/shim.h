/* SPDX-License-Identifier: Apache-2.0 */
/* shim.h - OpenBLAS (cblas): apt package libopenblas-dev. */
#include "processor.h"
#include <cblas.h>
