// SPDX-License-Identifier: Apache-2.0
// RowNorm+Gradients.swift - the gradients of LayerNorm and RMSNorm, for arrays and unsafe buffers.

import CKernels

/// The gradients of a loss in what a ``LayerNorm`` or an ``RMSNorm`` is computed from.
public struct RowNormGradients: Sendable, Equatable {
    /// `[rows, dimension]`.
    public var rows: [Float]
    /// One per channel, summed over rows; empty where the norm has no gain.
    public var gain: [Float]
    /// One per channel, summed over rows; empty where the norm has no bias.
    public var bias: [Float]

    public init(rows: [Float], gain: [Float] = [], bias: [Float] = []) {
        (self.rows, self.gain, self.bias) = (rows, gain, bias)
    }
}

/// Memory for the gradients of a ``LayerNorm`` or an ``RMSNorm``, apart from its inputs and from each other.
public struct RowNormGradientBuffers {
    /// `[rows, dimension]`.
    public var rows: UnsafeMutableBufferPointer<Float>
    /// One per channel; nil: not wanted.
    public var gain: UnsafeMutableBufferPointer<Float>?
    /// One per channel; nil: not wanted.
    public var bias: UnsafeMutableBufferPointer<Float>?

    public init(
        rows: UnsafeMutableBufferPointer<Float>, gain: UnsafeMutableBufferPointer<Float>? = nil,
        bias: UnsafeMutableBufferPointer<Float>? = nil
    ) {
        (self.rows, self.gain, self.bias) = (rows, gain, bias)
    }
}

extension RowNormLayer {
    /// The gradients of a loss, from its gradient in the normalised rows. Gains and biases are summed over blocks of 64 rows,
    /// counted from the first, as Documentation/Numerics.md has it; a row whose gradient is 0 is not read.
    ///
    /// - Parameters:
    ///   - rows: `[rows, dimension]`, before they were normalised.
    ///   - outputGradient: `[rows, dimension]`.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func gradients(rows: [Float], outputGradient: [Float]) throws(AttentionError) -> RowNormGradients {
        try norm.check(rows.count)
        try checkCount("outputGradient", outputGradient.count, rows.count)
        var gradients = RowNormGradients(
            rows: try [Float](for: "gradients.rows", repeating: 0, count: rows.count),
            gain: [Float](repeating: 0, count: norm.gain?.count ?? 0),
            bias: [Float](repeating: 0, count: norm.bias?.count ?? 0))
        try addGradients(rows: rows, outputGradient: outputGradient, to: &gradients)
        return gradients
    }

    /// Adds the gradients to those that are there: of other micro-batches, or of other places with the same parameters. Empty
    /// gains and biases are not wanted and stay empty.
    ///
    /// - Parameters: as of ``gradients(rows:outputGradient:)``.
    /// - Throws: ``AttentionError`` of kind `elementCount`, or `composition` for a gain or bias that the norm does not have; the
    ///   gradients are untouched then.
    public func addGradients(
        rows: [Float], outputGradient: [Float], to gradients: inout RowNormGradients
    ) throws(AttentionError) {
        // Before the buffers are asked for: that would copy arrays which others share.
        try checkCount("gradients.rows", gradients.rows.count, rows.count)
        try withUnsafeBuffers([rows, outputGradient][...]) { inputs throws(AttentionError) in
            try gradients.withUnsafeBuffers { buffers throws(AttentionError) in
                try self.gradients(rows: inputs[0], outputGradient: inputs[1], into: buffers, accumulating: true)
            }
        }
    }

    /// Computes the gradients into the caller's memory.
    ///
    /// - Parameters:
    ///   - rows: `[rows, dimension]`, before they were normalised.
    ///   - outputGradient: `[rows, dimension]`.
    ///   - gradients: where they go.
    ///   - accumulating: whether they are added to what is there.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `composition`; nothing is written then.
    public func gradients(
        rows: UnsafeBufferPointer<Float>, outputGradient: UnsafeBufferPointer<Float>,
        into gradients: RowNormGradientBuffers, accumulating: Bool = false
    ) throws(AttentionError) {
        try norm.check(rows.count)
        try checkCount("outputGradient", outputGradient.count, rows.count)
        try checkCount("gradients.rows", gradients.rows.count, rows.count)
        for (name, buffer, own) in [("gain", gradients.gain, norm.gain), ("bias", gradients.bias, norm.bias)] {
            guard let buffer else { continue }
            guard own != nil else {
                throw AttentionError(
                    .composition, "gradients.\(name)", expected: "none, as the norm has none", found: "a buffer")
            }
            try checkCount("gradients.\(name)", buffer.count, norm.dimension)
        }
        if !accumulating { for sum in [gradients.gain, gradients.bias] { sum?.update(repeating: 0) } }
        guard let address = rows.baseAddress, !rows.isEmpty else { return }
        let bytes = RowPreparation.byteCount(rows: Int(QATTN_PREPARE_BACKWARD_ROWS), dimension: norm.dimension)
        withUnsafeTemporaryAllocation(byteCount: bytes, alignment: Int(QATTN_ALIGNMENT)) { workspace in
            var arguments = qattn_prepare_backward_args()
            arguments.gradients = outputGradient.baseAddress
            arguments.gradient_stride = norm.dimension
            arguments.row_gradients = UnsafeMutableRawPointer(gradients.rows.baseAddress)
            arguments.row_gradient_stride = norm.dimension
            arguments.row_gradient_storage = QATTN_FLOAT32
            arguments.accumulates = accumulating
            arguments.gain_gradient = gradients.gain?.baseAddress
            arguments.shift_gradient = gradients.bias?.baseAddress
            arguments.workspace = workspace.baseAddress!.assumingMemoryBound(to: Float.self)
            norm.side.withArguments(
                address, head: 0, stride: norm.dimension, storage: .float32, count: rows.count / norm.dimension,
                table: nil
            ) {
                arguments.prepare = $0
                norm.kernels.functions.pointee.prepare_backward(&arguments)
            }
        }
    }
}

extension RowNormGradients {
    /// Calls `body` with the arrays as buffers; empty gains and biases are nil.
    fileprivate mutating func withUnsafeBuffers(
        _ body: (RowNormGradientBuffers) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        try rows.withUnsafeMutableBufferPointer { rows throws(AttentionError) in
            try gain.withUnsafeMutableBufferPointer { gain throws(AttentionError) in
                try bias.withUnsafeMutableBufferPointer { bias throws(AttentionError) in
                    try body(
                        RowNormGradientBuffers(
                            rows: rows, gain: gain.isEmpty ? nil : gain, bias: bias.isEmpty ? nil : bias))
                }
            }
        }
    }
}
