/* SPDX-License-Identifier: Apache-2.0 */
/* shim.h - OpenBLAS (cblas): apt package libopenblas-dev. */
#include <cblas.h>
