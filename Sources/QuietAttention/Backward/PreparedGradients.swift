// SPDX-License-Identifier: Apache-2.0
// PreparedGradients.swift - what stands between the kernels of a backward pass and the caller's tensors: rows that are
// prepared before, and gradients of Float that are rotated back, normalised back or rounded afterwards.

import CKernels

/// Some rows of one head that are prepared or finished together.
struct RowPiece {
    enum Tensor {
        /// Of a query head, counted from the group's first.
        case queries(head: Int)
        case keys, values
    }

    let tensor: Tensor
    /// Counted from the first row of the sequence.
    let rows: Range<Int>
}

/// A function that workers share. It writes to places of its own for each piece.
struct SharedBody: @unchecked Sendable {
    let run: (RowPiece, ForwardSchedule.Group, _ worker: Int) -> Void

    init(_ run: @escaping (RowPiece, ForwardSchedule.Group, _ worker: Int) -> Void) { self.run = run }
}

extension BackwardRun {
    /// Rows of one piece: a multiple of 64, whose sums of gains and biases are one.
    private static let pieceRows = 256

    /// Queries and keys as kernels multiply them, in the order of the caller's.
    var multiplied: (queries: UnsafeRawPointer, keys: UnsafeRawPointer, storage: AttentionStorage) {
        guard let queries = schedule.tensor(.queries, memory), let keys = schedule.tensor(.keys, memory) else {
            return (tensors.queries, tensors.keys, tensors.inputStorage)
        }
        return (UnsafeRawPointer(queries), UnsafeRawPointer(keys), .float32)
    }

    /// Where kernels sum gradients: in memory of the call, or in the caller's own.
    var querySums: UnsafeMutablePointer<Float> { sums(.queryGradients, tensors.queryGradient) }
    var keySums: UnsafeMutablePointer<Float> { sums(.keyGradients, tensors.keyGradient) }
    var valueSums: UnsafeMutablePointer<Float> { sums(.valueGradients, tensors.valueGradient) }

    private func sums(
        _ tensor: BackwardSchedule.FloatTensor, _ own: UnsafeMutableRawPointer
    ) -> UnsafeMutablePointer<Float> {
        schedule.tensor(tensor, memory) ?? own.assumingMemoryBound(to: Float.self)
    }

    /// Whether the sums go on with what the caller's memory holds. Other sums are added to it when they are finished.
    func continues(_ tensor: BackwardSchedule.FloatTensor) -> Bool {
        tensors.accumulates && schedule.tensor(tensor, memory) == nil
    }

    // MARK: - Pieces

    /// The rows of a group that are prepared before the kernels and finished after them; none where the kernels read and
    /// write the caller's own memory.
    func rowPieces(of group: Group) -> [RowPiece] {
        func pieces(_ tensor: RowPiece.Tensor, _ count: Int) -> [RowPiece] {
            stride(from: 0, to: count, by: Self.pieceRows).map {
                RowPiece(tensor: tensor, rows: $0..<min($0 + Self.pieceRows, count))
            }
        }
        guard schedule.tensor(.queryGradients, memory) != nil else { return [] }
        let keys = attention.shape.keys(ofSequence: group.sequence.item)
        let queries = (0..<groupHeads).flatMap { pieces(.queries(head: $0), group.sequence.queries) }
        func keyPieces(_ tensor: RowPiece.Tensor, _ sums: BackwardSchedule.FloatTensor) -> [RowPiece] {
            schedule.tensor(sums, memory) == nil ? [] : pieces(tensor, keys)
        }
        return queries + keyPieces(.keys, .keyGradients) + keyPieces(.values, .valueGradients)
    }

    /// Where a piece is: elements from the tensor's first to the piece's first row, elements between rows, and the head.
    private func place(_ piece: RowPiece, _ group: Group) -> (offset: Int, stride: Int, head: Int) {
        let first = piece.rows.lowerBound
        switch piece.tensor {
        case .queries(let head):
            let (rows, queryHead) = (attention.rows.queries, group.keyValueHead * groupHeads + head)
            let start = rows.offset(start: group.sequence.queryStart, head: queryHead)
            return (start + first * rows.row, rows.row, queryHead)
        case .keys: return (keyRow(group, first), attention.rows.keys.row, group.keyValueHead)
        case .values: return (valueRow(group, first), attention.rows.values.row, group.keyValueHead)
        }
    }

    // MARK: - Before and after

    /// Normalises and rotates rows of queries or keys.
    func prepare(_ piece: RowPiece, of group: Group, worker: Int) {
        guard let preparation = attention.preparation else { return }
        let (offset, stride, head) = place(piece, group)
        switch piece.tensor {
        case .queries:
            prepare(
                piece, tensors.queries, preparation.queries, head: head, offset, stride,
                table: attention.positionTables?.queries(item: group.sequence.item, row: piece.rows.lowerBound),
                into: schedule.tensor(.queries, memory)!)
        case .keys:
            prepare(
                piece, tensors.keys, preparation.keys, head: head, offset, stride,
                table: attention.positionTables?.keys(item: group.sequence.item, row: piece.rows.lowerBound),
                into: schedule.tensor(.keys, memory)!)
        case .values: break
        }
    }

    private func prepare(
        _ piece: RowPiece, _ rows: UnsafeRawPointer, _ side: PreparedSide, head: Int, _ offset: Int, _ stride: Int,
        table: UnsafePointer<Float>?, into prepared: UnsafeMutablePointer<Float>
    ) {
        side.prepare(
            rows + offset * tensors.inputStorage.byteCount, head: head, stride: stride,
            storage: tensors.inputStorage, count: piece.rows.count, table: table, into: prepared + offset,
            outStride: stride, kernels)
    }

    /// From sums in Float to the caller's gradients.
    func finish(_ piece: RowPiece, of group: Group, worker: Int) {
        // Gains and biases want all rows in one order: then all is finished in the end.
        if wantsParameters { return }
        finish(piece, of: group, worker: worker, addingParameters: false)
    }

    private var wantsParameters: Bool {
        [tensors.queryParameters, tensors.keyParameters].contains { $0.gain != nil || $0.bias != nil }
    }

    /// All rows in the order of batch items, heads and rows, on this thread, if gains or biases have gradients.
    func finishParameters() {
        guard wantsParameters else { return }
        for number in 0..<schedule.groups {
            let group = attention.schedule.group(number)
            for piece in rowPieces(of: group) { finish(piece, of: group, worker: 0, addingParameters: true) }
        }
    }

    private func finish(_ piece: RowPiece, of group: Group, worker: Int, addingParameters: Bool) {
        let item = group.sequence.item
        let first = piece.rows.lowerBound
        let (offset, stride, head) = place(piece, group)
        let unchanged = PreparedSide.unchanged(dimension: attention.shape.headDimension)
        let (side, rows, sums, gradients, table, parameters):
            (
                PreparedSide, UnsafeRawPointer, UnsafePointer<Float>, UnsafeMutableRawPointer, UnsafePointer<Float>?,
                (gain: UnsafeMutablePointer<Float>?, bias: UnsafeMutablePointer<Float>?)
            ) =
                switch piece.tensor {
                case .queries:
                    (
                        attention.preparation?.queries ?? unchanged, tensors.queries, UnsafePointer(querySums),
                        tensors.queryGradient,
                        attention.positionTables?.queries(item: item, row: first), tensors.queryParameters
                    )
                case .keys:
                    (
                        attention.preparation?.keys ?? unchanged, tensors.keys, UnsafePointer(keySums),
                        tensors.keyGradient,
                        attention.positionTables?.keys(item: item, row: first), tensors.keyParameters
                    )
                case .values:
                    (
                        PreparedSide.unchanged(dimension: attention.shape.valueDimension), tensors.values,
                        UnsafePointer(valueSums), tensors.valueGradient, nil, (nil, nil)
                    )
                }
        side.withArguments(
            rows + offset * tensors.inputStorage.byteCount, head: head, stride: stride,
            storage: tensors.inputStorage, count: piece.rows.count, table: table
        ) { prepared in
            var arguments = qattn_prepare_backward_args()
            arguments.prepare = prepared
            arguments.gradients = sums + offset
            arguments.gradient_stride = stride
            arguments.row_gradients = gradients + offset * tensors.gradientStorage.byteCount
            arguments.row_gradient_stride = stride
            arguments.row_gradient_storage = tensors.gradientStorage.kernelStorage
            arguments.accumulates = tensors.accumulates
            if addingParameters {
                func vector(_ all: UnsafeMutablePointer<Float>?, _ count: Int?) -> UnsafeMutablePointer<Float>? {
                    all.map { $0 + side.vectorOffset(count: count ?? 0, head: head) }
                }
                arguments.gain_gradient = vector(parameters.gain, side.gain?.count)
                arguments.shift_gradient = vector(parameters.bias, side.shift?.count)
            }
            arguments.workspace = schedule.workspace(memory, worker: worker)
            kernels.pointee.prepare_backward(&arguments)
        }
    }
}
