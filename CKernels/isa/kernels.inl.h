/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.inl.h - every kernel body, and the table that lists them, for QATTN_ISA. */
#include "attention/forward.inl.h"
#include "attention/prepare.inl.h"
#include "cpu/probe.inl.h"
#include "memory/pack.inl.h"

const qattn_kernels QATTN_FUNCTION(kernels);
const qattn_kernels QATTN_FUNCTION(kernels) = {
    .name = QATTN_STRING(QATTN_ISA),
    .prepare = QATTN_FUNCTION(prepare),
    .pack = QATTN_FUNCTION(pack),
    .forward = QATTN_FUNCTION(forward),
    .finish = QATTN_FUNCTION(finish),
    .scores = QATTN_FUNCTION(scores),
    .fma_probe = QATTN_FUNCTION(fma_probe),
    .fma_probe_flops = FMA_PROBE_FLOPS,
    .read_probe = QATTN_FUNCTION(read_probe),
    .exp2 = QATTN_FUNCTION(exp2),
    .log2 = QATTN_FUNCTION(log2),
    .tanh = QATTN_FUNCTION(tanh),
};
