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
public struct LayerNorm: RowNormLayer {
    public let norm: RowNorm

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
}

/// Root mean square normalisation: every row scaled to a mean square of 1, and given a gain per channel.
///
///     y[d] = x[d] / sqrt(mean of x^2 + epsilon) gain[d]
///
/// Arithmetic and edge cases as in ``LayerNorm``. A row of zeros stays one, so that RMSNorm, unlike a LayerNorm with a
/// bias, keeps the zero vector that is equivalent to softmax_1.
///
/// *Source*: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467, 2019.
public struct RMSNorm: RowNormLayer {
    public let norm: RowNorm

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
}

/// A ``LayerNorm`` or an ``RMSNorm``.
public protocol RowNormLayer: Sendable, Hashable {
    /// What it does to a row.
    var norm: RowNorm { get }
}

extension RowNormLayer {
    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout [Float]) throws(AttentionError) {
        // Before the buffer is asked for: that would copy an array which others share.
        try norm.check(rows.count)
        rows.withUnsafeMutableBufferPointer { norm.apply(to: $0) }
    }

    /// Normalises rows `[rows, dimension]` in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the rows are untouched then.
    public func apply(to rows: inout MutableSpan<Float>) throws(AttentionError) {
        try norm.check(rows.count)
        rows.withUnsafeMutableBufferPointer { norm.apply(to: $0) }
    }
}

/// The numbers of a ``LayerNorm`` or an ``RMSNorm``, which make it.
public struct RowNorm: Sendable, Hashable {
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

    func check(_ count: Int) throws(AttentionError) {
        guard count.isMultiple(of: dimension) else {
            throw AttentionError(
                .elementCount, "rows", expected: "a multiple of the dimension \(dimension)", found: "\(count)")
        }
    }

    fileprivate func apply(to rows: UnsafeMutableBufferPointer<Float>) {
        guard let address = rows.baseAddress else { return }
        side.prepare(
            address, head: 0, stride: dimension, storage: .float32, count: rows.count / dimension, table: nil,
            into: address, outStride: dimension, kernels.functions)
    }

    var side: PreparedSide {
        PreparedSide(
            dimension: dimension, norm: QueryKeyNorm(kind: kind, epsilon: epsilon), gain: gain, shift: bias,
            rotation: QATTN_ROTATED, pairing: QATTN_HALVES, pairs: 0)
    }
}
