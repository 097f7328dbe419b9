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
        arguments.upcoming.0 = .init(
            tensors.queries, tensors.inputStorage, self.rows.queries, start: start, head: head, rows: next.rows,
            dimension: attention.shape.headDimension)
        arguments.upcoming.1 = .init(
            tensors.output, tensors.outputStorage, self.rows.output, start: start, head: head, rows: next.rows,
            dimension: attention.shape.valueDimension)
    }

    /// Prefetch hints: part of the keys and values that the next group will pack: the `part`-th of `parts` equal shares.
    func addKeyHints(for next: ForwardSchedule.Group, part: Int, of parts: Int, to arguments: inout qattn_forward_args)
    {
        let sequence = next.sequence
        let first = sequence.keyOrigin + sequence.blocks.lowerBound * SequencePlan.block
        let count = sequence.keyOrigin + sequence.keys - first
        let rows = first + count * part / parts..<first + count * (part + 1) / parts
        arguments.upcoming.2 = .init(
            tensors.keys, tensors.inputStorage, self.rows.keys, start: sequence.keyStart, head: next.keyValueHead,
            rows: rows, dimension: attention.shape.headDimension)
        arguments.upcoming.3 = .init(
            tensors.values, tensors.inputStorage, self.rows.values, start: sequence.keyStart,
            head: next.keyValueHead, rows: rows, dimension: attention.shape.valueDimension)
    }
}

extension BackwardRun {
    /// Of each tensor of the next group: rows that small heads have, and the first ones of large heads.
    private static var hintedBytes: Int { 32 << 10 }

    /// Prefetch hints: what the next group of one's own reads and writes first.
    func addHints(for next: Group, to arguments: inout qattn_backward_args) {
        let (shape, sequence) = (attention.shape, next.sequence)
        func rows(
            _ tensor: UnsafeRawPointer, _ storage: AttentionStorage, _ strides: RowStrides, ofKeys: Bool = false,
            _ dimension: Int
        ) -> qattn_upcoming_rows {
            let most = max(1, Self.hintedBytes / (dimension * storage.byteCount))
            let first = ofKeys ? sequence.keyOrigin : 0
            return .init(
                tensor, storage, strides, start: ofKeys ? sequence.keyStart : sequence.queryStart,
                head: ofKeys ? next.keyValueHead : next.keyValueHead * groupHeads,
                rows: first..<first + min(most, ofKeys ? sequence.keys : sequence.queries), dimension: dimension)
        }
        let (input, strides, d, e) = (tensors.inputStorage, attention.rows, shape.headDimension, shape.valueDimension)
        arguments.upcoming = (
            rows(tensors.keys, input, strides.keys, ofKeys: true, d),
            rows(tensors.values, input, strides.values, ofKeys: true, e),
            rows(keySums, .float32, strides.keys, ofKeys: true, d),
            rows(valueSums, .float32, strides.values, ofKeys: true, e),
            rows(tensors.queries, input, strides.queries, d), rows(querySums, .float32, strides.queries, d),
            rows(tensors.output, tensors.outputStorage, strides.output, e),
            rows(tensors.outputGradient, tensors.outputGradientStorage, strides.output, e)
        )
    }
}

extension qattn_upcoming_rows {
    /// - Parameters:
    ///   - start: the sequence's first row.
    ///   - rows: of the sequence.
    fileprivate init(
        _ tensor: UnsafeRawPointer, _ storage: AttentionStorage, _ strides: RowStrides, start: Int, head: Int,
        rows: Range<Int>, dimension: Int
    ) {
        let offset = strides.offset(start: start, head: head) + rows.lowerBound * strides.row
        self.init(
            base: tensor + offset * storage.byteCount, stride_bytes: strides.row * storage.byteCount, rows: rows.count,
            row_bytes: dimension * storage.byteCount)
    }
}
