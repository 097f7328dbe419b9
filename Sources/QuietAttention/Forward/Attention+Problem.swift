// SPDX-License-Identifier: Apache-2.0
// Attention+Problem.swift - what kernels are told of the problem of one sequence, in forward and in backward.

import CKernels

extension Attention {
    /// The problem of the query heads from `queryHead` on that share a key/value head: all but their number and sinks.
    func problem(_ sequence: SequencePlan, queryHead: Int, _ masks: MaskPointers) -> qattn_problem {
        var problem = qattn_problem()
        problem.queries = sequence.queries
        problem.seq_kv = sequence.keys
        scores.add(to: &problem, sequence, head: queryHead, keyOrigin: sequence.keyOrigin)
        problem.first_key_offset = sequence.firstKeyOffset
        problem.last_key_offset = sequence.lastKeyOffset
        masks.add(to: &problem, item: sequence.item, head: queryHead, key: sequence.keyOrigin)
        return problem
    }
}
