// SPDX-License-Identifier: Apache-2.0
// BiasGradients.swift - the gradients of the additive bias, from those of the finished scores.

import CKernels

/// What one worker sums at a time: one block of the keys, for rows that no other block of work has to share sums with.
private struct BiasPart {
    /// Groups whose scores are summed, in ascending order.
    let groups: [Int]
    /// Counted from the first key of each sequence.
    let block: Int
}

extension BackwardRun {
    /// Adds to every element of the bias the gradients u of the finished scores that it is part of: batch items ascending,
    /// then heads, then queries. After ``runAll()``, which leaves the deltas and the prepared rows.
    ///
    /// No sum is shared by workers. Memory: one panel of rows against one block of keys for each worker.
    ///
    /// - Parameter sums: the extents of the bias, adjacent.
    func addBiasGradients(to sums: UnsafeMutablePointer<Float>) {
        guard let extents = attention.bias?.extents else { return }
        if tensors.accumulates { Self.clearNegativeZeros(sums, count: extents.count) }
        let sums = SharedSums(first: sums)
        let parts = parts(extents)
        schedule.share(parts.count, memory) { number, worker in
            for group in parts[number].groups {
                addBiasGradients(of: attention.schedule.group(group), parts[number].block, extents, to: sums, worker)
            }
        }
    }

    /// Blocks of keys times the batch items and groups of heads that the bias tells apart.
    private func parts(_ extents: BroadcastTensor<Float>.Extents) -> [BiasPart] {
        let heads = attention.schedule.keyValueHeads
        let sequences = schedule.groups / max(heads, 1)
        func shared(_ extent: Int, _ count: Int) -> [Range<Int>] {
            extent == 1 ? [0..<count] : (0..<count).map { $0..<$0 + 1 }
        }
        let blocks = attention.schedule.sequences.reduce(0) {
            max($0, $1.keyOrigin / SequencePlan.block + $1.blocks.upperBound)
        }
        return shared(extents.batch, sequences).flatMap { sequences in
            shared(extents.heads, heads).flatMap { heads in
                let groups = sequences.flatMap { item in heads.map { item * attention.schedule.keyValueHeads + $0 } }
                return (0..<blocks).map { BiasPart(groups: groups, block: $0) }
            }
        }
    }

    private func addBiasGradients(
        of group: Group, _ block: Int, _ extents: BroadcastTensor<Float>.Extents, to sums: SharedSums, _ worker: Int
    ) {
        let sequence = group.sequence
        let own = block - sequence.keyOrigin / SequencePlan.block
        guard sequence.blocks.contains(own) else { return }
        let first = own * SequencePlan.block
        let count = min(SequencePlan.block, sequence.keys - first)
        let (rowStride, headStride) = (
            extents.queries == 1 ? 0 : extents.keys, extents.heads == 1 ? 0 : extents.queries * extents.keys
        )
        let itemStart = extents.batch == 1 ? 0 : sequence.item * extents.heads * extents.queries * extents.keys
        let start = sums.first + itemStart + sequence.keyOrigin + first
        forEachPanel(of: group, block: own, worker: worker) { head, rows, gradients in
            let headStart = start + (group.keyValueHead * groupHeads + head) * headStride
            for (index, row) in rows.enumerated() {
                let (sum, terms) = (headStart + row * rowStride, gradients + index * SequencePlan.block)
                for key in 0..<count { sum[key] += terms[key] }
            }
        }
    }

    // MARK: - Gradients of scores

    /// The gradients u of the scores of all rows of a group against one block of keys, a panel of rows of one head at a time:
    /// heads ascending, then rows. Panels that see nothing of the block are left out.
    ///
    /// - Parameter block: counted from the sequence's key origin.
    private func forEachPanel(
        of group: Group, block: Int, worker: Int,
        _ body: (_ head: Int, _ rows: Range<Int>, _ gradients: UnsafePointer<Float>) -> Void
    ) {
        let sequence = group.sequence
        let keys = block * SequencePlan.block..<(block + 1) * SequencePlan.block
        let gradients = schedule.scoreGradients(memory, worker: worker)
        var arguments = arguments(group, worker: worker)
        for head in 0..<groupHeads {
            for first in stride(from: 0, to: sequence.queries, by: BackwardSchedule.scoreRows) {
                let rows = first..<min(first + BackwardSchedule.scoreRows, sequence.queries)
                guard sequence.rowsMaySee(keys, rows) else { continue }
                arguments.row_begin = head * sequence.queries + rows.lowerBound
                arguments.row_end = head * sequence.queries + rows.upperBound
                kernels.pointee.score_gradients(&arguments, block, gradients)
                body(head, rows, gradients)
            }
        }
    }
}

/// Sums that workers write to, each to places of its own.
struct SharedSums: @unchecked Sendable {
    let first: UnsafeMutablePointer<Float>
}

extension SequencePlan {
    /// Whether some of these rows may see some of these keys, counted from the origin: false is sure.
    fileprivate func rowsMaySee(_ keys: Range<Int>, _ rows: Range<Int>) -> Bool {
        guard places == nil else { return true }
        return rows.lowerBound + firstKeyOffset < keys.upperBound
            && rows.upperBound - 1 + lastKeyOffset > keys.lowerBound
    }
}
