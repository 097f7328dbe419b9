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
    /// Of the additive bias, `[batch or 1, heads or 1, queries or 1, keys]` in its extents and adjacent, keys fastest: each
    /// element summed over the batch items, heads and rows that read it. 0 where a bias of -inf hides a key; empty: none.
    public var bias: [Float] = []
    /// One per query head: of the slopes of ``ALiBi/slopes(_:)``, summed over batch and rows. Empty: none.
    public var slopes: [Float] = []
    /// One per query head: of the s of ``ScoreScaling/scalableSoftmax(_:)``, `logScales[h] / s[h]`. Empty: none.
    public var scalableSoftmax: [Float] = []
    /// One per query head: by the logarithm of what its scores are multiplied by, `sum over batch and rows of q[i].dq[i]` with
    /// q as it was multiplied. A learned number a that the scores of a head are proportional to has the gradient
    /// `logScales[h] / a`. Empty unless asked for.
    public var logScales: [Float] = []

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
    /// Of the additive bias, in its extents and adjacent, keys fastest; nil: not wanted. Takes a pass of
    /// its own over the scores.
    public var bias: UnsafeMutableBufferPointer<Float>?
    /// Of ALiBi's slopes, one per query head; nil: not wanted. Takes a pass of its own over the scores, too.
    public var slopes: UnsafeMutableBufferPointer<Float>?
    /// Of the s of scalable softmax, one per query head, none of them 0; nil: not wanted.
    public var scalableSoftmax: UnsafeMutableBufferPointer<Float>?
    /// Of the logarithm of each query head's scale, ``AttentionGradients/logScales``; nil: not wanted.
    public var logScales: UnsafeMutableBufferPointer<Float>?

    public init(
        queries: UnsafeMutableBufferPointer<Element>, keys: UnsafeMutableBufferPointer<Element>,
        values: UnsafeMutableBufferPointer<Element>, sinks: UnsafeMutableBufferPointer<Float>? = nil
    ) {
        self.queries = queries
        self.keys = keys
        self.values = values
        self.sinks = sinks
    }

    /// The first of what is there beside queries, keys and values.
    var nameOfFirstOptionalSum: String? {
        [
            ("sinks", sinks), ("queryGain", queryGain), ("queryBias", queryBias), ("keyGain", keyGain),
            ("keyBias", keyBias), ("bias", bias), ("slopes", slopes), ("scalableSoftmax", scalableSoftmax),
            ("logScales", logScales),
        ].first { $0.1 != nil }?.0
    }
}

extension AttentionGradients {
    private typealias Buffers = AttentionGradientBuffers<Float>

    /// Sums that need not be there: empty arrays are nil as buffers.
    private typealias OptionalSum = (
        array: WritableKeyPath<Self, [Float]>,
        buffer: WritableKeyPath<AttentionGradientBuffers<Float>, UnsafeMutableBufferPointer<Float>?>
    )

    private static var optionalSums: [OptionalSum] {
        [
            (\.sinks, \.sinks), (\.queryGain, \.queryGain), (\.queryBias, \.queryBias), (\.keyGain, \.keyGain),
            (\.keyBias, \.keyBias), (\.bias, \.bias), (\.slopes, \.slopes), (\.scalableSoftmax, \.scalableSoftmax),
            (\.logScales, \.logScales),
        ]
    }

    /// Calls `body` with the arrays as buffers; those that are empty and need not be there are nil.
    mutating func withUnsafeBuffers(
        _ body: (AttentionGradientBuffers<Float>) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        try withUnsafeArray(\.queries) { gradients, queries throws(AttentionError) in
            try gradients.withUnsafeArray(\.keys) { gradients, keys throws(AttentionError) in
                try gradients.withUnsafeArray(\.values) { gradients, values throws(AttentionError) in
                    try gradients.withUnsafeSums(
                        Self.optionalSums[...], Buffers(queries: queries, keys: keys, values: values), body)
                }
            }
        }
    }

    private mutating func withUnsafeSums(
        _ sums: ArraySlice<OptionalSum>, _ buffers: Buffers, _ body: (Buffers) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        guard let sum = sums.first else { return try body(buffers) }
        try withUnsafeArray(sum.array) { gradients, array throws(AttentionError) in
            var buffers = buffers
            buffers[keyPath: sum.buffer] = array.isEmpty ? nil : array
            try gradients.withUnsafeSums(sums.dropFirst(), buffers, body)
        }
    }

    /// One array as a buffer. It is taken out meanwhile, so that others can be, too.
    private mutating func withUnsafeArray(
        _ path: WritableKeyPath<Self, [Float]>,
        _ body: (inout Self, UnsafeMutableBufferPointer<Float>) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        var array: [Float] = []
        swap(&array, &self[keyPath: path])
        defer { swap(&array, &self[keyPath: path]) }
        try array.withUnsafeMutableBufferPointer { buffer throws(AttentionError) in try body(&self, buffer) }
    }
}
