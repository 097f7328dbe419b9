// SPDX-License-Identifier: Apache-2.0
// AttentionGradients.swift - the results of a backward pass.

/// The gradients of a loss in all that a forward pass reads.
public struct AttentionGradients: Sendable, Equatable {
    /// In the order of the queries.
    public var queries: [Float]
    /// In the order of the keys: the sum over the query heads that share a key head.
    public var keys: [Float]
    /// In the order of the values.
    public var values: [Float]
    /// One per query head: the derivative by its sink logit, summed over batch and rows. Empty for a normaliser without a
    /// sink; 0 for softmax, whose sink is -inf.
    public var sinks: [Float]
    /// Of the gains and biases of ``QueryKeyNorm``, each in the order of its own; empty where there is none.
    public var queryGain: [Float] = []
    public var queryBias: [Float] = []
    public var keyGain: [Float] = []
    public var keyBias: [Float] = []

    public init(queries: [Float], keys: [Float], values: [Float], sinks: [Float]) {
        self.queries = queries
        self.keys = keys
        self.values = values
        self.sinks = sinks
    }
}

/// Memory for the gradients of a backward pass, apart from its inputs and from each other.
///
/// Sums are in Float whatever the element; 16-bit elements are rounded once, to nearest even.
public struct AttentionGradientBuffers<Element: AttentionScalar> {
    /// In the order and of the count of the queries.
    public var queries: UnsafeMutableBufferPointer<Element>
    /// In the order and of the count of the keys.
    public var keys: UnsafeMutableBufferPointer<Element>
    /// In the order and of the count of the values.
    public var values: UnsafeMutableBufferPointer<Element>
    /// One per query head; nil: not wanted.
    public var sinks: UnsafeMutableBufferPointer<Float>?
    /// Of the gains and biases of ``QueryKeyNorm``, each in the order of its own; nil: not wanted. They are summed on one
    /// thread, in the order of batch, heads and rows.
    public var queryGain: UnsafeMutableBufferPointer<Float>?
    public var queryBias: UnsafeMutableBufferPointer<Float>?
    public var keyGain: UnsafeMutableBufferPointer<Float>?
    public var keyBias: UnsafeMutableBufferPointer<Float>?

    public init(
        queries: UnsafeMutableBufferPointer<Element>, keys: UnsafeMutableBufferPointer<Element>,
        values: UnsafeMutableBufferPointer<Element>, sinks: UnsafeMutableBufferPointer<Float>? = nil
    ) {
        self.queries = queries
        self.keys = keys
        self.values = values
        self.sinks = sinks
    }
}

extension AttentionGradients {
    /// Calls `body` with the arrays as buffers; those that are empty and need not be there are nil.
    mutating func withUnsafeBuffers(
        _ body: (AttentionGradientBuffers<Float>) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        try queries.withUnsafeMutableBufferPointer { queries throws(AttentionError) in
            try keys.withUnsafeMutableBufferPointer { keys throws(AttentionError) in
                try values.withUnsafeMutableBufferPointer { values throws(AttentionError) in
                    var buffers = AttentionGradientBuffers(queries: queries, keys: keys, values: values)
                    try sinks.withUnsafeMutableBufferPointer { sinks throws(AttentionError) in
                        buffers.sinks = sinks.isEmpty ? nil : sinks
                        try Self.withUnsafeParameters(
                            &queryGain, &queryBias, &keyGain, &keyBias, buffers, body)
                    }
                }
            }
        }
    }

    private static func withUnsafeParameters(
        _ queryGain: inout [Float], _ queryBias: inout [Float], _ keyGain: inout [Float], _ keyBias: inout [Float],
        _ buffers: AttentionGradientBuffers<Float>,
        _ body: (AttentionGradientBuffers<Float>) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        try queryGain.withUnsafeMutableBufferPointer { queryGain throws(AttentionError) in
            try queryBias.withUnsafeMutableBufferPointer { queryBias throws(AttentionError) in
                try keyGain.withUnsafeMutableBufferPointer { keyGain throws(AttentionError) in
                    try keyBias.withUnsafeMutableBufferPointer { keyBias throws(AttentionError) in
                        var buffers = buffers
                        buffers.queryGain = queryGain.isEmpty ? nil : queryGain
                        buffers.queryBias = queryBias.isEmpty ? nil : queryBias
                        buffers.keyGain = keyGain.isEmpty ? nil : keyGain
                        buffers.keyBias = keyBias.isEmpty ? nil : keyBias
                        try body(buffers)
                    }
                }
            }
        }
    }
}
