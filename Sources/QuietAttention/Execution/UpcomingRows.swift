// SPDX-License-Identifier: Apache-2.0
// UpcomingRows.swift - telling a kernel which rows the next one needs, so that memory answers while this one computes.

import CKernels

/// Some query rows of a head, the head counted within its group.
struct QueryRows {
    let group: ForwardSchedule.Group
    /// Of the group: the first of `heads`.
    let head: Int
    /// Of the queries of all heads, head by head.
    let rows: Range<Int>
    var heads = 1
}

extension ForwardRun {
    /// Prefetch hints: the queries that are read next and the output rows that are written next.
    func addHints(for next: QueryRows, to arguments: inout qattn_forward_args) {
        let start = next.group.sequence.queryStart
        let head = next.group.keyValueHead * schedule.groupHeads + next.head
        arguments.upcoming.0 = upcoming(
            tensors.queries, tensors.inputStorage, self.rows.queries, start: start, head: head, rows: next.rows,
            dimension: attention.shape.headDimension)
        arguments.upcoming.1 = upcoming(
            UnsafeRawPointer(tensors.output), tensors.outputStorage, self.rows.output, start: start, head: head,
            rows: next.rows, dimension: attention.shape.valueDimension)
    }

    /// Prefetch hints: part of the keys and values that the next group will pack: the `part`-th of `parts` equal shares.
    func addKeyHints(for next: ForwardSchedule.Group, part: Int, of parts: Int, to arguments: inout qattn_forward_args)
    {
        let sequence = next.sequence
        let first = sequence.keyOrigin + sequence.blocks.lowerBound * SequencePlan.block
        let count = sequence.keyOrigin + sequence.keys - first
        let rows = first + count * part / parts..<first + count * (part + 1) / parts
        arguments.upcoming.2 = upcoming(
            tensors.keys, tensors.inputStorage, self.rows.keys, start: sequence.keyStart, head: next.keyValueHead,
            rows: rows, dimension: attention.shape.headDimension)
        arguments.upcoming.3 = upcoming(
            tensors.values, tensors.inputStorage, self.rows.values, start: sequence.keyStart,
            head: next.keyValueHead, rows: rows, dimension: attention.shape.valueDimension)
    }

    private func upcoming(
        _ tensor: UnsafeRawPointer, _ storage: AttentionStorage, _ strides: RowStrides, start: Int, head: Int,
        rows: Range<Int>, dimension: Int
    ) -> qattn_upcoming_rows {
        let offset = strides.offset(start: start, head: head) + rows.lowerBound * strides.row
        return qattn_upcoming_rows(
            base: tensor + offset * storage.byteCount, stride_bytes: strides.row * storage.byteCount, rows: rows.count,
            row_bytes: dimension * storage.byteCount)
    }
}
