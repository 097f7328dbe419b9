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
    /// below 2^-56 count as 0. Made for CPUs whose tile instructions (AMX) multiply bfloat16 by themselves; other kernel sets
    /// give the same bits, no faster than those of Float. The error is that of weights rounded to 8 bits, some 1e-3 of the
    /// output and 2e-3 of the gradients. Gradients of outputs and of scores below 2^-79 count as 0, and sums of gradients
    /// from 2^80 on as infinite. Caches are made for it (``KeyValueCache/products``).
    case bfloat16

    /// What keys and values are packed in.
    var packedStorage: qattn_storage { self == .float32 ? QATTN_FLOAT32 : QATTN_BFLOAT16_PAIRS }
}
