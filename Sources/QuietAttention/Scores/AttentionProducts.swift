// SPDX-License-Identifier: Apache-2.0
// AttentionProducts.swift - which numbers are multiplied: those given, or those rounded to bfloat16.

import CKernels

/// Which numbers are multiplied in scores and in the sums of values. Sums are of Float either way, and so is everything
/// between scores and weights.
///
/// The bits of a row depend on it, but neither on the kernel set nor on anything else that they do not depend on otherwise.
public enum AttentionProducts: String, Sendable, Hashable, CaseIterable {
    /// Queries, keys, values and weights as they are.
    case float32
    /// Queries, keys (after norms and positions), values and weights, each rounded to bfloat16, to nearest even; magnitudes
    /// below 2^-56 count as 0. Made for CPUs whose tile instructions (AMX) multiply bfloat16 by themselves. On a Zen 4, whose
    /// AVX512-BF16 multiplies pairs, it is 1.2 to 1.7 times as fast as products of Float; other kernel sets give the same bits,
    /// up to a third slower. The error is that of what is rounded to 8 bits: of the norm of unit normal output some 1e-3, and of
    /// gradients 2e-3, where tensors are of bfloat16 already; 3e-3 and 3e-3 to 4e-3 where they are of Float. Gradients of outputs
    /// and of scores below 2^-79 count as 0, and sums of gradients from 2^80 on as infinite. Caches are made for it
    /// (``KeyValueCache/products``).
    case bfloat16

    /// What keys and values are packed in.
    var packedStorage: qattn_storage { self == .float32 ? QATTN_FLOAT32 : QATTN_BFLOAT16_PAIRS }
}
