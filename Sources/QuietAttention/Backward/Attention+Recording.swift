// SPDX-License-Identifier: Apache-2.0
// Attention+Recording.swift - the forward pass of a training step, which keeps what the backward pass needs.

extension Attention {
    /// Computes what `forward(queries:keys:values:)` does, with the same bits, and keeps what backward needs.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func forward(
        queries: [Float], keys: [Float], values: [Float], recording record: inout ForwardRecord
    ) throws(AttentionError) -> AttentionResult {
        var output = try [Float](for: "output", repeating: 0, count: shape.outputCount)
        var logSumExp = try [Float](
            for: "logSumExp", repeating: 0, count: normaliser.hasSink ? shape.rowCount : 0)
        try queries.withUnsafeBufferPointer { queries throws(AttentionError) in
            try keys.withUnsafeBufferPointer { keys throws(AttentionError) in
                try values.withUnsafeBufferPointer { values throws(AttentionError) in
                    try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                        try logSumExp.withUnsafeMutableBufferPointer { logSumExp throws(AttentionError) in
                            try forward(
                                queries: queries, keys: keys, values: values, into: output,
                                logSumExp: normaliser.hasSink ? logSumExp : nil, recording: &record)
                        }
                    }
                }
            }
        }
        return AttentionResult(output: output, logSumExp: logSumExp, sinkShare: record.sinkShares)
    }

    /// Computes the output and, if asked, the log-sum-exp, and keeps what backward needs.
    ///
    /// - Parameters:
    ///   - queries: as of the forward pass without a record.
    ///   - keys: likewise.
    ///   - values: likewise.
    ///   - output: likewise.
    ///   - logSumExp: likewise.
    ///   - record: filled; its memory is reused if it was filled for this shape before.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`; the outputs are untouched then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: UnsafeBufferPointer<Input>, keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>,
        into output: UnsafeMutableBufferPointer<Output>, logSumExp: UnsafeMutableBufferPointer<Float>? = nil,
        recording record: inout ForwardRecord
    ) throws(AttentionError) {
        try record.resize(rows: shape.rowCount, hasSink: normaliser.hasSink)
        try record.references.withUnsafeMutableBufferPointer { references throws(AttentionError) in
            try record.factors.withUnsafeMutableBufferPointer { factors throws(AttentionError) in
                try record.sinkShares.withUnsafeMutableBufferPointer { shares throws(AttentionError) in
                    try forward(
                        queries: queries, keys: keys, values: values, into: output, logSumExp: logSumExp,
                        sinkShare: normaliser.hasSink ? shares : nil, references: references.baseAddress,
                        factors: factors.baseAddress)
                }
            }
        }
    }
}
