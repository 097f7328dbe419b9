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

    /// - Parameter grids: what is added to, row by row, beside; nil: nothing.
    private func rowDiagnostics<Input: AttentionScalar>(
        queries: Span<Input>, keys: Span<Input>, epsilon: Double, leadingKeys: Int, grids: WeightGrids? = nil
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
        // As a forward pass would be cut up, but for values, and for the time that a pair of query and key takes.
        let keyShape = try AttentionShape(withoutValues: shape)
        let schedule = try ForwardSchedule(
            keyShape, mask: mask, preparesRows: preparation != nil, diagnoses: true,
            products: products, kernels: kernels, threads: threads,
            nanosecondsPerWorker: WorkerCount.nanosecondsPerWorker / RowDiagnosis.timesForward)
        let longest = schedule.sequences.reduce(0) { max($0, $1.blocks.count) } * SequencePlan.block
        let buffer = try workspace.take(
            byteCount: schedule.memory.byteCount + schedule.workers * RowDiagnosis.byteCount(keys: longest))
        defer { workspace.give(back: buffer) }
        try CheckedMemory.check("diagnostics", count: shape.rowCount, of: RowDiagnostics.self)
        return queries.withUnsafeBufferPointer { queries in
            keys.withUnsafeBufferPointer { keys in
                maskTensors.withPointers { masks in
                    [RowDiagnostics](unsafeUninitializedCapacity: shape.rowCount) { results, count in
                        let diagnosis = RowDiagnosis(
                            shape: keyShape, schedule: schedule, results: results.baseAddress!, epsilon: epsilon,
                            leadingKeys: leadingKeys, grids: grids,
                            buffers: buffer.address + schedule.memory.byteCount, keys: longest)
                        // Neither values nor output are touched: any address will do.
                        let queries = UnsafeRawPointer(queries.baseAddress!)
                        let keys = keys.baseAddress.map { UnsafeRawPointer($0) } ?? queries
                        let tensors = ForwardTensors(
                            queries: queries, keys: keys, values: keys, inputStorage: Input.storage,
                            output: UnsafeMutableRawPointer(mutating: queries), outputStorage: .float32,
                            logSumExp: nil, sinkShare: nil)
                        ForwardRun(
                            attention: self, tensors: tensors, masks: masks, memory: buffer.address,
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
    /// - Parameters: as of `diagnostics(queries:keys:epsilon:leadingKeys:)`.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `epsilon`, `leadingKeys`, `composition` or `memory`.
    public func headDiagnostics(
        queries: [Float], keys: [Float], epsilon: Double = 1e-3, leadingKeys: Int = 1
    ) throws(AttentionError) -> [HeadDiagnostics] {
        try heads(of: diagnostics(queries: queries, keys: keys, epsilon: epsilon, leadingKeys: leadingKeys))
    }

    private func heads(of rows: [RowDiagnostics]) throws(AttentionError) -> [HeadDiagnostics] {
        let rowsPerHead = shape.isPacked ? shape.totalQueries : shape.queries
        // Where there are no rows, there may be any number of items.
        let items = shape.isPacked ? 1 : rows.isEmpty ? 0 : shape.batch
        // The rows of a head, in arrays that grow.
        try CheckedMemory.check("diagnostics", count: 4 * items * rowsPerHead, of: RowDiagnostics.self)
        let heads = shape.queryHeads
        return (0..<heads).map { head in
            HeadDiagnostics(
                (0..<items).lazy.flatMap { item in
                    let first = (item * heads + head) * rowsPerHead
                    return rows[first..<first + rowsPerHead]
                })
        }
    }

    /// Where every query head puts its weight, as a picture of bounded size, with its diagnostics: one per head, over all
    /// rows and batch items. The weights are streamed: beside what `diagnostics(queries:keys:epsilon:leadingKeys:)` takes,
    /// memory is that of the result.
    ///
    /// - Parameters:
    ///   - queries: `[B, H, L, D]`.
    ///   - keys: `[B, G, S, D]`.
    ///   - rowBands: bands of rows, 1 to 1024; not more than the longest sequence has queries.
    ///   - keyBands: bands of keys, 1 to 1024; not more than the longest sequence has keys.
    ///   - epsilon: as of `diagnostics(queries:keys:epsilon:leadingKeys:)`.
    ///   - leadingKeys: likewise.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `bands`, `epsilon`, `leadingKeys`, `composition` or `memory`.
    public func headMaps(
        queries: [Float], keys: [Float], rowBands: Int = 48, keyBands: Int = 48, epsilon: Double = 1e-3,
        leadingKeys: Int = 1
    ) throws(AttentionError) -> [HeadMap] {
        for (name, bands) in [("rowBands", rowBands), ("keyBands", keyBands)] where !(1...1024).contains(bands) {
            throw AttentionError(.bands, name, expected: "1 to 1024", found: "\(bands)")
        }
        let grids = try WeightGrids(shape, rowBands: rowBands, keyBands: keyBands)
        let rows = try inFloatMode { () throws(AttentionError) in
            try rowDiagnostics(
                queries: queries.span, keys: keys.span, epsilon: epsilon, leadingKeys: leadingKeys, grids: grids)
        }
        return try heads(of: rows).enumerated().map { head, diagnostics in grids.map(ofHead: head, diagnostics) }
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
