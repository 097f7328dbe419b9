// SPDX-License-Identifier: Apache-2.0
// PartwiseAttention+PreparedRows.swift - queries and keys as they are multiplied, and from the gradients of these to their own.

import CKernels

extension PartwiseAttention {
    /// Whether queries and keys are normalised or rotated before they are multiplied.
    public var preparesRows: Bool { preparation != nil }

    /// The queries as they are multiplied.
    ///
    /// - Parameters:
    ///   - queries: `[H, L, D]`.
    ///   - prepared: `[H, L, D]`.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func prepareQueries<Input: AttentionScalar>(
        _ queries: UnsafeBufferPointer<Input>, into prepared: UnsafeMutableBufferPointer<Float>
    ) throws(AttentionError) {
        try checkCount("prepared", prepared.count, shape.queryCount)
        try querySide(queries).prepare(into: prepared)
    }

    /// The keys of a part as they are multiplied.
    ///
    /// - Parameters:
    ///   - keys: `[G, n, D]`.
    ///   - range: as of ``add(_:values:of:queries:to:meanwhile:)``.
    ///   - prepared: `[G, n, D]`.
    /// - Throws: ``AttentionError`` of kind `keyRange`, `elementCount` or `memory`.
    public func prepareKeys<Input: AttentionScalar>(
        _ keys: UnsafeBufferPointer<Input>, of range: Range<Int>, into prepared: UnsafeMutableBufferPointer<Float>
    ) throws(AttentionError) {
        let side = try keySide(keys, range)
        try checkCount("prepared", prepared.count, keys.count)
        try side.prepare(into: prepared)
    }

    /// From the gradient of queries as they are multiplied to that of the queries, in place.
    ///
    /// Gradients of the norm's gain and bias are sums over runs of 64 rows, R = L / 64 of them, rounded up: those of a whole sequence,
    /// added to 0 in ascending order of heads and rows, have the bits of ``Attention``, if rows begin at a query of the sequence whose
    /// number is a multiple of 64, and follow each other but for such runs.
    ///
    /// - Parameters:
    ///   - gradient: `[H, L, D]`.
    ///   - queries: `[H, L, D]`.
    ///   - gain: `[H, R, D]`; nil: not wanted.
    ///   - bias: `[H, R, D]`; nil: not wanted.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `composition` (a gain or bias that the norm has not) or `memory`.
    public func finishQueryGradient<Input: AttentionScalar>(
        _ gradient: UnsafeMutableBufferPointer<Float>, queries: UnsafeBufferPointer<Input>,
        gain: UnsafeMutableBufferPointer<Float>? = nil, bias: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        try checkCount("gradient", gradient.count, shape.queryCount)
        try querySide(queries).finish(gradient, gain: gain, bias: bias)
    }

    /// From the gradient of a part's keys as they are multiplied to that of the keys, in place.
    ///
    /// - Parameters:
    ///   - gradient: `[G, n, D]`.
    ///   - keys: `[G, n, D]`.
    ///   - range: as of ``add(_:values:of:queries:to:meanwhile:)``.
    ///   - gain: `[G, R, D]`, as of ``finishQueryGradient(_:queries:gain:bias:)``; nil: not wanted.
    ///   - bias: `[G, R, D]`; nil: not wanted.
    /// - Throws: ``AttentionError`` of kind `keyRange`, `elementCount`, `composition` (a gain or bias that the norm has not) or `memory`.
    public func finishKeyGradient<Input: AttentionScalar>(
        _ gradient: UnsafeMutableBufferPointer<Float>, keys: UnsafeBufferPointer<Input>, of range: Range<Int>,
        gain: UnsafeMutableBufferPointer<Float>? = nil, bias: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        let side = try keySide(keys, range)
        try checkCount("gradient", gradient.count, keys.count)
        try side.finish(gradient, gain: gain, bias: bias)
    }

    /// What each row adds to the gradient of the logarithm of its head's scale: `sum_d q[i][d] dq[i][d]`.
    ///
    /// - Parameters:
    ///   - queries: `[H, L, D]`, as they are multiplied.
    ///   - queryGradient: `[H, L, D]`, of the queries as they are multiplied, over all keys.
    ///   - terms: `[H, L]`.
    /// - Throws: ``AttentionError`` of kind `elementCount`.
    public func logScaleTerms<Input: AttentionScalar>(
        queries: UnsafeBufferPointer<Input>, queryGradient: UnsafeBufferPointer<Float>,
        into terms: UnsafeMutableBufferPointer<Float>
    ) throws(AttentionError) {
        try checkCount("queries", queries.count, shape.queryCount)
        try checkCount("queryGradient", queryGradient.count, shape.queryCount)
        try checkCount("terms", terms.count, shape.rowCount)
        guard shape.rowCount > 0 else { return }
        var arguments = qattn_backward_args()
        arguments.problem = problem(queryHead: 0, heads: shape.queryHeads, keys: 0..<0, .none)
        arguments.row_end = shape.rowCount
        arguments.head_dim = shape.headDimension
        arguments.in_pairs = products == .bfloat16
        arguments.queries = UnsafeRawPointer(queries.baseAddress)
        arguments.query_storage = Input.storage.kernelStorage
        arguments.query_strides = qattn_strides(
            head: shape.queries * shape.headDimension, query: shape.headDimension, key: 0)
        // Only read.
        arguments.query_gradients = UnsafeMutablePointer(mutating: queryGradient.baseAddress)
        arguments.query_gradient_strides = arguments.query_strides
        kernels.functions.pointee.log_scale_gradients(&arguments, terms.baseAddress)
    }

    // MARK: - The two sides

    private func querySide<Input: AttentionScalar>(
        _ queries: UnsafeBufferPointer<Input>
    ) throws(AttentionError) -> PartSide<Input> {
        try checkCount("queries", queries.count, shape.queryCount)
        return PartSide(
            attention: self, name: "query", rows: queries, heads: shape.queryHeads, count: shape.queries,
            side: preparation?.queries ?? .unchanged(dimension: shape.headDimension), table: queryTable)
    }

    private func keySide<Input: AttentionScalar>(
        _ keys: UnsafeBufferPointer<Input>, _ range: Range<Int>
    ) throws(AttentionError) -> PartSide<Input> {
        try check(part: range)
        try checkCount("keys", keys.count, shape.keyValueHeads * range.count * shape.headDimension)
        return PartSide(
            attention: self, name: "key", rows: keys, heads: shape.keyValueHeads, count: range.count,
            side: preparation?.keys ?? .unchanged(dimension: shape.headDimension), table: try keyTable(range))
    }

    /// Of the positions of some keys; nil where keys are not rotated.
    func keyTable(_ range: Range<Int>) throws(AttentionError) -> RotaryTable? {
        guard let angles else { return nil }
        return try inFloatMode { () throws(AttentionError) in
            try RotaryTable(
                angles, positions: range.lowerBound + positionOffset..<range.upperBound + positionOffset, .keys)
        }
    }
}

/// Rows of queries or keys, `[heads, count, D]`, and what is done to them.
private struct PartSide<Input: AttentionScalar>: @unchecked Sendable {
    let attention: PartwiseAttention
    /// `query` or `key`, as errors call them.
    let name: String
    let rows: UnsafeBufferPointer<Input>
    let heads, count: Int
    let side: PreparedSide
    let table: RotaryTable?

    /// Rows whose sums of gains and biases are one.
    private static var run: Int { SequencePlan.block }

    private var dimension: Int { side.dimension }
    private var runs: Int { (count + Self.run - 1) / Self.run }

    private func table(row: Int) -> UnsafePointer<Float>? {
        table.map { UnsafePointer($0.address + row * (attention.angles?.rowFloats ?? 0)) }
    }

    private func first(head: Int, row: Int) -> UnsafeRawPointer {
        UnsafeRawPointer(rows.baseAddress! + (head * count + row) * dimension)
    }

    func prepare(into prepared: UnsafeMutableBufferPointer<Float>) throws(AttentionError) {
        guard let start = prepared.baseAddress, !rows.isEmpty else { return }
        let out = SharedSums(first: start)
        try share(workspaceBytes: 0) { head, _ in
            side.prepare(
                first(head: head, row: 0), head: head, stride: dimension, storage: Input.storage, count: count,
                table: table(row: 0), into: out.first + head * count * dimension, outStride: dimension,
                attention.kernels.functions)
        }
    }

    func finish(
        _ gradient: UnsafeMutableBufferPointer<Float>, gain: UnsafeMutableBufferPointer<Float>?,
        bias: UnsafeMutableBufferPointer<Float>?
    ) throws(AttentionError) {
        for (parameter, sums, vector) in [("Gain", gain, side.gain), ("Bias", bias, side.shift)] {
            guard let sums else { continue }
            guard vector != nil else {
                throw AttentionError(
                    .composition, "\(name)\(parameter)", expected: "none, as the norm has none of it", found: "a buffer"
                )
            }
            try checkCount("\(name)\(parameter)", sums.count, heads * runs * dimension)
            sums.update(repeating: 0)
        }
        guard let start = gradient.baseAddress, !rows.isEmpty else { return }
        let (out, gains, biases) = (
            SharedSums(first: start), gain?.baseAddress.map(SharedSums.init), bias?.baseAddress.map(SharedSums.init)
        )
        let bytes = RowPreparation.byteCount(rows: QATTN_PREPARE_BACKWARD_ROWS, dimension: dimension)
        try share(workspaceBytes: bytes) { head, workspace in
            for run in 0..<runs {
                finish(
                    head: head, run: run, out.first,
                    gain: gains.map { $0.first + (head * runs + run) * dimension },
                    bias: biases.map { $0.first + (head * runs + run) * dimension }, workspace)
            }
        }
    }

    private func finish(
        head: Int, run: Int, _ gradient: UnsafeMutablePointer<Float>, gain: UnsafeMutablePointer<Float>?,
        bias: UnsafeMutablePointer<Float>?, _ workspace: UnsafeMutablePointer<Float>
    ) {
        let row = run * Self.run
        let out = gradient + (head * count + row) * dimension
        side.withArguments(
            first(head: head, row: row), head: head, stride: dimension, storage: Input.storage,
            count: min(Self.run, count - row), table: table(row: row)
        ) { prepared in
            var arguments = qattn_prepare_backward_args()
            arguments.prepare = prepared
            // In place: a row is read before it is written.
            (arguments.gradients, arguments.gradient_stride) = (UnsafePointer(out), dimension)
            (arguments.row_gradients, arguments.row_gradient_stride) = (UnsafeMutableRawPointer(out), dimension)
            arguments.row_gradient_storage = QATTN_FLOAT32
            (arguments.gain_gradient, arguments.shift_gradient) = (gain, bias)
            arguments.workspace = workspace
            attention.kernels.functions.pointee.prepare_backward(&arguments)
        }
    }

    /// Calls `body` with every head and memory of its own, on as many threads as are worth waking.
    private func share(
        workspaceBytes: Int, _ body: @escaping @Sendable (_ head: Int, UnsafeMutablePointer<Float>) -> Void
    ) throws(AttentionError) {
        // A row of a norm and a rotation takes about as long as four multiply-adds for each channel.
        let worthwhile = WorkerCount(
            nanoseconds: 4 * Double(rows.count) / ForwardSchedule.multiplyAddsPerNanosecond,
            nanosecondsPerWorker: attention.nanosecondsPerWorker, threads: attention.threads)
        let bytes = AlignedMemory.aligned(workspaceBytes)
        let buffer = try attention.workspace.take(byteCount: worthwhile.most * bytes + SharedCounters.stride)
        defer { attention.workspace.give(back: buffer) }
        let memory = SharedSums(first: buffer.address.assumingMemoryBound(to: Float.self))
        WorkerPool.shared.share(
            heads, SharedCounters(at: buffer.address + worthwhile.most * bytes, count: 1), workers: worthwhile.most,
            woken: worthwhile.woken
        ) { head, worker in
            body(head, memory.first + worker * bytes / MemoryLayout<Float>.stride)
        }
    }
}
