// SPDX-License-Identifier: Apache-2.0
// Attention+Problem.swift - what kernels are told of the problem of one sequence, in forward and in backward.

import CKernels

extension Attention {
    /// The problem of the query heads from `queryHead` on that share a key/value head: all but their number and sinks.
    ///
    /// - Parameters:
    ///   - mask: the values of the boolean mask, nil without one.
    ///   - bias: the values of the bias, nil without one.
    func problem(
        _ sequence: SequencePlan, queryHead: Int, mask: UnsafePointer<UInt8>?, bias: UnsafePointer<Float>?
    ) -> qattn_problem {
        var problem = qattn_problem()
        problem.queries = sequence.queries
        problem.seq_kv = sequence.keys
        scores.add(to: &problem, sequence, head: queryHead, keyOrigin: sequence.keyOrigin)
        problem.first_key_offset = sequence.firstKeyOffset
        problem.last_key_offset = sequence.lastKeyOffset
        if let mask, let strides = self.mask.allowed?.strides {
            problem.mask = mask + strides.offset(item: sequence.item, head: queryHead, key: sequence.keyOrigin)
            problem.mask_strides = qattn_strides(head: strides.heads, query: strides.queries, key: strides.keys)
        }
        if let bias, let strides = self.bias?.strides {
            problem.bias = bias + strides.offset(item: sequence.item, head: queryHead, key: sequence.keyOrigin)
            problem.bias_strides = qattn_strides(head: strides.heads, query: strides.queries, key: strides.keys)
        }
        return problem
    }
}

extension BroadcastTensor.Strides {
    func offset(item: Int, head: Int, key: Int) -> Int { item * batch + head * heads + key * keys }
}
