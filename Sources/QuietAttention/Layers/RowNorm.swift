// SPDX-License-Identifier: Apache-2.0
// RowNorm.swift - LayerNorm and RMSNorm of the rows of a matrix.

import CKernels

/// Layer normalisation: every row centred, scaled to unit variance, and given a gain and a bias per channel.
///
///     y[d] = (x[d] - mean) / sqrt(variance + epsilon) gain[d] + bias[d],   variance = mean of (x - mean)^2
///
/// All arithmetic is in Float, in a fixed order: 16 partial sums by d mod 16, added in a tree, as ``QueryKeyNorm`` has it. The
/// bits of a row do not depend on the kernel set or on other rows.
///
/// *Edge cases*: equal elements give the bias. Rows of finite numbers come out right at every magnitude of Float. NaN or an infinity makes its row NaN and no other.
///
/// *Source*: Ba, Kiros, Hinton, "Layer Normalization", arXiv 1607.06450, 2016.
public struct LayerNorm: Sendable, Hashable {
    private let norm: RowNorm

    /// - Parameters:
    ///   - dimension: the length of a row, 1 and up.
    ///   - gain: one per channel; nil: 1.
    ///   - bias: one per channel; nil: 0.
    ///   - epsilon: added to the variance, 0 and up.
    ///   - kernels: nil: as for ``Attention``.
    /// - Throws: ``AttentionError`` of kind `dimension`, `elementCount`, `epsilon` or `kernelSet`.
    public init(
        dimension: Int, gain: [Float]? = nil, bias: [Float]? = nil, epsilon: Float = 1e-5, kernels: KernelSet? = nil
    ) throws(AttentionError) {
        norm = try RowNorm(
            dimension: dimension, kind: .layer, gain: gain, bias: bias, epsilon: epsilon, kernels: kernels)
    }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout [Float]) throws(AttentionError) { try norm.apply(to: &rows) }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout MutableSpan<Float>) throws(AttentionError) { try norm.apply(to: &rows) }

    /// The gradients of a loss, from its gradient in the normalised rows. Gains and biases are summed over blocks of 64 rows,
    /// counted from the first, as Documentation/Numerics.md has it; a row whose gradient is 0 is not read.
    ///
    /// - Parameters:
    ///   - rows: `[rows, dimension]`, before they were normalised.
    ///   - outputGradient: `[rows, dimension]`.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func gradients(rows: [Float], outputGradient: [Float]) throws(AttentionError) -> RowNormGradients {
        try norm.gradients(rows: rows, outputGradient: outputGradient)
    }
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
    ///   - kernels: nil: as for ``Attention``.
    /// - Throws: ``AttentionError`` of kind `dimension`, `elementCount`, `epsilon` or `kernelSet`.
    public init(
        dimension: Int, gain: [Float]? = nil, epsilon: Float = 1e-6, kernels: KernelSet? = nil
    ) throws(AttentionError) {
        norm = try RowNorm(
            dimension: dimension, kind: .rms, gain: gain, bias: nil, epsilon: epsilon, kernels: kernels)
    }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout [Float]) throws(AttentionError) { try norm.apply(to: &rows) }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout MutableSpan<Float>) throws(AttentionError) { try norm.apply(to: &rows) }

    /// The gradients of a loss, from its gradient in the normalised rows. Gains and biases are summed over blocks of 64 rows,
    /// counted from the first, as Documentation/Numerics.md has it; a row whose gradient is 0 is not read.
    ///
    /// - Parameters:
    ///   - rows: `[rows, dimension]`, before they were normalised.
    ///   - outputGradient: `[rows, dimension]`.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func gradients(rows: [Float], outputGradient: [Float]) throws(AttentionError) -> RowNormGradients {
        try norm.gradients(rows: rows, outputGradient: outputGradient)
    }
}

/// The gradients of a loss in what a ``LayerNorm`` or an ``RMSNorm`` is computed from.
public struct RowNormGradients: Sendable, Equatable {
    /// `[rows, dimension]`.
    public var rows: [Float]
    /// One per channel, summed over rows; empty where the norm has no gain.
    public var gain: [Float]
    /// One per channel, summed over rows; empty where the norm has no bias.
    public var bias: [Float]
}

/// What both norms do to a row.
private struct RowNorm: Sendable, Hashable {
    let dimension: Int
    let kind: QueryKeyNorm.Kind
    let gain, bias: [Float]?
    let epsilon: Float
    let kernels: KernelSet

    init(
        dimension: Int, kind: QueryKeyNorm.Kind, gain: [Float]?, bias: [Float]?, epsilon: Float, kernels: KernelSet?
    ) throws(AttentionError) {
        guard dimension >= 1 else {
            throw AttentionError(.dimension, "dimension", expected: "1 or more", found: "\(dimension)")
        }
        for (name, values) in [("gain", gain), ("bias", bias)] {
            guard let values, values.count != dimension else { continue }
            throw AttentionError(
                .elementCount, name, expected: "\(dimension) elements, one per channel", found: "\(values.count)")
        }
        guard inFloatMode({ epsilon >= 0 && epsilon.isFinite }) else {
            throw AttentionError(.epsilon, "epsilon", expected: "a finite number, 0 or more", found: "\(epsilon)")
        }
        (self.dimension, self.kind, self.gain, self.bias) = (dimension, kind, gain, bias)
        self.epsilon = epsilon
        self.kernels = if let kernels { kernels } else { try KernelSet.preferred() }
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
        guard let address = rows.baseAddress else { return }
        side.prepare(
            address, head: 0, stride: dimension, storage: .float32, count: rows.count / dimension, table: nil,
            into: address,
            outStride: dimension, kernels.functions)
    }

    private var side: PreparedSide {
        PreparedSide(
            dimension: dimension, norm: QueryKeyNorm(kind: kind, epsilon: epsilon), gain: gain, shift: bias,
            rotation: QATTN_ROTATED, pairing: QATTN_HALVES, pairs: 0)
    }

    func gradients(rows: [Float], outputGradient: [Float]) throws(AttentionError) -> RowNormGradients {
        try check(rows.count)
        guard outputGradient.count == rows.count else {
            throw AttentionError(
                .elementCount, "outputGradient", expected: "\(rows.count) elements", found: "\(outputGradient.count)")
        }
        var result = RowNormGradients(
            rows: try [Float](for: "gradients.rows", repeating: 0, count: rows.count),
            gain: [Float](repeating: 0, count: gain?.count ?? 0), bias: [Float](repeating: 0, count: bias?.count ?? 0))
        if rows.isEmpty { return result }
        let bytes = RowPreparation.byteCount(rows: Int(QATTN_PREPARE_BACKWARD_ROWS), dimension: dimension)
        withUnsafeTemporaryAllocation(byteCount: bytes, alignment: Int(QATTN_ALIGNMENT)) { workspace in
            rows.withUnsafeBufferPointer { rows in
                outputGradient.withUnsafeBufferPointer { gradient in
                    result.withUnsafeBuffers { rowGradients, gainGradient, biasGradient in
                        var arguments = qattn_prepare_backward_args()
                        arguments.gradients = gradient.baseAddress
                        arguments.gradient_stride = dimension
                        arguments.row_gradients = UnsafeMutableRawPointer(rowGradients)
                        arguments.row_gradient_stride = dimension
                        arguments.row_gradient_storage = QATTN_FLOAT32
                        arguments.gain_gradient = gain == nil ? nil : gainGradient
                        arguments.shift_gradient = bias == nil ? nil : biasGradient
                        arguments.workspace = workspace.baseAddress!.assumingMemoryBound(to: Float.self)
                        side.withArguments(
                            rows.baseAddress!, head: 0, stride: dimension, storage: .float32,
                            count: rows.count / dimension, table: nil
                        ) {
                            arguments.prepare = $0
                            kernels.functions.pointee.prepare_backward(&arguments)
                        }
                    }
                }
            }
        }
        return result
    }
}

extension RowNormGradients {
    fileprivate mutating func withUnsafeBuffers(
        _ body: (UnsafeMutablePointer<Float>?, UnsafeMutablePointer<Float>?, UnsafeMutablePointer<Float>?) -> Void
    ) {
        rows.withUnsafeMutableBufferPointer { rows in
            gain.withUnsafeMutableBufferPointer { gain in
                bias.withUnsafeMutableBufferPointer { bias in
                    body(rows.baseAddress, gain.baseAddress, bias.baseAddress)
                }
            }
        }
    }
}
