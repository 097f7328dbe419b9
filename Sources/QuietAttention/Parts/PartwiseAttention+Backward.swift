// SPDX-License-Identifier: Apache-2.0
// PartwiseAttention+Backward.swift - gradients of some rows against some keys, summed in the order of the whole.

import CKernels

extension PartwiseAttention {
    /// What rows bring to every key that they meet: one query head of each key/value head.
    ///
    /// They are the queries `groupHead`, `groupHead + H / G` and so on of H heads in all, and no copies of each other: that is how
    /// they travel from one owner of keys to the next.
    public struct GradientRows<Input: AttentionScalar, OutputGradient: AttentionScalar> {
        /// `[G, L, D]`.
        public var queries: UnsafeBufferPointer<Input>
        /// `[G, L, E]`.
        public var outputGradient: UnsafeBufferPointer<OutputGradient>
        /// `[G, L]`, of a ``ForwardRecord``.
        public var references, factors: UnsafeBufferPointer<Float>
        /// `[G, L]`, of ``PartwiseAttention/deltas(output:outputGradient:logSumExpGradient:record:into:)``.
        public var deltas: UnsafeBufferPointer<Float>
        /// `[G, L, D]`: sums to be continued, 0 before the first keys.
        public var queryGradient: UnsafeMutableBufferPointer<Float>

        public init(
            queries: UnsafeBufferPointer<Input>, outputGradient: UnsafeBufferPointer<OutputGradient>,
            references: UnsafeBufferPointer<Float>, factors: UnsafeBufferPointer<Float>,
            deltas: UnsafeBufferPointer<Float>, queryGradient: UnsafeMutableBufferPointer<Float>
        ) {
            (self.queries, self.outputGradient) = (queries, outputGradient)
            (self.references, self.factors, self.deltas) = (references, factors, deltas)
            self.queryGradient = queryGradient
        }
    }

    /// Keys and values of a range, and the sums of their gradients.
    public struct GradientKeys<Input: AttentionScalar> {
        /// `[G, n, D]` and `[G, n, E]`.
        public var keys, values: UnsafeBufferPointer<Input>
        /// Of the same shapes: sums to be continued, 0 before the first rows.
        public var keyGradient, valueGradient: UnsafeMutableBufferPointer<Float>
        /// As of ``PartwiseAttention/add(_:values:of:queries:to:meanwhile:)``.
        public var range: Range<Int>

        public init(
            keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>,
            keyGradient: UnsafeMutableBufferPointer<Float>, valueGradient: UnsafeMutableBufferPointer<Float>,
            range: Range<Int>
        ) {
            (self.keys, self.values) = (keys, values)
            (self.keyGradient, self.valueGradient, self.range) = (keyGradient, valueGradient, range)
        }
    }

    /// What the softmax takes off every gradient of a row's weights: `delta = sum_c dout[c] out[c] - dlse`, of all rows.
    ///
    /// - Parameters:
    ///   - output: `[H, L, E]`, as it was written.
    ///   - outputGradient: `[H, L, E]`.
    ///   - logSumExpGradient: `[H, L]`; nil: the loss does not use the log-sum-exp.
    ///   - record: what the forward pass kept.
    ///   - deltas: `[H, L]`.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `composition` (products that have no gradients), `record` or `memory`.
    public func deltas<Output: AttentionScalar, OutputGradient: AttentionScalar>(
        output: UnsafeBufferPointer<Output>, outputGradient: UnsafeBufferPointer<OutputGradient>,
        logSumExpGradient: UnsafeBufferPointer<Float>? = nil, record: ForwardRecord,
        into deltas: UnsafeMutableBufferPointer<Float>
    ) throws(AttentionError) {
        try products.checkHaveGradients()
        try check("output", output.count, shape.outputCount)
        try check("outputGradient", outputGradient.count, shape.outputCount)
        if let logSumExpGradient { try check("logSumExpGradient", logSumExpGradient.count, shape.rowCount) }
        try check("deltas", deltas.count, shape.rowCount)
        guard record.factors.count == shape.rowCount else {
            throw AttentionError(
                .record, "record", expected: "what a forward pass over \(shape.rowCount) rows kept",
                found: "\(record.factors.count) rows")
        }
        guard shape.rowCount > 0 else { return }
        let buffer = try workspace.take(byteCount: qattn_backward_workspace(shape.headDimension, shape.valueDimension))
        defer { workspace.give(back: buffer) }
        record.factors.withUnsafeBufferPointer { factors in
            var arguments = qattn_backward_args()
            arguments.problem = problem(queryHead: 0, heads: shape.queryHeads, keys: 0..<0, mask: nil, bias: nil)
            arguments.row_end = shape.rowCount
            (arguments.head_dim, arguments.value_dim) = (shape.headDimension, shape.valueDimension)
            arguments.out = UnsafeRawPointer(output.baseAddress)
            arguments.out_storage = Output.storage.kernelStorage
            arguments.out_strides = qattn_strides(
                head: shape.queries * shape.valueDimension, query: shape.valueDimension, key: 0)
            arguments.out_gradients = UnsafeRawPointer(outputGradient.baseAddress)
            arguments.out_gradient_storage = OutputGradient.storage.kernelStorage
            arguments.out_gradient_strides = arguments.out_strides
            arguments.lse_gradients = logSumExpGradient?.baseAddress
            arguments.factors = factors.baseAddress
            arguments.deltas = deltas.baseAddress
            arguments.sum_head_stride = shape.queries
            arguments.workspace = buffer.address.assumingMemoryBound(to: Float.self)
            kernels.functions.pointee.deltas(&arguments)
        }
    }

    /// Adds what the pairs of these rows and keys give to the gradients of queries, keys and values.
    ///
    /// The sums have the bits of ``Attention/backward(outputGradient:logSumExpGradient:queries:keys:values:output:record:)`` if for
    /// every row the keys come in ascending order, and for every key the rows come in ascending order of `groupHead`, and for
    /// each of these in ascending order of their places: blocks of 64 keys and of 64 rows are summed by themselves, so rows
    /// begin at a query of the sequence whose number is a multiple of 64. Pairs that see nothing of each other may be left out.
    ///
    /// - Parameters:
    ///   - rows: all rows of this problem, of one query head per key/value head; their places follow each other.
    ///   - groupHead: which, `0..<H / G`.
    ///   - keys: the keys and what becomes of them.
    ///   - meanwhile: called now and then on the calling thread.
    /// - Throws: ``AttentionError`` of kind `composition` (positions, norms, a boolean mask, a bias, or products that have no
    ///   gradients), `position` (places that do not follow each other), `headGroups` (no such `groupHead`), `keyRange`, `elementCount` or `memory`.
    public func addGradients<Input: AttentionScalar, OutputGradient: AttentionScalar>(
        of rows: GradientRows<Input, OutputGradient>, groupHead: Int, against keys: GradientKeys<Input>,
        meanwhile: () -> Void = {}
    ) throws(AttentionError) {
        try checkGradients(rows, groupHead, keys)
        guard shape.rowCount > 0, !visibleKeys.clamped(to: keys.range).isEmpty else { return }
        let schedule = inFloatMode { GradientSchedule(self) }
        let buffer = try workspace.take(byteCount: schedule.byteCount)
        defer { workspace.give(back: buffer) }
        let run = GradientRun(attention: self, schedule: schedule, memory: buffer.address, rows: rows, keys: keys)
        run.run(groupHead: groupHead, meanwhile)
    }

    private func checkGradients<Input: AttentionScalar, OutputGradient: AttentionScalar>(
        _ rows: GradientRows<Input, OutputGradient>, _ groupHead: Int, _ keys: GradientKeys<Input>
    ) throws(AttentionError) {
        try products.checkHaveGradients()
        for (name, isGiven) in [
            ("positions", preparation != nil), ("mask.allowing", allowed != nil), ("bias", bias != nil),
        ] where isGiven {
            throw AttentionError(
                .composition, name, expected: "none: gradients of parts are those of rows as they are multiplied",
                found: "one")
        }
        guard plan.places == nil else {
            throw AttentionError(.position, "places", expected: "positions that follow each other", found: "others")
        }
        guard 0..<groupHeads ~= groupHead || shape.rowCount == 0 else {
            throw AttentionError(
                .headGroups, "groupHead", expected: "0 to \(groupHeads - 1)", found: "\(groupHead)")
        }
        try check(part: keys.range)
        let (row, key) = (shape.keyValueHeads * shape.queries, shape.keyValueHeads * keys.range.count)
        for (name, count, expected) in [
            ("rows.queries", rows.queries.count, row * shape.headDimension),
            ("rows.outputGradient", rows.outputGradient.count, row * shape.valueDimension),
            ("rows.references", rows.references.count, row), ("rows.factors", rows.factors.count, row),
            ("rows.deltas", rows.deltas.count, row),
            ("rows.queryGradient", rows.queryGradient.count, row * shape.headDimension),
            ("keys.keys", keys.keys.count, key * shape.headDimension),
            ("keys.values", keys.values.count, key * shape.valueDimension),
            ("keys.keyGradient", keys.keyGradient.count, key * shape.headDimension),
            ("keys.valueGradient", keys.valueGradient.count, key * shape.valueDimension),
        ] { try check(name, count, expected) }
    }
}

/// Key/value heads are the items: nothing else is independent of each other and of the order of sums.
private struct GradientSchedule {
    let workers, wokenWorkers: Int
    let workerBytes: Int
    var byteCount: Int { workers * workerBytes + SharedCounters.stride }

    init(_ attention: PartwiseAttention) {
        let shape = attention.shape
        let products = Double(shape.keyValueHeads * shape.queries) * Double(SequencePlan.chunk) * 2.5
        let worthwhile = WorkerCount(
            nanoseconds: products * Double(shape.headDimension + shape.valueDimension)
                / ForwardSchedule.multiplyAddsPerNanosecond,
            nanosecondsPerWorker: attention.nanosecondsPerWorker,
            threads: min(attention.threads, max(shape.keyValueHeads, 1)))
        (workers, wokenWorkers) = (worthwhile.most, worthwhile.woken)
        workerBytes = AlignedMemory.aligned(qattn_backward_workspace(shape.headDimension, shape.valueDimension))
    }
}

private struct GradientRun<Input: AttentionScalar, OutputGradient: AttentionScalar>: @unchecked Sendable {
    let attention: PartwiseAttention
    let schedule: GradientSchedule
    let memory: UnsafeMutableRawPointer
    let rows: PartwiseAttention.GradientRows<Input, OutputGradient>
    let keys: PartwiseAttention.GradientKeys<Input>

    func run(groupHead: Int, _ meanwhile: () -> Void) {
        let heads = attention.shape.keyValueHeads
        WorkerPool.shared.share(
            heads, SharedCounters(at: memory + schedule.workers * schedule.workerBytes, count: 1),
            workers: schedule.workers, woken: schedule.wokenWorkers, meanwhile: meanwhile
        ) { head, worker in
            var arguments = arguments(head: head, groupHead: groupHead)
            arguments.workspace = (memory + worker * schedule.workerBytes).assumingMemoryBound(to: Float.self)
            attention.kernels.functions.pointee.backward(&arguments)
        }
    }

    private func arguments(head: Int, groupHead: Int) -> qattn_backward_args {
        let shape = attention.shape
        let (row, key) = (head * shape.queries, head * keys.range.count)
        let (d, e) = (shape.headDimension, shape.valueDimension)
        var arguments = qattn_backward_args()
        arguments.problem = attention.problem(
            queryHead: head * attention.groupHeads + groupHead, heads: 1, keys: keys.range, mask: nil, bias: nil)
        arguments.row_end = shape.queries
        arguments.key_end = arguments.problem.seq_kv
        arguments.queries = UnsafeRawPointer(rows.queries.baseAddress! + row * d)
        arguments.query_strides = qattn_strides(head: 0, query: d, key: 0)
        arguments.keys = UnsafeRawPointer(keys.keys.baseAddress! + key * d)
        arguments.values = UnsafeRawPointer(keys.values.baseAddress! + key * e)
        (arguments.key_stride, arguments.value_stride) = (d, e)
        let storage = Input.storage.kernelStorage
        (arguments.query_storage, arguments.key_storage, arguments.value_storage) = (storage, storage, storage)
        arguments.out_gradients = UnsafeRawPointer(rows.outputGradient.baseAddress! + row * e)
        arguments.out_gradient_strides = qattn_strides(head: 0, query: e, key: 0)
        arguments.out_gradient_storage = OutputGradient.storage.kernelStorage
        (arguments.head_dim, arguments.value_dim) = (d, e)
        arguments.references = rows.references.baseAddress! + row
        arguments.factors = rows.factors.baseAddress! + row
        // Only read.
        arguments.deltas = UnsafeMutablePointer(mutating: rows.deltas.baseAddress! + row)
        arguments.query_gradients = rows.queryGradient.baseAddress! + row * d
        arguments.query_gradient_strides = arguments.query_strides
        arguments.key_gradients = keys.keyGradient.baseAddress! + key * d
        arguments.value_gradients = keys.valueGradient.baseAddress! + key * e
        (arguments.key_gradient_stride, arguments.value_gradient_stride) = (d, e)
        return arguments
    }
}
