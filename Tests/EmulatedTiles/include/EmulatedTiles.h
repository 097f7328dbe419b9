/* SPDX-License-Identifier: Apache-2.0 */
/* EmulatedTiles.h - the kernels of x86_64_amx and of x86_64_v4_bf16 on any CPU, their tile instructions and dots in plain C. */
#ifndef EMULATED_TILES_H
#define EMULATED_TILES_H

#include "CKernels.h"

const qattn_kernels *qattn_emulated_tile_kernels(void);
const qattn_kernels *qattn_emulated_dot_kernels(void);

/* Products of tiles that the calling thread has emulated, and whether it holds tiles. */
size_t qattn_emulated_products(void);
bool qattn_emulated_tiles_are_held(void);

/* Dots, of which tiles are none. */
size_t qattn_emulated_dots(void);

#endif
