// SPDX-License-Identifier: Apache-2.0
// RingProblem.swift - the sequences of a batch, and the attention of some rows of one, from options.

import ArgumentParser
import QuietAttention
import Ring

/// What options come to, for sequences that ranks share.
struct RingProblem {
    let shape: AttentionShape
    let arguments: AttentionArguments
    let scores: ScoreOptions
    let tensors: AttentionTensors
    let threads: Int?
    let kernels: KernelSet?

    /// Memory that all calls of a rank share.
    private let workspace = AttentionWorkspace()

    init(
        _ shape: AttentionShape, _ options: AttentionOptions, _ arguments: AttentionArguments,
        _ tensors: AttentionTensors
    ) throws {
        (self.shape, self.arguments, scores, self.tensors) = (shape, arguments, options.scores, tensors)
        (threads, kernels) = (options.machine.threads, try options.machine.kernelSet)
    }

    /// How ranks share the sequence of a batch item.
    func plan(_ item: Int, ranks: Int) -> RingPlan {
        let keys = tensors.keyLengths?[item] ?? shape.keys
        let end = tensors.padding == .keys ? keys : shape.keys
        return RingPlan(
            ranks: ranks, queries: shape.queries, keys: keys, diagonal: end - shape.queries, mask: scores.mask.mask)
    }

    /// The attention of some rows; `multiplied`: of rows and keys that are normalised and rotated already.
    func attention(
        _ plan: RingPlan, rows: some Collection<Int>, multiplied: Bool = false
    ) throws -> PartwiseAttention {
        try PartwiseAttention(
            queryHeads: shape.queryHeads, keyValueHeads: shape.keyValueHeads, headDimension: shape.headDimension,
            valueDimension: shape.valueDimension, keys: plan.keys,
            places: QueryPlaces(positions: rows.map { $0 + plan.diagonal }), rules: arguments.rules, mask: plan.mask,
            positions: multiplied ? .none : arguments.positions,
            queryKeyNorm: multiplied ? nil : arguments.queryKeyNorm, threads: threads, kernels: kernels,
            workspace: workspace)
    }
}

extension ScoreOptions {
    /// Refuses what ranks cannot share.
    func checkForRanks() throws {
        guard normaliser.library == .softmax else {
            throw ValidationError("--normaliser: expected softmax: states of others do not merge, got \(normaliser)")
        }
    }
}
