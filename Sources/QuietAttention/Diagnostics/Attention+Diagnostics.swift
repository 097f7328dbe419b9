// SPDX-License-Identifier: Apache-2.0
// Attention+Diagnostics.swift - diagnostics of every row or head, computed while the keys pass by.

import CKernels

extension Attention {
    // MARK: - Rows

    /// How every row spreads its weight. The weights are never stored: a thread holds the scores of a few rows.
    ///
    /// - Parameters:
    ///   - queries: `[B, H, L, D]`.
    ///   - keys: `[B, G, S, D]`.
    ///   - epsilon: what counts as next to nothing: ``RowDiagnostics/shareBelowEpsilon``.
    ///   - leadingKeys: so many keys from the first on count for ``RowDiagnostics/leadingWeight``.
    /// - Returns: one per row, in the order of ``AttentionResult/logSumExp``: `[B, H, L]` in every layout, `[H, total]` for
    ///   a packed batch.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `epsilon`, `leadingKeys`, `composition` (a normaliser other than softmax, whose
    ///   weights are no distribution) or `memory`.
    public func diagnostics(
        queries: [Float], keys: [Float], epsilon: Double = 1e-3, leadingKeys: Int = 1
    ) throws(AttentionError) -> [RowDiagnostics] {
        try diagnostics(queries: queries.span, keys: keys.span, epsilon: epsilon, leadingKeys: leadingKeys)
    }

    /// How every row spreads its weight, for inputs of any storage type.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`, `epsilon`, `leadingKeys`, `composition` or `memory`.
    public func diagnostics<Input: AttentionScalar>(
        queries: Span<Input>, keys: Span<Input>, epsilon: Double = 1e-3, leadingKeys: Int = 1
    ) throws(AttentionError) -> [RowDiagnostics] {
        try inFloatMode { () throws(AttentionError) in
            try rowDiagnostics(queries: queries, keys: keys, epsilon: epsilon, leadingKeys: leadingKeys)
        }
    }

    private func rowDiagnostics<Input: AttentionScalar>(
        queries: Span<Input>, keys: Span<Input>, epsilon: Double, leadingKeys: Int
    ) throws(AttentionError) -> [RowDiagnostics] {
        try checkCount("queries", queries.count, shape.queryCount)
        try checkCount("keys", keys.count, shape.keyCount)
        guard epsilon >= 0, epsilon.isFinite else {
            throw AttentionError(.epsilon, "epsilon", expected: "a finite number, 0 or more", found: "\(epsilon)")
        }
        guard leadingKeys >= 0 else {
            throw AttentionError(.leadingKeys, "leadingKeys", expected: "0 or more", found: "\(leadingKeys)")
        }
        guard normaliser == .softmax else {
            throw AttentionError(
                .composition, "normaliser", expected: "softmax, whose weights and sink share sum to 1",
                found: normaliser.name)
        }
        guard shape.rowCount > 0 else { return [] }
        try CheckedMemory.check("diagnostics", count: shape.rowCount, of: RowDiagnostics.self)
        // As a forward pass would be cut up, but for values, and for the time that a pair of query and key takes.
        let keyShape = try AttentionShape(withoutValues: shape)
        let schedule = try ForwardSchedule(
            keyShape, mask: mask, preparesRows: preparation != nil, diagnoses: true, kernels: kernels,
            threads: threads,
            nanosecondsPerWorker: WorkerCount.nanosecondsPerWorker / RowDiagnosis.timesForward)
        let longest = schedule.sequences.reduce(0) { max($0, $1.blocks.count) } * SequencePlan.block
        let buffer = try workspace.take(
            byteCount: schedule.memory.byteCount + schedule.workers * RowDiagnosis.byteCount(keys: longest))
        defer { workspace.give(back: buffer) }
        return queries.withUnsafeBufferPointer { queries in
            keys.withUnsafeBufferPointer { keys in
                withMaskAndBias { mask, bias in
                    [RowDiagnostics](unsafeUninitializedCapacity: shape.rowCount) { results, count in
                        let diagnosis = RowDiagnosis(
                            shape: keyShape, schedule: schedule, results: results.baseAddress!, epsilon: epsilon,
                            leadingKeys: leadingKeys, buffers: buffer.address + schedule.memory.byteCount, keys: longest
                        )
                        // Neither values nor output are touched: any address will do.
                        let queries = UnsafeRawPointer(queries.baseAddress!)
                        let keys = keys.baseAddress.map { UnsafeRawPointer($0) } ?? queries
                        let tensors = ForwardTensors(
                            queries: queries, keys: keys, values: keys, inputStorage: Input.storage,
                            output: UnsafeMutableRawPointer(mutating: queries), outputStorage: .float32,
                            logSumExp: nil, sinkShare: nil)
                        ForwardRun(
                            attention: self, tensors: tensors, mask: mask, bias: bias, memory: buffer.address,
                            diagnosis: diagnosis
                        ).runAll()
                        count = shape.rowCount
                    }
                }
            }
        }
    }

    // MARK: - Heads

    /// How every query head spreads its weight: one per head, over all rows and batch items.
    ///
    /// - Parameters: as of ``diagnostics(queries:keys:epsilon:leadingKeys:)``.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `epsilon`, `leadingKeys`, `composition` or `memory`.
    public func headDiagnostics(
        queries: [Float], keys: [Float], epsilon: Double = 1e-3, leadingKeys: Int = 1
    ) throws(AttentionError) -> [HeadDiagnostics] {
        let rows = try diagnostics(queries: queries, keys: keys, epsilon: epsilon, leadingKeys: leadingKeys)
        let rowsPerHead = shape.isPacked ? shape.totalQueries : shape.queries
        // Where there are no rows, there may be any number of items.
        let items = shape.isPacked ? 1 : rows.isEmpty ? 0 : shape.batch
        return (0..<shape.queryHeads).map { head in
            HeadDiagnostics(
                (0..<items).flatMap { item in
                    let first = (item * shape.queryHeads + head) * rowsPerHead
                    return rows[first..<first + rowsPerHead]
                })
        }
    }
}

extension AttentionShape {
    /// The same problem with values of one element.
    fileprivate init(withoutValues shape: AttentionShape) throws(AttentionError) {
        if let queryOffsets = shape.queryOffsets {
            try self.init(
                packed: queryOffsets, keyOffsets: shape.keyOffsets, queryHeads: shape.queryHeads,
                keyValueHeads: shape.keyValueHeads, headDimension: shape.headDimension, valueDimension: 1)
        } else {
            try self.init(
                batch: shape.batch, queryHeads: shape.queryHeads, keyValueHeads: shape.keyValueHeads,
                queries: shape.queries, keys: shape.keys, headDimension: shape.headDimension, valueDimension: 1)
        }
    }
}

/// What a run makes of rows instead of output.
final class RowDiagnosis: @unchecked Sendable {
    /// With values of one element.
    let shape: AttentionShape
    let schedule: ForwardSchedule
    /// [B][H][L].
    let results: UnsafeMutablePointer<RowDiagnostics>
    let epsilon: Double
    let leadingKeys: Int
    /// One per worker, of ``byteCount(keys:)``.
    let buffers: UnsafeMutableRawPointer
    /// Most keys that a row's blocks hold.
    let keys: Int

    init(
        shape: AttentionShape, schedule: ForwardSchedule, results: UnsafeMutablePointer<RowDiagnostics>,
        epsilon: Double, leadingKeys: Int, buffers: UnsafeMutableRawPointer, keys: Int
    ) {
        (self.shape, self.schedule, self.results) = (shape, schedule, results)
        (self.epsilon, self.leadingKeys, self.buffers, self.keys) = (epsilon, leadingKeys, buffers, keys)
    }

    /// A pair of query and key takes at least so many times as long as in a forward pass.
    static let timesForward = 4.0
    /// Rows whose scores are held at once: two tiles of the kernels.
    static let rows = 12

    /// The scores of some rows as kernels give them, [block][row][key of the block], and of one row its scores and weights.
    static func byteCount(keys: Int) -> Int { (rows + 2) * keys * MemoryLayout<Float>.size }

    /// The diagnostics of the rows of a kernel call.
    ///
    /// - Parameter result: where that of row 0 goes.
    func run(
        _ arguments: qattn_forward_args, kernels: KernelSet, sink: Float, worker: Int,
        result: UnsafeMutablePointer<RowDiagnostics>
    ) {
        let scores = (buffers + worker * Self.byteCount(keys: keys)).assumingMemoryBound(to: Float.self)
        var part = arguments
        for begin in stride(from: arguments.row_begin, to: arguments.row_end, by: Self.rows) {
            part.row_begin = begin
            part.row_end = min(begin + Self.rows, arguments.row_end)
            let blocks = blocks(of: part)
            for block in blocks {
                kernels.functions.pointee.scores(
                    &part, block, scores + (block - blocks.lowerBound) * Self.rows * SequencePlan.block)
            }
            for row in begin..<part.row_end {
                // A sink that grows with the row's keys has that part of its logit here.
                let sink =
                    sink + (part.problem.row_constants.map { $0[row * part.problem.row_constant_strides.query] } ?? 0)
                let visible = gather(row - begin, blocks: blocks, from: scores)
                (result + row).initialize(
                    to: RowDiagnostics(
                        visible, sink: sink, epsilon: epsilon, isBiased: part.problem.bias != nil, kernels: kernels))
            }
        }
    }

    /// The blocks with a key that some of the rows see, masks and biases aside.
    private func blocks(of arguments: qattn_forward_args) -> Range<Int> {
        let first = max(0, arguments.row_begin + arguments.problem.first_key_offset)
        let last = min(arguments.problem.seq_kv, arguments.row_end - 1 + arguments.problem.last_key_offset)
        return first < last ? first / SequencePlan.block..<SequencePlan.blocks(of: last) : 0..<0
    }

    /// A row's scores above -inf, side by side, and room for its weights.
    private func gather(
        _ row: Int, blocks: Range<Int>, from scores: UnsafeMutablePointer<Float>
    ) -> VisibleScores {
        let visible = scores + Self.rows * keys
        var (count, leading, top, topKey) = (0, 0, -Float.infinity, 0)
        for block in blocks {
            let source = scores + ((block - blocks.lowerBound) * Self.rows + row) * SequencePlan.block
            for key in 0..<SequencePlan.block where source[key] != -.infinity {
                let score = source[key]
                visible[count] = score
                count += 1
                if block * SequencePlan.block + key < leadingKeys { leading = count }
                if score > top { (top, topKey) = (score, block * SequencePlan.block + key) }
            }
        }
        return VisibleScores(
            scores: UnsafeBufferPointer(start: visible, count: count),
            weights: UnsafeMutableBufferPointer(start: visible + keys, count: count), leading: leading, topKey: topKey)
    }
}
