// SPDX-License-Identifier: Apache-2.0
// RowNorm.swift - LayerNorm and RMSNorm of the rows of a matrix.

/// Layer normalisation: every row centred, scaled to unit variance, and given a gain and a bias per channel.
///
///     y[d] = (x[d] - mean) / sqrt(variance + epsilon) gain[d] + bias[d],   variance = mean of (x - mean)^2
///
/// All arithmetic is in Float, in a fixed order: 16 partial sums by d mod 16, added in a tree. The bits of a row do not
/// depend on the platform or on other rows.
///
/// *Edge cases*: equal elements give the bias. NaN or an infinity makes its row NaN and no other.
///
/// *Source*: Ba, Kiros, Hinton, "Layer Normalization", arXiv 1607.06450, 2016.
public struct LayerNorm: Sendable, Hashable {
    private let norm: RowNorm

    /// - Parameters:
    ///   - dimension: the length of a row, 1 and up.
    ///   - gain: one per channel; nil: 1.
    ///   - bias: one per channel; nil: 0.
    ///   - epsilon: added to the variance, 0 and up.
    /// - Throws: ``AttentionError`` of kind `dimension`, `elementCount` or `epsilon`.
    public init(
        dimension: Int, gain: [Float]? = nil, bias: [Float]? = nil, epsilon: Float = 1e-5
    ) throws(AttentionError) {
        norm = try RowNorm(dimension: dimension, isCentred: true, gain: gain, bias: bias, epsilon: epsilon)
    }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout [Float]) throws(AttentionError) { try norm.apply(to: &rows) }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout MutableSpan<Float>) throws(AttentionError) { try norm.apply(to: &rows) }
}

/// Root mean square normalisation: every row scaled to a mean square of 1, and given a gain per channel.
///
///     y[d] = x[d] / sqrt(mean of x^2 + epsilon) gain[d]
///
/// Arithmetic and edge cases as in ``LayerNorm``. A row of zeros stays one, so that RMSNorm, unlike a LayerNorm with a
/// bias, keeps the zero vector that is equivalent to softmax_1.
///
/// *Source*: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467, 2019.
public struct RMSNorm: Sendable, Hashable {
    private let norm: RowNorm

    /// - Parameters:
    ///   - dimension: the length of a row, 1 and up.
    ///   - gain: one per channel; nil: 1.
    ///   - epsilon: added to the mean square, 0 and up. LLaMA has 1e-6, gpt-oss 1e-5.
    /// - Throws: ``AttentionError`` of kind `dimension`, `elementCount` or `epsilon`.
    public init(dimension: Int, gain: [Float]? = nil, epsilon: Float = 1e-6) throws(AttentionError) {
        norm = try RowNorm(dimension: dimension, isCentred: false, gain: gain, bias: nil, epsilon: epsilon)
    }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout [Float]) throws(AttentionError) { try norm.apply(to: &rows) }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout MutableSpan<Float>) throws(AttentionError) { try norm.apply(to: &rows) }
}

/// What both norms do to a row.
private struct RowNorm: Sendable, Hashable {
    let dimension: Int
    let isCentred: Bool
    let gain, bias: [Float]?
    let epsilon: Float

    init(dimension: Int, isCentred: Bool, gain: [Float]?, bias: [Float]?, epsilon: Float) throws(AttentionError) {
        guard dimension >= 1 else {
            throw AttentionError(.dimension, "dimension", expected: "1 or more", found: "\(dimension)")
        }
        for (name, values) in [("gain", gain), ("bias", bias)] {
            guard let values, values.count != dimension else { continue }
            throw AttentionError(
                .elementCount, name, expected: "\(dimension) elements, one per channel", found: "\(values.count)")
        }
        guard epsilon >= 0, epsilon.isFinite else {
            throw AttentionError(.epsilon, "epsilon", expected: "a finite number, 0 or more", found: "\(epsilon)")
        }
        (self.dimension, self.isCentred, self.gain, self.bias) = (dimension, isCentred, gain, bias)
        self.epsilon = epsilon
    }

    func apply(to rows: inout [Float]) throws(AttentionError) {
        // Before the buffer is asked for: that would copy an array which others share.
        try check(rows.count)
        rows.withUnsafeMutableBufferPointer { apply(to: $0) }
    }

    func apply(to rows: inout MutableSpan<Float>) throws(AttentionError) {
        try check(rows.count)
        rows.withUnsafeMutableBufferPointer { apply(to: $0) }
    }

    private func check(_ count: Int) throws(AttentionError) {
        guard count.isMultiple(of: dimension) else {
            throw AttentionError(
                .elementCount, "rows", expected: "a multiple of the dimension \(dimension)", found: "\(count)")
        }
    }

    private func apply(to rows: UnsafeMutableBufferPointer<Float>) {
        for start in stride(from: 0, to: rows.count, by: dimension) {
            normalise(UnsafeMutableBufferPointer(rebasing: rows[start..<start + dimension]))
        }
    }

    private func normalise(_ row: UnsafeMutableBufferPointer<Float>) {
        let mean = isCentred ? sumOfLanes(row) { $0 + $1 } / Float(dimension) : 0
        let squares = sumOfLanes(row) { sum, x in sum.addingProduct(x - mean, x - mean) }
        let factor = 1 / (squares / Float(dimension) + epsilon).squareRoot()
        for d in row.indices {
            var y = (row[d] - mean) * factor
            if let gain { y = y * gain[d] }
            if let bias { y = y + bias[d] }
            row[d] = y
        }
    }

    /// Lane r takes up elements r, r + 16, ... in turn; then the lanes are added in a tree: r with r + 8, then r + 4, ...
    private func sumOfLanes(_ row: UnsafeMutableBufferPointer<Float>, _ add: (Float, Float) -> Float) -> Float {
        withUnsafeTemporaryAllocation(of: Float.self, capacity: 16) { lanes in
            lanes.initialize(repeating: 0)
            for d in row.indices { lanes[d % 16] = add(lanes[d % 16], row[d]) }
            for half in [8, 4, 2, 1] {
                for lane in 0..<half { lanes[lane] = lanes[lane] + lanes[lane + half] }
            }
            return lanes[0]
        }
    }
}
