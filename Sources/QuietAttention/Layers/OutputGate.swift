// SPDX-License-Identifier: Apache-2.0
// OutputGate.swift - a sigmoid gate on the output of attention.

import CKernels

/// A gate behind attention: the output times a sigmoid, of one logit per row or of one per element.
///
///     out[r][e] = out[r][e] sigmoid(logit[r])   or   out[r][e] sigmoid(logit[r][e])
///
/// Rows are those of the output in whatever layout it has, and logits follow them: for an output `[B, H, L, E]` they are
/// `[B, H, L]` or `[B, H, L, E]`, for `[B, L, H, E]` `[B, L, H]` or `[B, L, H, E]`, as a linear layer over the model's
/// channels gives them.
///
/// The sigmoid is within 2e-7 of 1 / (1 + e^-x), and 0 below about -86.6. It is computed in Float with the kernels' own
/// exponential, for both signs from e^-abs(x): the same bits on every kernel set.
///
/// softmax_1 is such a gate, with the logit `logSumExp - sink` of plain softmax. A gate with logits of its own is a rival
/// for the same job: a head may stay silent.
///
/// *Edge cases*: a NaN logit makes what it gates NaN; -inf gates to 0, except what is not finite.
///
/// Gradients: ``gradients(logits:output:outputGradient:)``, from the output as it was before.
///
/// *Sources*: per head: Bondarenko et al., "Quantizable Transformers", arXiv 2306.12929, 2023; per head and per element:
/// Qiu et al., "Gated Attention for Large Language Models", arXiv 2505.06708, 2025.
public struct OutputGate: Sendable, Hashable {
    /// What has a logit of its own.
    public enum Granularity: Sendable, Hashable, CaseIterable {
        /// One row of one head.
        case head
        /// One element of it.
        case element
    }

    public let granularity: Granularity
    /// E, the length of a row.
    public let valueDimension: Int
    let kernels: KernelSet

    /// - Parameters:
    ///   - granularity: what has a logit of its own.
    ///   - valueDimension: the length of a row of the output, 1 and up.
    ///   - kernels: nil: as for ``Attention``.
    /// - Throws: ``AttentionError`` of kind `dimension` or `kernelSet`.
    public init(
        _ granularity: Granularity, valueDimension: Int, kernels: KernelSet? = nil
    ) throws(AttentionError) {
        guard valueDimension >= 1 else {
            throw AttentionError(.dimension, "valueDimension", expected: "1 or more", found: "\(valueDimension)")
        }
        self.granularity = granularity
        self.valueDimension = valueDimension
        self.kernels = if let kernels { kernels } else { try KernelSet.preferred() }
    }

    /// Gates the output in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the output is untouched then.
    public func apply(logits: [Float], to output: inout [Float]) throws(AttentionError) {
        // Before the output's buffer is asked for: that would copy an array which others share.
        try check(logits: logits.count, output: output.count)
        var span = output.mutableSpan
        try apply(logits: logits.span, to: &span)
    }

    /// Gates the output in place.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`; the output is untouched then.
    public func apply(logits: Span<Float>, to output: inout MutableSpan<Float>) throws(AttentionError) {
        try check(logits: logits.count, output: output.count)
        logits.withUnsafeBufferPointer { logits in
            output.withUnsafeMutableBufferPointer { output in
                inFloatMode { apply(logits, to: output) }
            }
        }
    }

    private func apply(_ logits: UnsafeBufferPointer<Float>, to output: UnsafeMutableBufferPointer<Float>) {
        withUnsafeTemporaryAllocation(of: Float.self, capacity: Self.part) { gates in
            for start in stride(from: 0, to: logits.count, by: Self.part) {
                let part = start..<min(start + Self.part, logits.count)
                sigmoids(UnsafeBufferPointer(rebasing: logits[part]), into: gates)
                multiply(output, by: gates, logits: part)
            }
        }
    }

    func check(logits: Int, output: Int) throws(AttentionError) {
        guard output.isMultiple(of: valueDimension) else {
            throw AttentionError(
                .elementCount, "output", expected: "a multiple of the value dimension \(valueDimension)",
                found: "\(output)")
        }
        try checkCount(
            "logits", logits, granularity == .element ? output : output / valueDimension)
    }

    /// log2(e) as the kernels multiply by it.
    private static let log2e: Float = 0x1.715476p+0
    /// Logits whose sigmoids are computed at once: few enough to stay in cache.
    static let part = 1024

    /// sigmoid(x) = 1 / (1 + z) for x >= 0 and z / (1 + z) below, z = e^-abs(x) <= 1: nothing overflows or cancels.
    func sigmoids(_ logits: UnsafeBufferPointer<Float>, into gates: UnsafeMutableBufferPointer<Float>) {
        powers(logits, into: gates)
        for index in logits.indices {
            let z = gates[index]
            gates[index] = (logits[index] >= 0 ? 1 : z) / (1 + z)
        }
    }

    /// z = e^-abs(x).
    func powers(_ logits: UnsafeBufferPointer<Float>, into powers: UnsafeMutableBufferPointer<Float>) {
        for index in logits.indices { powers[index] = -abs(logits[index]) * Self.log2e }
        kernels.functions.pointee.exp2(powers.baseAddress, powers.baseAddress, logits.count)
    }

    private func multiply(
        _ output: UnsafeMutableBufferPointer<Float>, by gates: UnsafeMutableBufferPointer<Float>, logits: Range<Int>
    ) {
        let width = granularity == .head ? valueDimension : 1
        for logit in logits {
            let gate = gates[logit - logits.lowerBound]
            for index in logit * width..<(logit + 1) * width { output[index] = output[index] * gate }
        }
    }
}
