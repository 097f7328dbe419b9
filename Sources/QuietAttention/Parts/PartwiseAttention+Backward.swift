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
        /// `[G, L, 16]`: sums to be continued, 0 before the first keys, whose sums in a tree (lane r with r + 8, then r + 4, r + 2,
        /// r + 1) are what the rows add to the gradients of ALiBi's slopes; nil: not wanted. Takes a pass of its own over the scores.
        public var slopeLanes: UnsafeMutableBufferPointer<Float>?

        public init(
            queries: UnsafeBufferPointer<Input>, outputGradient: UnsafeBufferPointer<OutputGradient>,
            references: UnsafeBufferPointer<Float>, factors: UnsafeBufferPointer<Float>,
            deltas: UnsafeBufferPointer<Float>, queryGradient: UnsafeMutableBufferPointer<Float>,
            slopeLanes: UnsafeMutableBufferPointer<Float>? = nil
        ) {
            (self.queries, self.outputGradient) = (queries, outputGradient)
            (self.references, self.factors, self.deltas) = (references, factors, deltas)
            (self.queryGradient, self.slopeLanes) = (queryGradient, slopeLanes)
        }
    }

    /// Keys and values of a range, and the sums of their gradients.
    public struct GradientKeys<Input: AttentionScalar, Value: AttentionScalar> {
        /// `[G, n, D]`.
        public var keys: UnsafeBufferPointer<Input>
        /// `[G, n, E]`.
        public var values: UnsafeBufferPointer<Value>
        /// Of the same shapes: sums to be continued, 0 before the first rows.
        public var keyGradient, valueGradient: UnsafeMutableBufferPointer<Float>
        /// As of ``PartwiseAttention/add(_:values:of:queries:to:meanwhile:)``.
        public var range: Range<Int>

        public init(
            keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Value>,
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
    /// - Throws: ``AttentionError`` of kind `elementCount`, `record` or `memory`.
    public func deltas<Output: AttentionScalar, OutputGradient: AttentionScalar>(
        output: UnsafeBufferPointer<Output>, outputGradient: UnsafeBufferPointer<OutputGradient>,
        logSumExpGradient: UnsafeBufferPointer<Float>? = nil, record: ForwardRecord,
        into deltas: UnsafeMutableBufferPointer<Float>
    ) throws(AttentionError) {
        try checkCount("output", output.count, shape.outputCount)
        try checkCount("outputGradient", outputGradient.count, shape.outputCount)
        if let logSumExpGradient { try checkCount("logSumExpGradient", logSumExpGradient.count, shape.rowCount) }
        try checkCount("deltas", deltas.count, shape.rowCount)
        guard record.factors.count == shape.rowCount else {
            throw AttentionError(
                .record, "record", expected: "what a forward pass over \(shape.rowCount) rows kept",
                found: "\(record.factors.count) rows")
        }
        guard shape.rowCount > 0 else { return }
        let buffer = try workspace.take(
            byteCount: qattn_backward_workspace(kernels.functions, shape.headDimension, shape.valueDimension))
        defer { workspace.give(back: buffer) }
        record.factors.withUnsafeBufferPointer { factors in
            var arguments = qattn_backward_args()
            arguments.problem = problem(queryHead: 0, heads: shape.queryHeads, keys: 0..<0, .none)
            arguments.row_end = shape.rowCount
            (arguments.head_dim, arguments.value_dim) = (shape.headDimension, shape.valueDimension)
            arguments.in_pairs = products == .bfloat16
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
    /// Before the first call the gradients are +0, or what is to be added to: no -0, and with products of bfloat16 below 2^80, which
    /// `Attention` sees to by itself.
    ///
    /// Rows and keys are those that are multiplied: where they are normalised or rotated before, those of ``prepareQueries(_:into:)``
    /// and ``prepareKeys(_:of:into:)`` of a problem with positions, brought to one without, and their gradients brought back.
    ///
    /// - Parameters:
    ///   - rows: all rows of this problem, of one query head per key/value head; their places follow each other.
    ///   - groupHead: which, `0..<H / G`.
    ///   - keys: the keys and what becomes of them.
    ///   - meanwhile: called now and then on the calling thread.
    /// - Throws: ``AttentionError`` of kind `composition` (positions, norms, a boolean mask, a bias, or lanes where there
    ///   are no slopes), `position` (places that do not follow each other), `headGroups` (no such `groupHead`), `keyRange`, `elementCount` or `memory`.
    public func addGradients<Input: AttentionScalar, Value: AttentionScalar, OutputGradient: AttentionScalar>(
        of rows: GradientRows<Input, OutputGradient>, groupHead: Int, against keys: GradientKeys<Input, Value>,
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

    private func checkGradients<Input: AttentionScalar, Value: AttentionScalar, OutputGradient: AttentionScalar>(
        _ rows: GradientRows<Input, OutputGradient>, _ groupHead: Int, _ keys: GradientKeys<Input, Value>
    ) throws(AttentionError) {
        for (name, isGiven) in [
            ("positions", preparation != nil), ("mask.allowing", maskTensors.allowed != nil),
            ("bias", maskTensors.bias != nil),
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
        ] { try checkCount(name, count, expected) }
        guard let lanes = rows.slopeLanes else { return }
        guard scores.hasSlopes || shape.rowCount == 0 else {
            throw AttentionError(
                .composition, "rows.slopeLanes", expected: "none, as there are no slopes", found: "a buffer")
        }
        try checkCount("rows.slopeLanes", lanes.count, row * Int(QATTN_LANES))
    }
}
