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

    /// The packed keys and values of a slot, in Float: it is what the kernels compute fastest with.
    func blocks(slot: Int) -> qattn_blocks {
        qattn_blocks(
            base: memory + slot * schedule.memory.slotBytes, table: nil, storage: QATTN_FLOAT32,
            head_dim: attention.shape.headDimension, value_dim: attention.shape.valueDimension)
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
        let begin = blocks.lowerBound * SequencePlan.block
        let row = sequence.keyOrigin + begin
        let keyOffset = keyRows.offset(start: sequence.keyStart, head: group.keyValueHead) + row * keyRows.row
        let valueOffset = valueRows.offset(start: sequence.keyStart, head: group.keyValueHead) + row * valueRows.row
        var arguments = qattn_pack_args(
            keys: tensors.keys + keyOffset * size, values: tensors.values + valueOffset * size,
            key_stride: keyRows.row, value_stride: valueRows.row, storage: tensors.inputStorage.kernelStorage,
            key_begin: begin, key_end: min(blocks.upperBound * SequencePlan.block, sequence.keys),
            blocks: self.blocks(slot: slot))
        attention.kernels.functions.pointee.pack(&arguments)
    }

    /// Computes rows of one query head, counted within the group, in calls of as many as the kernel takes.
    func compute(_ group: Group, head: Int, rows: Range<Int>, slot: Int, worker: Int) {
        let queryHead = group.keyValueHead * schedule.groupHeads + head
        var arguments = forwardArguments(group.sequence, queryHead: queryHead, slot: slot, worker: worker)
        withUnsafePointer(to: attention.sinkLogit(queryHead: queryHead)) { sink in
            arguments.sinks = sink
            for begin in stride(from: rows.lowerBound, to: rows.upperBound, by: QATTN_QUERY_BLOCK) {
                arguments.row_begin = begin
                arguments.row_end = min(begin + QATTN_QUERY_BLOCK, rows.upperBound)
                attention.kernels.functions.pointee.forward(&arguments)
            }
        }
    }

    /// All but the sink and the rows.
    private func forwardArguments(
        _ sequence: SequencePlan, queryHead: Int, slot: Int, worker: Int
    ) -> qattn_forward_args {
        let rows = attention.rows
        let queryOffset = rows.queries.offset(start: sequence.queryStart, head: queryHead)
        let outputOffset = rows.output.offset(start: sequence.queryStart, head: queryHead)
        let sumOffset = rows.sums.offset(start: sequence.queryStart, head: queryHead)
        var arguments = qattn_forward_args()
        arguments.queries_base = tensors.queries + queryOffset * tensors.inputStorage.byteCount
        arguments.query_strides.query = rows.queries.row
        arguments.query_storage = tensors.inputStorage.kernelStorage
        arguments.blocks = blocks(slot: slot)
        arguments.heads = 1
        arguments.queries = sequence.queries
        arguments.seq_kv = sequence.keys
        arguments.scale = attention.scale
        arguments.first_key_offset = sequence.firstKeyOffset
        arguments.last_key_offset = sequence.lastKeyOffset
        arguments.out = tensors.output + outputOffset * tensors.outputStorage.byteCount
        arguments.out_strides.query = rows.output.row
        arguments.out_storage = tensors.outputStorage.kernelStorage
        arguments.lse = tensors.logSumExp.map { $0 + sumOffset }
        arguments.sink_share = tensors.sinkShare.map { $0 + sumOffset }
        arguments.workspace = workspace(worker: worker)
        addMaskAndBias(to: &arguments, sequence, queryHead: queryHead)
        return arguments
    }

    private func addMaskAndBias(to arguments: inout qattn_forward_args, _ sequence: SequencePlan, queryHead: Int) {
        if let mask, let strides = attention.mask.allowed?.strides {
            arguments.mask = mask + strides.offset(item: sequence.item, head: queryHead, key: sequence.keyOrigin)
            arguments.mask_strides = qattn_strides(head: strides.heads, query: strides.queries, key: strides.keys)
        }
        if let bias, let strides = attention.bias?.strides {
            arguments.bias = bias + strides.offset(item: sequence.item, head: queryHead, key: sequence.keyOrigin)
            arguments.bias_strides = qattn_strides(head: strides.heads, query: strides.queries, key: strides.keys)
        }
    }
}

extension BroadcastTensor.Strides {
    func offset(item: Int, head: Int, key: Int) -> Int { item * batch + head * heads + key * keys }
}
