// SPDX-License-Identifier: Apache-2.0
// ForwardRun.swift - one forward call: its tensors and memory, and the kernel calls for each part of the work.

import CKernels

/// The tensors of one forward call.
struct ForwardTensors {
    let queries, keys, values: UnsafeRawPointer
    let inputStorage: AttentionStorage
    let output: UnsafeMutableRawPointer
    let outputStorage: AttentionStorage
    let logSumExp, sinkShare: UnsafeMutablePointer<Float>?
}

/// One forward call. Its parts write to places of their own, so workers share it without locks.
struct ForwardRun: @unchecked Sendable {
    let attention: Attention
    let tensors: ForwardTensors
    let mask: UnsafePointer<UInt8>?
    let bias: UnsafePointer<Float>?
    let memory: UnsafeMutableRawPointer

    typealias Group = ForwardSchedule.Group

    var schedule: ForwardSchedule { attention.schedule }

    func packedKeys(slot: Int) -> UnsafeMutablePointer<Float> {
        (memory + slot * schedule.memory.slotBytes).assumingMemoryBound(to: Float.self)
    }

    func packedValues(slot: Int) -> UnsafeMutablePointer<Float> {
        (memory + slot * schedule.memory.slotBytes + schedule.memory.keyBytes).assumingMemoryBound(to: Float.self)
    }

    func workspace(worker: Int) -> UnsafeMutablePointer<Float> {
        (memory + schedule.memory.workspaces + worker * schedule.memory.workspaceBytes)
            .assumingMemoryBound(to: Float.self)
    }

    // MARK: - Parts of the work

    /// Packs and computes whole groups, one after another in one slot.
    func runGroups(_ numbers: Range<Int>, slot: Int, worker: Int) {
        for number in numbers {
            let group = schedule.group(number)
            if !group.sequence.blocks.isEmpty { pack(group, blocks: group.sequence.blocks, slot: slot) }
            for head in 0..<schedule.groupHeads {
                compute(group, head: head, rows: 0..<group.sequence.queries, slot: slot, worker: worker)
            }
        }
    }

    func pack(_ group: Group, blocks: Range<Int>, slot: Int) {
        let sequence = group.sequence
        let size = tensors.inputStorage.byteCount
        let (keyRows, valueRows) = (attention.rows.keys, attention.rows.values)
        let keyOffset =
            keyRows.offset(start: sequence.keyStart, head: group.keyValueHead) + sequence.keyOrigin * keyRows.row
        let valueOffset =
            valueRows.offset(start: sequence.keyStart, head: group.keyValueHead) + sequence.keyOrigin * valueRows.row
        var arguments = qattn_pack_args(
            keys: tensors.keys + keyOffset * size, values: tensors.values + valueOffset * size,
            key_stride: keyRows.row, value_stride: valueRows.row, storage: tensors.inputStorage.kernelStorage,
            seq_kv: sequence.keys, head_dim: attention.shape.headDimension, value_dim: attention.shape.valueDimension,
            block_begin: blocks.lowerBound, block_end: blocks.upperBound,
            packed_keys: packedKeys(slot: slot), packed_values: packedValues(slot: slot))
        attention.kernels.functions.pointee.pack(&arguments)
    }

    /// Computes rows of one query head, counted within the group, in calls of as many as the kernel takes.
    func compute(_ group: Group, head: Int, rows: Range<Int>, slot: Int, worker: Int) {
        var arguments = forwardArguments(
            group.sequence, queryHead: group.keyValueHead * schedule.groupHeads + head, slot: slot, worker: worker)
        for begin in stride(from: rows.lowerBound, to: rows.upperBound, by: QATTN_QUERY_BLOCK) {
            arguments.query_begin = begin
            arguments.query_end = min(begin + QATTN_QUERY_BLOCK, rows.upperBound)
            attention.kernels.functions.pointee.forward(&arguments)
        }
    }

    private func forwardArguments(
        _ sequence: SequencePlan, queryHead: Int, slot: Int, worker: Int
    ) -> qattn_forward_args {
        let queryOffset = attention.rows.queries.offset(start: sequence.queryStart, head: queryHead)
        let outputOffset = attention.rows.output.offset(start: sequence.queryStart, head: queryHead)
        let rowOffset = attention.rows.sums.offset(start: sequence.queryStart, head: queryHead)
        let maskStrides = attention.mask.allowed?.strides ?? .none
        let biasStrides = attention.bias?.strides ?? .none
        let (item, origin) = (sequence.item, sequence.keyOrigin)
        return qattn_forward_args(
            queries: tensors.queries + queryOffset * tensors.inputStorage.byteCount,
            query_stride: attention.rows.queries.row, query_storage: tensors.inputStorage.kernelStorage,
            packed_keys: packedKeys(slot: slot), packed_values: packedValues(slot: slot),
            query_begin: 0, query_end: 0, seq_kv: sequence.keys,
            head_dim: attention.shape.headDimension, value_dim: attention.shape.valueDimension,
            scale: attention.scale, sink: attention.sinkLogit(queryHead: queryHead),
            first_key_offset: sequence.firstKeyOffset, last_key_offset: sequence.lastKeyOffset,
            mask: mask.map { $0 + maskStrides.offset(item: item, head: queryHead, key: origin) },
            mask_query_stride: maskStrides.queries, mask_key_stride: maskStrides.keys,
            bias: bias.map { $0 + biasStrides.offset(item: item, head: queryHead, key: origin) },
            bias_query_stride: biasStrides.queries, bias_key_stride: biasStrides.keys,
            out: tensors.output + outputOffset * tensors.outputStorage.byteCount,
            out_stride: attention.rows.output.row, out_storage: tensors.outputStorage.kernelStorage,
            lse: tensors.logSumExp.map { $0 + rowOffset }, sink_share: tensors.sinkShare.map { $0 + rowOffset },
            workspace: workspace(worker: worker))
    }
}

extension BroadcastTensor.Strides {
    /// No tensor, or one entry for all.
    static var none: Self { Self(batch: 0, heads: 0, queries: 0, keys: 0) }

    func offset(item: Int, head: Int, key: Int) -> Int { item * batch + head * heads + key * keys }
}
