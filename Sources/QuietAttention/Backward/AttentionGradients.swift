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
