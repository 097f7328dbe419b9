// SPDX-License-Identifier: Apache-2.0
// AttentionError.swift - why a shape, an option or a tensor was refused.

/// Why a shape, an option or a tensor was refused.
///
/// Every wrong input is found before any output is written. The description reads
/// `queries: expected 768 elements, got 767`.
public struct AttentionError: Error, Sendable, Equatable, CustomStringConvertible {
    /// What is wrong, for code that decides by it.
    public enum Kind: Sendable, Hashable, CaseIterable {
        /// A tensor does not have the number of elements its shape asks for.
        case elementCount
        /// A dimension is negative, zero where that has no meaning, or too large.
        case dimension
        /// The query heads are not a multiple of the key/value heads.
        case headGroups
        /// A product of dimensions does not fit into `Int`.
        case overflow
        /// The offsets of a packed batch do not start at 0, go down, or differ in number.
        case offsets
        /// The scale is NaN, infinite or beyond Float.
        case scale
        /// A sink logit is NaN, +inf or near it, or the n of softmax_n is negative, NaN or infinite.
        case sink
        /// The number of sink logits is not the number of query heads.
        case sinkCount
        /// A window holds no key.
        case window
        /// A key length is negative or longer than the keys.
        case keyLength
        /// The number of key lengths is not the number of batch items.
        case keyLengthCount
        /// An extent of a broadcast tensor is neither 1 nor the shape's.
        case broadcastExtent
        /// A stride of a broadcast tensor is negative or leads outside its values.
        case broadcastStride
        /// The base, the number of factors, or a factor of a score scaling is out of range.
        case scaling
        /// The softcap is not a positive number within the range of Float.
        case softcap
        /// The number of ALiBi slopes is not the number of query heads, or one is NaN or infinite.
        case alibi
        /// A constant of a normaliser is out of its range.
        case normaliser
        /// Two options make no sense together.
        case composition
        /// No kernel set of that name runs on this CPU.
        case kernelSet
        /// Fewer than one thread.
        case threads
        /// The system has no memory for the workspace, or for a page of a cache.
        case memory
        /// The key/value caches of one call differ in heads or dimensions.
        case cacheShape
        /// The cache would hold more tokens than its stated maximum.
        case cacheLimit
        /// Bytes are not those of a saved cache: damaged, cut off, or of another version.
        case savedCache
        /// The system does not read or write a file.
        case file
        /// Rows within a buffer have a negative offset or stride, or lead outside it.
        case rowPlace
        /// Tokens are asked for that the cache does not hold: not yet, or no longer.
        case cacheRange
        /// A range of keys does not lie on chunk boundaries, or does not begin where the one before it ends.
        case keyRange
        /// A rotary embedding has a base, a number of dimensions or a scaling that has no meaning, alone or for the shape.
        case rotaryEmbedding
        /// A position lies where the encoding has no use for it, or has no place in a cache.
        case position
        /// The number of positions is not that of the queries or keys.
        case positionCount
        /// An epsilon that is not positive, or a gain or bias that is not of the head dimension.
        case queryKeyNorm
        /// What a forward pass kept for backward is of another shape or normaliser.
        case record
        /// Partial results are of different heads, queries or dimensions.
        case partialShape
        /// Partial results were computed by different rules for scores, or for queries at different positions.
        case partialTerms
        /// What a norm adds to a variance, or a threshold of weights, is negative, NaN or infinite.
        case epsilon
        /// Less than no keys.
        case leadingKeys
        /// A picture of weights has no bands, or too many.
        case bands
        /// Probabilities are negative, NaN or infinite, or none is positive.
        case probabilities
        /// An entropy is asked for that no power of the probabilities has.
        case entropy
    }

    /// What is wrong.
    public let kind: Kind
    /// The argument's name, as in the call: `queries`, `headDimension`, `mask.keyLengths[2]`.
    public let argument: String
    /// What would have been right.
    public let expected: String
    /// What came.
    public let found: String

    public var description: String { "\(argument): expected \(expected), got \(found)" }

    init(_ kind: Kind, _ argument: String, expected: String, found: String) {
        self.kind = kind
        self.argument = argument
        self.expected = expected
        self.found = found
    }
}

/// Throws an error of kind `elementCount` unless an argument has so many elements.
func checkCount(_ argument: @autoclosure () -> String, _ found: Int, _ expected: Int) throws(AttentionError) {
    guard found == expected else {
        throw AttentionError(.elementCount, argument(), expected: "\(expected) elements", found: "\(found)")
    }
}

extension AttentionShape {
    /// Throws an error of kind `elementCount` unless queries, keys and values, or gradients of them, have so many elements.
    package func checkCounts(
        of prefix: String = "", _ queries: Int, _ keys: Int, _ values: Int
    ) throws(AttentionError) {
        try checkCount("\(prefix)queries", queries, queryCount)
        try checkCount("\(prefix)keys", keys, keyCount)
        try checkCount("\(prefix)values", values, valueCount)
    }
}
