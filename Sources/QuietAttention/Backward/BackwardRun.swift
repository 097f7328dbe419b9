// SPDX-License-Identifier: Apache-2.0
// BackwardRun.swift - one backward call: its tensors, and the kernel calls for each part of the work.

import CKernels

/// The tensors of one backward call.
struct BackwardTensors {
    let queries, keys, values: UnsafeRawPointer
    let inputStorage: AttentionStorage
    let output: UnsafeRawPointer
    let outputStorage: AttentionStorage
    let outputGradient: UnsafeRawPointer
    let outputGradientStorage: AttentionStorage
    let logSumExpGradient, references, factors: UnsafePointer<Float>?
    let queryGradient, keyGradient, valueGradient: UnsafeMutableRawPointer
    let gradientStorage: AttentionStorage
    /// Whether gradients begin at what is there, instead of 0.
    let accumulates: Bool
    /// Of the norms' gains and biases; nil: not wanted.
    let queryParameters, keyParameters: (gain: UnsafeMutablePointer<Float>?, bias: UnsafeMutablePointer<Float>?)
}

/// One backward call. Its parts write to places of their own, or in an order that they wait for.
struct BackwardRun: @unchecked Sendable {
    typealias Group = ForwardSchedule.Group

    let attention: Attention
    let schedule: BackwardSchedule
    let tensors: BackwardTensors
    let masks: MaskPointers
    let memory: UnsafeMutableRawPointer

    var kernels: UnsafePointer<qattn_kernels> { attention.kernels.functions }
    var groupHeads: Int { attention.schedule.groupHeads }

    func runAll() {
        if schedule.takesWholeGroups {
            runWholeGroups()
        } else {
            for number in 0..<schedule.groups {
                let group = attention.schedule.group(number)
                shareRows(of: group, prepare)
                share(group)
                shareRows(of: group, finish)
            }
        }
        finishParameters()
    }

    // MARK: - Whole groups

    private func runWholeGroups() {
        schedule.share(schedule.groups, memory) { number, worker in
            // With several workers a guess: each takes the next group that nobody has.
            let next = number + schedule.workers
            runWhole(
                attention.schedule.group(number), next: next < schedule.groups ? attention.schedule.group(next) : nil,
                worker: worker)
        }
    }

    private func runWhole(_ group: Group, next: Group?, worker: Int) {
        let sequence = group.sequence
        for rows in rowPieces(of: group) { prepare(rows, of: group, worker: worker) }
        clearKeys(of: group, 0..<sequence.keys, andUnseen: true)
        var arguments = arguments(group, worker: worker)
        for head in 0..<groupHeads { clearQueries(of: group, head: head, 0..<sequence.queries) }
        arguments.row_end = groupHeads * sequence.queries
        arguments.key_end = sequence.keys
        if let next { addHints(for: next, to: &arguments) }
        kernels.pointee.deltas(&arguments)
        if sequence.keys > 0 { kernels.pointee.backward(&arguments) }
        for rows in rowPieces(of: group) { finish(rows, of: group, worker: worker) }
    }

    // MARK: - Shared groups

    /// Prepares or finishes the rows of one group on all workers.
    private func shareRows(of group: Group, _ body: @escaping (RowPiece, Group, _ worker: Int) -> Void) {
        let pieces = rowPieces(of: group)
        guard !pieces.isEmpty else { return }
        let body = SharedBody(body)
        schedule.share(pieces.count, memory) { number, worker in body.run(pieces[number], group, worker) }
    }

    /// One group on all workers: each takes panels of rows through the spans of keys that it holds.
    private func share(_ group: Group) {
        let sequence = group.sequence
        let panels = BackwardSchedule.panels(queries: sequence.queries)
        let spans = SharedSpans(
            schedule.counters(memory), spans: BackwardSchedule.spans(keys: sequence.keys), panels: groupHeads * panels)
        WorkerPool.shared.run(workers: schedule.workers, woken: schedule.wokenWorkers) { worker in
            spans.work { span, panel in
                let (head, part) = panel.quotientAndRemainder(dividingBy: panels)
                let first = part * BackwardSchedule.panelRows
                let rows = first..<min(first + BackwardSchedule.panelRows, sequence.queries)
                if panel == 0 { clearKeys(of: group, keys(ofSpan: span, sequence), andUnseen: span == 0) }
                run(group, span: span, head: head, rows: rows, worker: worker)
            }
        }
    }

    private func keys(ofSpan span: Int, _ sequence: SequencePlan) -> Range<Int> {
        let count = BackwardSchedule.spanBlocks * SequencePlan.block
        return min(span * count, sequence.keys)..<min((span + 1) * count, sequence.keys)
    }

    /// A panel of rows against a span of keys.
    private func run(_ group: Group, span: Int, head: Int, rows: Range<Int>, worker: Int) {
        let keys = keys(ofSpan: span, group.sequence)
        var arguments = arguments(group, worker: worker)
        (arguments.key_begin, arguments.key_end) = (keys.lowerBound, keys.upperBound)
        arguments.row_begin = head * group.sequence.queries + rows.lowerBound
        arguments.row_end = head * group.sequence.queries + rows.upperBound
        if span == 0 {
            clearQueries(of: group, head: head, rows)
            kernels.pointee.deltas(&arguments)
        }
        if !keys.isEmpty { kernels.pointee.backward(&arguments) }
    }

    // MARK: - Arguments

    /// Of the query heads of a group: all but the rows and keys.
    func arguments(_ group: Group, worker: Int) -> qattn_backward_args {
        let (sequence, rows) = (group.sequence, attention.rows)
        let queryHead = group.keyValueHead * groupHeads
        let queryOffset = rows.queries.offset(start: sequence.queryStart, head: queryHead)
        let outputOffset = rows.output.offset(start: sequence.queryStart, head: queryHead)
        let sumOffset = rows.sums.offset(start: sequence.queryStart, head: queryHead)
        let keyOffset = keyRow(group, sequence.keyOrigin)
        let valueOffset = valueRow(group, sequence.keyOrigin)
        var arguments = qattn_backward_args()
        arguments.problem = attention.problem(sequence, queryHead: queryHead, masks)
        arguments.problem.heads = groupHeads
        let (queries, keys, storage) = multiplied
        arguments.queries = queries + queryOffset * storage.byteCount
        arguments.query_strides = qattn_strides(head: rows.queries.head, query: rows.queries.row, key: 0)
        arguments.keys = keys + keyOffset * storage.byteCount
        arguments.values = tensors.values + valueOffset * tensors.inputStorage.byteCount
        arguments.key_stride = rows.keys.row
        arguments.value_stride = rows.values.row
        (arguments.query_storage, arguments.key_storage) = (storage.kernelStorage, storage.kernelStorage)
        arguments.value_storage = tensors.inputStorage.kernelStorage
        arguments.out_gradients = tensors.outputGradient + outputOffset * tensors.outputGradientStorage.byteCount
        arguments.out_gradient_strides = qattn_strides(head: rows.output.head, query: rows.output.row, key: 0)
        arguments.out_gradient_storage = tensors.outputGradientStorage.kernelStorage
        arguments.out = tensors.output + outputOffset * tensors.outputStorage.byteCount
        arguments.out_strides = arguments.out_gradient_strides
        arguments.out_storage = tensors.outputStorage.kernelStorage
        arguments.head_dim = attention.shape.headDimension
        arguments.value_dim = attention.shape.valueDimension
        arguments.in_pairs = attention.products == .bfloat16
        arguments.lse_gradients = tensors.logSumExpGradient.map { $0 + sumOffset }
        arguments.references = tensors.references.map { $0 + sumOffset }
        arguments.factors = tensors.factors.map { $0 + sumOffset }
        arguments.deltas = schedule.deltas(memory) + sumOffset
        arguments.sum_head_stride = rows.sums.head
        arguments.query_gradients = querySums + queryOffset
        arguments.query_gradient_strides = arguments.query_strides
        arguments.key_gradients = keySums + keyOffset
        arguments.value_gradients = valueSums + valueOffset
        arguments.key_gradient_stride = rows.keys.row
        arguments.value_gradient_stride = rows.values.row
        arguments.workspace = schedule.workspace(memory, worker: worker)
        return arguments
    }

    func keyRow(_ group: Group, _ row: Int) -> Int {
        attention.rows.keys.offset(start: group.sequence.keyStart, head: group.keyValueHead)
            + row * attention.rows.keys.row
    }

    func valueRow(_ group: Group, _ row: Int) -> Int {
        attention.rows.values.offset(start: group.sequence.keyStart, head: group.keyValueHead)
            + row * attention.rows.values.row
    }

    // MARK: - Where sums begin

    private func clearQueries(of group: Group, head: Int, _ rows: Range<Int>) {
        let queries = attention.rows.queries
        let first = queries.offset(
            start: group.sequence.queryStart, head: group.keyValueHead * groupHeads + head)
        begin(
            .queryGradients, querySums + first + rows.lowerBound * queries.row, rows: rows.count, stride: queries.row,
            dimension: attention.shape.headDimension)
    }

    /// - Parameters:
    ///   - keys: counted from the sequence's key origin.
    ///   - andUnseen: those before the origin and after the last that some row sees, too.
    private func clearKeys(of group: Group, _ keys: Range<Int>, andUnseen: Bool) {
        let (sequence, shape) = (group.sequence, attention.shape)
        let own = sequence.keyOrigin + keys.lowerBound..<sequence.keyOrigin + keys.upperBound
        let seenEnd = sequence.keyOrigin + sequence.keys
        for part in andUnseen
            ? [0..<sequence.keyOrigin, own, seenEnd..<attention.shape.keys(ofSequence: sequence.item)] : [own]
        {
            begin(
                .keyGradients, keySums + keyRow(group, part.lowerBound), rows: part.count,
                stride: attention.rows.keys.row, dimension: shape.headDimension)
            begin(
                .valueGradients, valueSums + valueRow(group, part.lowerBound), rows: part.count,
                stride: attention.rows.values.row, dimension: shape.valueDimension)
        }
    }

    /// Sums begin at +0, or at what is there. A -0 there counts as +0, and from 2^80 on, where products of bfloat16 cannot
    /// raise it, a number counts as infinite: otherwise bits would depend on whether a block adds its 0 or is skipped.
    private func begin(
        _ tensor: BackwardSchedule.FloatTensor, _ first: UnsafeMutablePointer<Float>, rows: Int, stride: Int,
        dimension: Int
    ) {
        let (runs, length) = stride == dimension ? (min(rows, 1), rows * dimension) : (rows, dimension)
        for run in 0..<runs {
            let start = first + run * stride
            guard continues(tensor) else {
                start.update(repeating: 0, count: length)
                continue
            }
            Self.clearNegativeZeros(start, count: length)
            guard attention.products == .bfloat16 else { continue }
            for index in 0..<length where start[index].magnitude >= 0x1p80 { start[index] *= .infinity }
        }
    }

    static func clearNegativeZeros(_ sums: UnsafeMutablePointer<Float>, count: Int) {
        for index in 0..<count where sums[index].bitPattern == (-0.0 as Float).bitPattern { sums[index] = 0 }
    }
}
