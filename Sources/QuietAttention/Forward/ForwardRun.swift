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
    /// What backward needs of each row, or nil, both.
    var references, factors: UnsafeMutablePointer<Float>?
    /// Where their rows are; nil: as the layout says.
    var rows: TensorRows?
}

/// One forward call. Its parts write to places of their own, so workers share it without locks.
struct ForwardRun: @unchecked Sendable {
    let attention: Attention
    let tensors: ForwardTensors
    let masks: MaskPointers
    let memory: UnsafeMutableRawPointer
    /// Not nil: rows are diagnosed, and no output is computed. Values are not read then: blocks have one of each key's
    /// elements in their place.
    let diagnosis: RowDiagnosis?
    // What follows from these, looked up for every head of a batch.
    let rows: TensorRows
    let schedule: ForwardSchedule
    /// Of the work: without values where rows are diagnosed.
    let shape: AttentionShape

    typealias Group = ForwardSchedule.Group

    init(
        attention: Attention, tensors: ForwardTensors, masks: MaskPointers, memory: UnsafeMutableRawPointer,
        diagnosis: RowDiagnosis? = nil
    ) {
        (self.attention, self.tensors, self.masks) = (attention, tensors, masks)
        (self.memory, self.diagnosis) = (memory, diagnosis)
        rows = tensors.rows ?? attention.rows
        schedule = diagnosis?.schedule ?? attention.schedule
        shape = diagnosis?.shape ?? attention.shape
    }

    /// The packed keys and values of a slot, as they are multiplied.
    func blocks(slot: Int) -> qattn_blocks {
        qattn_blocks(
            base: memory + slot * schedule.memory.slotBytes, table: nil, storage: attention.products.packedStorage,
            head_dim: shape.headDimension, value_dim: shape.valueDimension)
    }

    func workspace(worker: Int) -> UnsafeMutablePointer<Float> {
        (memory + schedule.memory.workspaces + worker * schedule.memory.workspaceBytes)
            .assumingMemoryBound(to: Float.self)
    }

    // MARK: - Parts of the work

    /// All of the work.
    func runAll() {
        // A single worker takes whole groups: handing out items would only cost time.
        let alone = { runGroups(0..<schedule.groups, slot: 0, worker: 0) }
        if schedule.workers == 1 { alone() } else { runWorkers(alone: alone) }
    }

    /// Packs and computes whole groups, one after another in one slot.
    func runGroups(_ numbers: Range<Int>, slot: Int, worker: Int) {
        for number in numbers {
            let group = schedule.group(number)
            if schedule.packsAsItGoes {
                computeUnpacked(group, slot: slot, worker: worker)
                continue
            }
            let next = number + 1 < numbers.upperBound ? schedule.group(number + 1) : nil
            if !group.sequence.blocks.isEmpty { pack(group, blocks: group.sequence.blocks, slot: slot, worker: worker) }
            for head in 0..<schedule.groupHeads {
                let rows = QueryRows(group: group, head: head, rows: 0..<group.sequence.queries)
                let following =
                    head + 1 < schedule.groupHeads
                    ? first(of: group, head: head + 1) : next.map { first(of: $0, head: 0) }
                compute(rows, then: following, nextGroup: next, slot: slot, worker: worker)
            }
        }
    }

    private func first(of group: Group, head: Int) -> QueryRows {
        QueryRows(group: group, head: head, rows: 0..<min(schedule.queryBlock, group.sequence.queries))
    }

    func pack(_ group: Group, blocks: Range<Int>, slot: Int, worker: Int) {
        var arguments = packArguments(group, blocks: blocks, slot: slot)
        if let preparation = attention.preparation {
            pack(arguments, preparation, group, worker: worker)
        } else {
            attention.kernels.functions.pointee.pack(&arguments)
        }
    }

    private func packArguments(_ group: Group, blocks: Range<Int>, slot: Int) -> qattn_pack_args {
        let sequence = group.sequence
        let size = tensors.inputStorage.byteCount
        let keyRows = rows.keys
        let valueRows = diagnosis == nil ? rows.values : keyRows
        let begin = blocks.lowerBound * SequencePlan.block
        let row = sequence.keyOrigin + begin
        let keyOffset = keyRows.offset(start: sequence.keyStart, head: group.keyValueHead) + row * keyRows.row
        let valueOffset = valueRows.offset(start: sequence.keyStart, head: group.keyValueHead) + row * valueRows.row
        return qattn_pack_args(
            keys: tensors.keys + keyOffset * size, values: tensors.values + valueOffset * size,
            key_stride: keyRows.row, value_stride: valueRows.row,
            key_storage: tensors.inputStorage.kernelStorage, value_storage: tensors.inputStorage.kernelStorage,
            key_begin: begin, key_end: min(blocks.upperBound * SequencePlan.block, sequence.keys),
            blocks: self.blocks(slot: slot))
    }

    /// Computes all rows of a group, whose blocks are packed one after another into the place of one.
    private func computeUnpacked(_ group: Group, slot: Int, worker: Int) {
        let heads = schedule.groupHeads
        let rows = QueryRows(group: group, head: 0, rows: 0..<heads * group.sequence.queries, heads: heads)
        let keys = packArguments(group, blocks: 0..<group.sequence.blocks.upperBound, slot: slot)
        withUnsafePointer(to: keys) {
            compute(rows, unpacked: $0, then: nil, nextGroup: nil, slot: slot, worker: worker)
        }
    }

    /// Computes rows of query heads, in calls of as many as the kernel takes.
    ///
    /// - Parameters:
    ///   - unpacked: the keys and values of a group that is not packed.
    ///   - following: the rows that this worker takes up after these.
    ///   - nextGroup: the group that this worker packs after it has computed all of this one.
    func compute(
        _ rows: QueryRows, unpacked: UnsafePointer<qattn_pack_args>? = nil, then following: QueryRows?,
        nextGroup: Group?, slot: Int, worker: Int
    ) {
        let group = rows.group
        let queryHead = group.keyValueHead * schedule.groupHeads + rows.head
        var arguments = forwardArguments(group.sequence, queryHead: queryHead, slot: slot, worker: worker)
        arguments.problem.heads = rows.heads
        arguments.unpacked = unpacked
        arguments.beyond_caches = unpacked != nil && schedule.isBeyondCaches
        arguments.in_quarters = schedule.readsInQuarters
        let (queries, end) = (arguments.queries_base!, rows.rows.upperBound)
        let calls = (group.sequence.queries + schedule.queryBlock - 1) / schedule.queryBlock
        withUnsafeTemporaryAllocation(of: Float.self, capacity: rows.heads) { sinks in
            for head in 0..<rows.heads {
                sinks.initializeElement(at: head, to: attention.sinkLogit(queryHead: queryHead + head))
            }
            arguments.problem.sinks = UnsafePointer(sinks.baseAddress!)
            for begin in stride(from: rows.rows.lowerBound, to: end, by: schedule.queryBlock) {
                arguments.row_begin = begin
                arguments.row_end = min(begin + schedule.queryBlock, end)
                let next =
                    arguments.row_end < end
                    ? QueryRows(
                        group: group, head: rows.head,
                        rows: arguments.row_end..<min(arguments.row_end + schedule.queryBlock, end)) : following
                if let next { addHints(for: next, to: &arguments) }
                if let nextGroup {
                    let call = rows.head * calls + begin / schedule.queryBlock
                    addKeyHints(for: nextGroup, part: call, of: calls * schedule.groupHeads, to: &arguments)
                }
                if let preparation = attention.preparation {
                    prepareQueries(
                        of: &arguments, queries: queries, queryHead: queryHead, preparation, group, worker: worker)
                }
                if let diagnosis {
                    let sums = self.rows.sums.offset(start: group.sequence.queryStart, head: queryHead)
                    diagnosis.run(
                        arguments, group.sequence, head: queryHead, kernels: attention.kernels, sink: sinks[0],
                        worker: worker, result: diagnosis.results + sums)
                } else {
                    attention.kernels.functions.pointee.forward(&arguments)
                }
            }
        }
    }

    /// All but the sink and the rows.
    private func forwardArguments(
        _ sequence: SequencePlan, queryHead: Int, slot: Int, worker: Int
    ) -> qattn_forward_args {
        let queryOffset = rows.queries.offset(start: sequence.queryStart, head: queryHead)
        let outputOffset = rows.output.offset(start: sequence.queryStart, head: queryHead)
        let sumOffset = rows.sums.offset(start: sequence.queryStart, head: queryHead)
        var arguments = qattn_forward_args()
        arguments.problem = attention.problem(sequence, queryHead: queryHead, masks)
        arguments.queries_base = tensors.queries + queryOffset * tensors.inputStorage.byteCount
        arguments.query_strides = qattn_strides(head: rows.queries.head, query: rows.queries.row, key: 0)
        arguments.query_storage = tensors.inputStorage.kernelStorage
        arguments.blocks = blocks(slot: slot)
        arguments.out = tensors.output + outputOffset * tensors.outputStorage.byteCount
        arguments.out_strides = qattn_strides(head: rows.output.head, query: rows.output.row, key: 0)
        arguments.out_storage = tensors.outputStorage.kernelStorage
        arguments.lse = tensors.logSumExp.map { $0 + sumOffset }
        arguments.sink_share = tensors.sinkShare.map { $0 + sumOffset }
        arguments.references = tensors.references.map { $0 + sumOffset }
        arguments.factors = tensors.factors.map { $0 + sumOffset }
        arguments.sum_head_stride = rows.sums.head
        arguments.workspace = workspace(worker: worker)
        return arguments
    }
}
