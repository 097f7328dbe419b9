// SPDX-License-Identifier: Apache-2.0
// Attention+Arrays.swift - the forward pass for arrays of any storage type.

extension Attention {
    /// Computes the output into an array of its size. Inputs and output may be of different storage types.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`; the output is untouched then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        queries: [Input], keys: [Input], values: [Input], into output: inout [Output]
    ) throws(AttentionError) {
        // Before the output's buffer is asked for: that would copy an array which others share.
        try checkCount("output", output.count, shape.outputCount)
        var span = output.mutableSpan
        try forward(queries: queries.span, keys: keys.span, values: values.span, into: &span)
    }

    /// Computes the output, the log-sum-exp and the sink share of every row, in Float, from inputs of any storage type.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func forward<Input: AttentionScalar>(
        queries: [Input], keys: [Input], values: [Input]
    ) throws(AttentionError) -> AttentionResult {
        try shape.checkCounts(queries.count, keys.count, values.count)
        let hasSink = normaliser.hasSink
        var output = try [Float](for: "output", repeating: 0, count: shape.outputCount)
        var logSumExp = try [Float](for: "logSumExp", repeating: 0, count: hasSink ? shape.rowCount : 0)
        var sinkShare = logSumExp
        var span = output.mutableSpan
        guard hasSink else {
            try forward(queries: queries.span, keys: keys.span, values: values.span, into: &span)
            return AttentionResult(output: output, logSumExp: [], sinkShare: [])
        }
        var logSumExpSpan = logSumExp.mutableSpan
        var sinkShareSpan = sinkShare.mutableSpan
        try forward(
            queries: queries.span, keys: keys.span, values: values.span, into: &span, logSumExp: &logSumExpSpan,
            sinkShare: &sinkShareSpan)
        return AttentionResult(output: output, logSumExp: logSumExp, sinkShare: sinkShare)
    }
}
