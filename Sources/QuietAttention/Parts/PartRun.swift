// SPDX-License-Identifier: Apache-2.0
// PartRun.swift - one chunk of keys against the rows of a PartwiseAttention, and their results: the kernel calls.

import CKernels

/// One chunk of the keys of a part. Its items write to places of their own, so workers share it without locks.
struct PartRun: @unchecked Sendable {
    let attention: PartwiseAttention
    let schedule: PartSchedule
    let memory: UnsafeMutableRawPointer
    let queries, keys, values: UnsafeRawPointer
    let storage: AttentionStorage
    /// The keys that the tensors hold, and those of the chunk among them.
    let part, chunk: Range<Int>
    /// Of the positions of the chunk's keys; nil where keys are not rotated.
    let table: RotaryTable?
    let masks: MaskPointers
    let totals: UnsafeMutablePointer<Float>

    private var shape: AttentionShape { attention.shape }
    private var stateFloats: Int { qattn_state_floats(shape.valueDimension) }

    func run(_ meanwhile: () -> Void) {
        if schedule.packsAsItGoes {
            schedule.share(shape.keyValueHeads, memory, meanwhile: meanwhile) { head, worker in
                compute(
                    queryHead: head * attention.groupHeads, heads: attention.groupHeads,
                    rows: 0..<attention.groupHeads * shape.queries, worker)
            }
            return
        }
        let packs =
            (SequencePlan.blocks(of: chunk.count) + ForwardSchedule.packItemBlocks - 1) / ForwardSchedule.packItemBlocks
        schedule.share(shape.keyValueHeads * packs, memory, meanwhile: meanwhile) { item, worker in
            let first = item % packs * ForwardSchedule.packItemBlocks * SequencePlan.block
            pack(
                head: item / packs,
                first..<min(first + ForwardSchedule.packItemBlocks * SequencePlan.block, chunk.count), worker)
        }
        let most = attention.kernels.callRows(attention.products.packedStorage)
        let runs = (shape.queries + most - 1) / most
        schedule.share(shape.queryHeads * runs, memory, meanwhile: meanwhile) { item, worker in
            // Last rows first: under a causal mask they see most.
            let begin = (runs - 1 - item % runs) * most
            compute(queryHead: item / runs, heads: 1, rows: begin..<min(begin + most, shape.queries), worker)
        }
    }

    /// Some keys of the chunk, counted from its first, where they are in the caller's tensors.
    private func packArguments(head: Int, _ rows: Range<Int>, into blocks: qattn_blocks) -> qattn_pack_args {
        let row = head * part.count + chunk.lowerBound - part.lowerBound + rows.lowerBound
        return qattn_pack_args(
            keys: keys + row * shape.headDimension * storage.byteCount,
            values: values + row * shape.valueDimension * storage.byteCount, key_stride: shape.headDimension,
            value_stride: shape.valueDimension, key_storage: storage.kernelStorage,
            value_storage: storage.kernelStorage, key_begin: rows.lowerBound, key_end: rows.upperBound, blocks: blocks)
    }

    private func blocks(_ base: UnsafeMutableRawPointer) -> qattn_blocks {
        qattn_blocks(
            base: base, table: nil, storage: attention.products.packedStorage, head_dim: shape.headDimension,
            value_dim: shape.valueDimension)
    }

    private func pack(head: Int, _ rows: Range<Int>, _ worker: Int) {
        let kernels = attention.kernels.functions
        let blocks = blocks(schedule.chunk(memory, head: head))
        guard let preparation = attention.preparation else {
            var arguments = packArguments(head: head, rows, into: blocks)
            kernels.pointee.pack(&arguments)
            return
        }
        let prepared = schedule.rows(memory, worker).assumingMemoryBound(to: Float.self)
        for begin in stride(from: rows.lowerBound, to: rows.upperBound, by: SequencePlan.block) {
            let block = begin..<min(begin + SequencePlan.block, rows.upperBound)
            var arguments = packArguments(head: head, block, into: blocks)
            preparation.keys.prepare(
                arguments.keys, head: head, stride: shape.headDimension, storage: storage, count: block.count,
                table: table.map { UnsafePointer($0.address + begin * (attention.angles?.rowFloats ?? 0)) },
                into: prepared, kernels)
            arguments.keys = UnsafeRawPointer(prepared)
            arguments.key_stride = RowPreparation.stride(shape.headDimension)
            arguments.key_storage = QATTN_FLOAT32
            kernels.pointee.pack(&arguments)
        }
    }

    /// Computes the chunk's states of rows of `heads` query heads, and joins them to what the rows know.
    ///
    /// - Parameters:
    ///   - queryHead: the first of them; all share a key/value head.
    ///   - rows: counted from the first of that head.
    private func compute(queryHead: Int, heads: Int, rows: Range<Int>, _ worker: Int) {
        let kernels = attention.kernels.functions
        let keyHead = queryHead / attention.groupHeads
        var arguments = qattn_forward_args()
        arguments.problem = attention.problem(queryHead: queryHead, heads: heads, keys: chunk, masks)
        (arguments.row_begin, arguments.row_end) = (rows.lowerBound, rows.upperBound)
        arguments.queries_base = queries + queryHead * shape.queries * shape.headDimension * storage.byteCount
        arguments.query_strides = qattn_strides(
            head: shape.queries * shape.headDimension, query: shape.headDimension, key: 0)
        arguments.query_storage = storage.kernelStorage
        arguments.workspace = schedule.workspace(memory, worker)
        arguments.states = schedule.states(memory, worker)
        arguments.chunk_end = 1
        let first = totals + (queryHead * shape.queries + rows.lowerBound) * stateFloats
        if schedule.packsAsItGoes {
            arguments.blocks = blocks(schedule.rows(memory, worker))
            let unpacked = packArguments(head: keyHead, 0..<chunk.count, into: arguments.blocks)
            withUnsafePointer(to: unpacked) {
                arguments.unpacked = $0
                (arguments.beyond_caches, arguments.in_quarters) = (true, schedule.readsInQuarters)
                kernels.pointee.forward(&arguments)
            }
        } else {
            arguments.blocks = blocks(schedule.chunk(memory, head: keyHead))
            prepareQueries(of: &arguments, queryHead: queryHead, worker)
            kernels.pointee.forward(&arguments)
        }
        kernels.pointee.merge(&arguments, first)
    }

    private func prepareQueries(of arguments: inout qattn_forward_args, queryHead: Int, _ worker: Int) {
        guard let preparation = attention.preparation else { return }
        let prepared = schedule.rows(memory, worker).assumingMemoryBound(to: Float.self)
        let first = arguments.row_begin
        preparation.queries.prepare(
            arguments.queries_base + first * shape.headDimension * storage.byteCount, head: queryHead,
            stride: shape.headDimension, storage: storage, count: arguments.row_end - first,
            table: attention.queryTable.map {
                UnsafePointer($0.address + first * (attention.angles?.rowFloats ?? 0))
            }, into: prepared, attention.kernels.functions)
        // Row `first` is the first one there.
        let rowStride = RowPreparation.stride(shape.headDimension)
        arguments.queries_base = UnsafeRawPointer(prepared) - first * rowStride * MemoryLayout<Float>.stride
        arguments.query_strides.query = rowStride
        arguments.query_storage = QATTN_FLOAT32
    }
}

/// The results of all rows from their states.
struct PartResults: @unchecked Sendable {
    let attention: PartwiseAttention
    let schedule: PartSchedule
    let memory: UnsafeMutableRawPointer
    let states: UnsafeMutablePointer<Float>
    let output: UnsafeMutableRawPointer
    let storage: AttentionStorage
    let logSumExp, sinkShare, references, factors: UnsafeMutablePointer<Float>?
    let masks: MaskPointers

    func run() {
        let most = attention.kernels.queryBlock
        let rows = attention.shape.rowCount
        schedule.share((rows + most - 1) / most, memory) { item, worker in
            finish(item * most..<min((item + 1) * most, rows), worker)
        }
    }

    private func finish(_ rows: Range<Int>, _ worker: Int) {
        let shape = attention.shape
        var arguments = qattn_forward_args()
        arguments.problem = attention.problem(queryHead: 0, heads: shape.queryHeads, keys: 0..<0, masks)
        arguments.blocks.head_dim = 1
        arguments.blocks.value_dim = shape.valueDimension
        arguments.out = output
        arguments.out_strides = qattn_strides(
            head: shape.queries * shape.valueDimension, query: shape.valueDimension, key: 0)
        arguments.out_storage = storage.kernelStorage
        (arguments.lse, arguments.sink_share) = (logSumExp, sinkShare)
        (arguments.references, arguments.factors) = (references, factors)
        arguments.sum_head_stride = shape.queries
        arguments.chunk_end = 1
        (arguments.row_begin, arguments.row_end) = (rows.lowerBound, rows.upperBound)
        arguments.states = states + rows.lowerBound * qattn_state_floats(shape.valueDimension)
        arguments.workspace = schedule.workspace(memory, worker)
        attention.sinks.withUnsafeBufferPointer { sinks in
            arguments.problem.sinks = sinks.baseAddress
            attention.kernels.functions.pointee.finish(&arguments)
        }
    }
}
