// SPDX-License-Identifier: Apache-2.0
// Attention+Forward.swift - the forward pass, for arrays, spans and unsafe buffers.

extension Attention {
    // MARK: - Arrays

    /// Computes the output into an array of its size.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`; the output is untouched then.
    public func forward(
        queries: [Float], keys: [Float], values: [Float], into output: inout [Float]
    ) throws(AttentionError) {
        // Before the output's buffer is asked for: that would copy an array which others share.
        try checkCount("output", output.count, shape.outputCount)
        try queries.withUnsafeBufferPointer { queries throws(AttentionError) in
            try keys.withUnsafeBufferPointer { keys throws(AttentionError) in
                try values.withUnsafeBufferPointer { values throws(AttentionError) in
                    try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                        try forward(queries: queries, keys: keys, values: values, into: output)
                    }
                }
            }
        }
    }

    /// Computes the output, the log-sum-exp and the sink share of every row.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func forward(queries: [Float], keys: [Float], values: [Float]) throws(AttentionError) -> AttentionResult {
        try shape.checkCounts(queries.count, keys.count, values.count)
        var output = try [Float](for: "output", repeating: 0, count: shape.outputCount)
        guard normaliser.hasSink else {
            try forward(queries: queries, keys: keys, values: values, into: &output)
            return AttentionResult(output: output, logSumExp: [], sinkShare: [])
        }
        var logSumExp = try [Float](for: "logSumExp", repeating: 0, count: shape.rowCount)
        var sinkShare = try [Float](for: "sinkShare", repeating: 0, count: shape.rowCount)
        var outputSpan = output.mutableSpan
        var logSumExpSpan = logSumExp.mutableSpan
        var sinkShareSpan = sinkShare.mutableSpan
        try forward(
            queries: queries.span, keys: keys.span, values: values.span, into: &outputSpan, logSumExp: &logSumExpSpan,
            sinkShare: &sinkShareSpan)
        return AttentionResult(output: output, logSumExp: logSumExp, sinkShare: sinkShare)
    }

    // MARK: - Spans

    /// Computes the output. Inputs and output may be of different storage types.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`; the output is untouched then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, keys: Span<Input>, values: Span<Input>, into output: inout MutableSpan<Output>
    ) throws(AttentionError) {
        try withUnsafeBuffers(queries: queries, keys: keys, values: values) {
            queries, keys, values throws(AttentionError) in
            try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                try forward(queries: queries, keys: keys, values: values, into: output)
            }
        }
    }

    /// Computes the output, the log-sum-exp and the sink share of every row. Inputs and output may be of different storage
    /// types.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`; the outputs are untouched then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, keys: Span<Input>, values: Span<Input>, into output: inout MutableSpan<Output>,
        logSumExp: inout MutableSpan<Float>, sinkShare: inout MutableSpan<Float>
    ) throws(AttentionError) {
        try logSumExp.withUnsafeMutableBufferPointer { logSumExp throws(AttentionError) in
            try sinkShare.withUnsafeMutableBufferPointer { sinkShare throws(AttentionError) in
                try withUnsafeBuffers(queries: queries, keys: keys, values: values) {
                    queries, keys, values throws(AttentionError) in
                    try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                        try forward(
                            queries: queries, keys: keys, values: values, into: output, logSumExp: logSumExp,
                            sinkShare: sinkShare)
                    }
                }
            }
        }
    }

    // MARK: - Unsafe buffers

    /// Computes the output and, if asked, the log-sum-exp and the sink share of every row.
    ///
    /// - Parameters:
    ///   - queries: `[B, H, L, D]`, of any storage type.
    ///   - keys: `[B, G, S, D]`.
    ///   - values: `[B, G, S, E]`.
    ///   - output: `[B, H, L, E]`, apart from the inputs, of any storage type: 16-bit output is rounded once, from Float
    ///     to nearest even.
    ///   - logSumExp: `[B, H, L]`; nil: not wanted.
    ///   - sinkShare: `[B, H, L]`; nil: not wanted.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `composition` (a normaliser without sink has neither logSumExp
    ///   nor sinkShare) or `memory`; the outputs are untouched then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: UnsafeBufferPointer<Input>, keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>,
        into output: UnsafeMutableBufferPointer<Output>, logSumExp: UnsafeMutableBufferPointer<Float>? = nil,
        sinkShare: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        try forward(
            queries: queries, keys: keys, values: values, into: output, logSumExp: logSumExp, sinkShare: sinkShare,
            references: nil, factors: nil)
    }

    /// - Parameters:
    ///   - references, factors: one per row, what backward needs; nil: not wanted.
    func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: UnsafeBufferPointer<Input>, keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>,
        into output: UnsafeMutableBufferPointer<Output>, logSumExp: UnsafeMutableBufferPointer<Float>?,
        sinkShare: UnsafeMutableBufferPointer<Float>?, references: UnsafeMutablePointer<Float>?,
        factors: UnsafeMutablePointer<Float>?
    ) throws(AttentionError) {
        try shape.checkCounts(queries.count, keys.count, values.count)
        try checkOutputs(output.count, logSumExp?.count, sinkShare?.count)
        // Without rows there is nothing to write; without keys there may be no addresses of keys and values.
        guard let queries = queries.baseAddress, let output = output.baseAddress, shape.rowCount > 0 else { return }
        try run(
            ForwardTensors(
                queries: queries, keys: keys.baseAddress ?? queries, values: values.baseAddress ?? queries,
                inputStorage: Input.storage, output: output, outputStorage: Output.storage,
                logSumExp: logSumExp?.baseAddress, sinkShare: sinkShare?.baseAddress, references: references,
                factors: factors))
    }

    // MARK: - Checks

    func checkOutputs(_ output: Int, _ logSumExp: Int?, _ sinkShare: Int?) throws(AttentionError) {
        try checkCount("output", output, shape.outputCount)
        if let logSumExp { try normaliser.checkSums("logSumExp", logSumExp, shape.rowCount) }
        if let sinkShare { try normaliser.checkSums("sinkShare", sinkShare, shape.rowCount) }
    }

    // MARK: - Run

    func run(_ tensors: ForwardTensors) throws(AttentionError) {
        let buffer = try workspace.take(byteCount: schedule.memory.byteCount)
        defer { workspace.give(back: buffer) }
        inFloatMode {
            maskTensors.withPointers { masks in
                ForwardRun(attention: self, tensors: tensors, masks: masks, memory: buffer.address).runAll()
            }
        }
    }

    var maskTensors: MaskTensors { MaskTensors(allowed: mask.allowed, bias: bias) }
}
