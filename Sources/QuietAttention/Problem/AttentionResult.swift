// SPDX-License-Identifier: Apache-2.0
// AttentionResult.swift - the outputs of a forward pass as arrays.

/// The outputs of a forward pass. Normalisers without a sink leave the second and the third empty.
public struct AttentionResult: Sendable, Equatable {
    /// `[batch, queryHeads, queries, valueDimension]`, or in the layout asked for: weighted sums of the values.
    public var output: [Float]
    /// `[batch, queryHeads, queries]` in every layout, `[queryHeads, total]` for a packed batch: the natural logarithm of
    /// each row's denominator, sink included. -inf where softmax sees no key.
    public var logSumExp: [Float]
    /// As ``logSumExp``: the share of each row's weight that went to the sink, 0...1; 1 minus it is the sum over keys.
    public var sinkShare: [Float]

    public init(output: [Float], logSumExp: [Float], sinkShare: [Float]) {
        self.output = output
        self.logSumExp = logSumExp
        self.sinkShare = sinkShare
    }
}
