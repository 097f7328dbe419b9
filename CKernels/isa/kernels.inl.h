/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.inl.h - every kernel body, and the table that lists them, for QATTN_ISA. */
#include "attention/backward.inl.h"
#include "attention/forward.inl.h"
#include "attention/head_gradients.inl.h"
#include "attention/prepare.inl.h"
#include "attention/prepare_backward.inl.h"
#include "cpu/probe.inl.h"
#include "memory/pack.inl.h"

/* An entry of the table: a kernel in the floating-point mode of the contract, whatever its caller's. */
#define QATTN_ENTRY(kernel, parameters, arguments)                                                                     \
    static void QATTN_FUNCTION(enter_##kernel) parameters {                                                            \
        const qattn_float_mode caller = qattn_enter_float_mode();                                                      \
        QATTN_FUNCTION(kernel) arguments;                                                                              \
        qattn_leave_float_mode(caller);                                                                                \
    }

QATTN_ENTRY(prepare, (const qattn_prepare_args *args), (args))
QATTN_ENTRY(pack, (const qattn_pack_args *args), (args))
QATTN_ENTRY(forward, (const qattn_forward_args *args), (args))
QATTN_ENTRY(finish, (const qattn_forward_args *args), (args))
QATTN_ENTRY(merge, (const qattn_forward_args *args, float *totals), (args, totals))
QATTN_ENTRY(scores, (const qattn_forward_args *args, size_t block, float *scores), (args, block, scores))
QATTN_ENTRY(deltas, (const qattn_backward_args *args), (args))
QATTN_ENTRY(backward, (const qattn_backward_args *args), (args))
QATTN_ENTRY(prepare_backward, (const qattn_prepare_backward_args *args), (args))
QATTN_ENTRY(score_gradients, (const qattn_backward_args *args, size_t block, float *gradients),
            (args, block, gradients))
QATTN_ENTRY(slope_gradients, (const qattn_backward_args *args, float *sums), (args, sums))
QATTN_ENTRY(slope_lanes, (const qattn_backward_args *args, float *lanes), (args, lanes))
QATTN_ENTRY(log_scale_gradients, (const qattn_backward_args *args, float *sums), (args, sums))
QATTN_ENTRY(exp2, (const float *x, float *out, size_t count), (x, out, count))
QATTN_ENTRY(log2, (const float *x, float *out, size_t count), (x, out, count))
QATTN_ENTRY(tanh, (const float *x, float *out, size_t count), (x, out, count))

const qattn_kernels QATTN_FUNCTION(kernels);
const qattn_kernels QATTN_FUNCTION(kernels) = {
    .name = QATTN_STRING(QATTN_ISA),
    .tile_rows = TILE_ROWS,
    .query_block = QUERY_TILES * TILE_ROWS,
#if defined(QATTN_BANDS)
    .band_rows = BAND_ROWS,
#endif
#if defined(QATTN_TILE_UNIT)
    .has_tiles = true,
#endif
    .prepare = QATTN_FUNCTION(enter_prepare),
    .pack = QATTN_FUNCTION(enter_pack),
    .forward = QATTN_FUNCTION(enter_forward),
    .finish = QATTN_FUNCTION(enter_finish),
    .merge = QATTN_FUNCTION(enter_merge),
    .scores = QATTN_FUNCTION(enter_scores),
    .deltas = QATTN_FUNCTION(enter_deltas),
    .backward = QATTN_FUNCTION(enter_backward),
    .prepare_backward = QATTN_FUNCTION(enter_prepare_backward),
    .score_gradients = QATTN_FUNCTION(enter_score_gradients),
    .slope_gradients = QATTN_FUNCTION(enter_slope_gradients),
    .slope_lanes = QATTN_FUNCTION(enter_slope_lanes),
    .log_scale_gradients = QATTN_FUNCTION(enter_log_scale_gradients),
    .fma_probe = QATTN_FUNCTION(fma_probe),
    .fma_probe_flops = FMA_PROBE_FLOPS,
#if defined(QATTN_BANDS)
    .pair_probe = QATTN_FUNCTION(pair_probe),
    .pair_probe_flops = PAIR_PROBE_FLOPS,
#endif
    .read_probe = QATTN_FUNCTION(read_probe),
    .exp2 = QATTN_FUNCTION(enter_exp2),
    .log2 = QATTN_FUNCTION(enter_log2),
    .tanh = QATTN_FUNCTION(enter_tanh),
};
