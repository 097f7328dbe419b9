/* SPDX-License-Identifier: Apache-2.0 */
/* shim.h - OpenMPI's header, without the old C++ one. */
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
