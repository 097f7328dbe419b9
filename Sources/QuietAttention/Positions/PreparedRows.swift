// SPDX-License-Identifier: Apache-2.0
// PreparedRows.swift - a forward call whose queries and keys are normalised or rotated: a few rows at a time, right before
// the kernels that multiply them.

import CKernels

extension ForwardRun {
    /// Room of a worker for prepared rows, behind the workspace of its kernel calls.
    private func preparedRows(worker: Int) -> UnsafeMutablePointer<Float> {
        let bytes = UnsafeMutableRawPointer(workspace(worker: worker))
        return (bytes + ForwardSchedule.Memory.forwardBytes(shape)).assumingMemoryBound(to: Float.self)
    }

    /// Packs as the arguments say, block by block: prepares the keys of a block, then packs them with its values.
    func pack(_ arguments: qattn_pack_args, _ preparation: RowPreparation, _ group: Group, worker: Int) {
        let prepared = preparedRows(worker: worker)
        let keys = arguments.keys!
        let values = arguments.values!
        let size = tensors.inputStorage.byteCount
        var block = arguments
        block.keys = UnsafeRawPointer(prepared)
        block.key_stride = RowPreparation.stride(attention.shape.headDimension)
        block.key_storage = QATTN_FLOAT32
        for begin in stride(from: arguments.key_begin, to: arguments.key_end, by: SequencePlan.block) {
            block.key_begin = begin
            block.key_end = min(begin + SequencePlan.block, arguments.key_end)
            let row = begin - arguments.key_begin
            preparation.keys.prepare(
                keys + row * arguments.key_stride * size, head: group.keyValueHead, stride: arguments.key_stride,
                storage: tensors.inputStorage, count: block.key_end - begin,
                table: attention.positionTables?.keys(
                    item: group.sequence.item, row: group.sequence.keyOrigin + begin),
                into: prepared, attention.kernels.functions)
            block.values = values + row * arguments.value_stride * size
            attention.kernels.functions.pointee.pack(&block)
        }
    }

    /// Prepares the query rows of a call, and makes its arguments refer to them.
    ///
    /// - Parameters:
    ///   - queries: the tensor's row 0 of the call's head.
    ///   - queryHead: that head.
    func prepareQueries(
        of arguments: inout qattn_forward_args, queries: UnsafeRawPointer, queryHead: Int,
        _ preparation: RowPreparation, _ group: Group, worker: Int
    ) {
        let prepared = preparedRows(worker: worker)
        let (first, stride) = (arguments.row_begin, rows.queries.row)
        preparation.queries.prepare(
            queries + first * stride * tensors.inputStorage.byteCount, head: queryHead, stride: stride,
            storage: tensors.inputStorage, count: arguments.row_end - first,
            table: attention.positionTables?.queries(item: group.sequence.item, row: first), into: prepared,
            attention.kernels.functions)
        // Row `first` is the first one there.
        let rowStride = RowPreparation.stride(attention.shape.headDimension)
        arguments.queries_base = UnsafeRawPointer(prepared) - first * rowStride * MemoryLayout<Float>.stride
        arguments.query_strides.query = rowStride
        arguments.query_storage = QATTN_FLOAT32
    }
}
