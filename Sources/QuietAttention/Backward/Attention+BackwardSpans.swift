// SPDX-License-Identifier: Apache-2.0
// Attention+BackwardSpans.swift - a training step's forward and backward pass for spans.

extension Attention {
    /// Computes the output, and keeps what backward needs.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`; the output is untouched
    ///   then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, keys: Span<Input>, values: Span<Input>, into output: inout MutableSpan<Output>,
        recording record: inout ForwardRecord
    ) throws(AttentionError) {
        try withUnsafeBuffers(queries: queries, keys: keys, values: values) {
            queries, keys, values throws(AttentionError) in
            try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                try forward(queries: queries, keys: keys, values: values, into: output, recording: &record)
            }
        }
    }

    /// Computes the output and the log-sum-exp of every row, and keeps what backward needs.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`, `composition` (a normaliser without a sink has no log-sum-exp) or
    ///   `memory`; the outputs are untouched then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, keys: Span<Input>, values: Span<Input>, into output: inout MutableSpan<Output>,
        logSumExp: inout MutableSpan<Float>, recording record: inout ForwardRecord
    ) throws(AttentionError) {
        try logSumExp.withUnsafeMutableBufferPointer { logSumExp throws(AttentionError) in
            try withUnsafeBuffers(queries: queries, keys: keys, values: values) {
                queries, keys, values throws(AttentionError) in
                try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                    try forward(
                        queries: queries, keys: keys, values: values, into: output, logSumExp: logSumExp,
                        recording: &record)
                }
            }
        }
    }

    /// Computes the gradients of queries, keys, values and sinks. Those of norms, biases, slopes and scales take arrays or
    /// unsafe buffers.
    ///
    /// - Parameters:
    ///   - outputGradient: in the order of the output, of any storage type.
    ///   - logSumExpGradient: `[B, H, L]`; nil: the loss does not use the log-sum-exp.
    ///   - queries: those of the forward pass.
    ///   - keys: those of the forward pass.
    ///   - values: those of the forward pass.
    ///   - output: what the forward pass wrote, in its storage type.
    ///   - record: what the forward pass kept.
    ///   - queryGradients: in the order and of the count of the queries.
    ///   - keyGradients: in the order and of the count of the keys.
    ///   - valueGradients: in the order and of the count of the values.
    ///   - sinkGradients: one per query head; empty for a normaliser without a sink.
    ///   - accumulating: whether the gradients are added to what is there.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `record`, `composition` or `memory`; nothing is written then.
    public func backward<
        Input: AttentionScalar, Output: AttentionScalar, OutputGradient: AttentionScalar, Gradient: AttentionScalar
    >(
        outputGradient: Span<OutputGradient>, logSumExpGradient: Span<Float>? = nil, queries: Span<Input>,
        keys: Span<Input>, values: Span<Input>, output: Span<Output>, record: ForwardRecord,
        queryGradients: inout MutableSpan<Gradient>, keyGradients: inout MutableSpan<Gradient>,
        valueGradients: inout MutableSpan<Gradient>, sinkGradients: inout MutableSpan<Float>,
        accumulating: Bool = false
    ) throws(AttentionError) {
        let hasSink = normaliser.hasSink
        try queryGradients.withUnsafeMutableBufferPointer { dq throws(AttentionError) in
            try keyGradients.withUnsafeMutableBufferPointer { dk throws(AttentionError) in
                try valueGradients.withUnsafeMutableBufferPointer { dv throws(AttentionError) in
                    try sinkGradients.withUnsafeMutableBufferPointer { ds throws(AttentionError) in
                        let gradients = AttentionGradientBuffers(
                            queries: dq, keys: dk, values: dv, sinks: hasSink || !ds.isEmpty ? ds : nil)
                        try backward(
                            outputGradient, logSumExpGradient, queries, keys, values, output, record, gradients,
                            accumulating)
                    }
                }
            }
        }
    }

    private func backward<
        Input: AttentionScalar, Output: AttentionScalar, OutputGradient: AttentionScalar, Gradient: AttentionScalar
    >(
        _ outputGradient: Span<OutputGradient>, _ logSumExpGradient: Span<Float>?, _ queries: Span<Input>,
        _ keys: Span<Input>, _ values: Span<Input>, _ output: Span<Output>, _ record: ForwardRecord,
        _ gradients: AttentionGradientBuffers<Gradient>, _ accumulating: Bool
    ) throws(AttentionError) {
        try outputGradient.withUnsafeBufferPointer { outputGradient throws(AttentionError) in
            try withUnsafeBuffers(queries: queries, keys: keys, values: values) {
                queries, keys, values throws(AttentionError) in
                try output.withUnsafeBufferPointer { output throws(AttentionError) in
                    try withBuffer(logSumExpGradient) { sums throws(AttentionError) in
                        try backward(
                            outputGradient: outputGradient, logSumExpGradient: sums,
                            queries: queries, keys: keys, values: values, output: output, record: record,
                            into: gradients, accumulating: accumulating)
                    }
                }
            }
        }
    }
}

/// The buffer of a span that need not be there.
private func withBuffer(
    _ span: Span<Float>?, _ body: (UnsafeBufferPointer<Float>?) throws(AttentionError) -> Void
) throws(AttentionError) {
    guard let span else { return try body(nil) }
    try span.withUnsafeBufferPointer { buffer throws(AttentionError) in try body(buffer) }
}
