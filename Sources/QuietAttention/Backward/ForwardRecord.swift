// SPDX-License-Identifier: Apache-2.0
// ForwardRecord.swift - what a forward pass keeps for the backward pass.

/// What a forward pass keeps of each row for ``Attention/backward(outputGradient:logSumExpGradient:queries:keys:values:output:record:)``:
/// two numbers with which backward makes the very weights of forward again, `p[j] = 2^(t[j] - reference) * factor`, and the
/// sink share. Memory grows with rows, never with queries times keys.
///
/// A log-sum-exp would not do: rounded to Float, at scores of -2500 it is off by more than 1e-4, and so would be every weight.
///
///     var record = ForwardRecord()
///     let result = try attention.forward(queries: q, keys: k, values: v, recording: &record)
///     let gradients = try attention.backward(
///         outputGradient: dout, queries: q, keys: k, values: v, output: result.output, record: record)
///
/// A record belongs to the tensors and the ``Attention`` that made it. It may be used again for a later step: its memory is
/// reused if the shape is the same.
public struct ForwardRecord: Sendable {
    /// In the order of the log-sum-exp. Shares are empty for a normaliser without a sink.
    public internal(set) var references: [Float] = []
    public internal(set) var factors: [Float] = []
    public internal(set) var sinkShares: [Float] = []

    /// An empty record, for a forward pass to fill.
    public init() {}

    /// Bytes of its numbers: 12 per row, 8 where there is no sink.
    public var byteCount: Int {
        (references.count + factors.count + sinkShares.count) * MemoryLayout<Float>.stride
    }

    mutating func resize(rows: Int, hasSink: Bool) throws(AttentionError) {
        func fit(_ array: inout [Float], _ count: Int) throws(AttentionError) {
            if array.count != count { array = try [Float](for: "record", repeating: 0, count: count) }
        }
        try fit(&references, rows)
        try fit(&factors, rows)
        try fit(&sinkShares, hasSink ? rows : 0)
    }
}
