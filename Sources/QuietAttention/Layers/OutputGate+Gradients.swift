// SPDX-License-Identifier: Apache-2.0
// OutputGate+Gradients.swift - the gradients of a gate, for arrays and unsafe buffers.

import CKernels

/// The gradients of a loss in what an ``OutputGate`` is computed from.
public struct OutputGateGradients: Sendable, Equatable {
    /// Of the output before it was gated, in its order.
    public var output: [Float]
    /// In the order of the logits.
    public var logits: [Float]

    public init(output: [Float], logits: [Float]) { (self.output, self.logits) = (output, logits) }
}

extension OutputGate {
    /// The gradients of a loss, from its gradient g in the gated output:
    ///
    ///     doutput = g sigmoid(logit)          dlogit = g output sigmoid'(logit), summed over what the logit gates
    ///
    /// The bits are those of Documentation/Numerics.md, on every kernel set.
    ///
    /// *Edge cases*: where g is 0 the output is not looked at, so that NaN in the output of padding does no harm. A NaN logit
    /// makes the gradients of what it gates NaN.
    ///
    /// - Parameters:
    ///   - logits: those of the forward pass.
    ///   - output: before it was gated.
    ///   - outputGradient: in the order of the output.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func gradients(
        logits: [Float], output: [Float], outputGradient: [Float]
    ) throws(AttentionError) -> OutputGateGradients {
        try check(logits: logits.count, output: output.count)
        var gradients = OutputGateGradients(
            output: try [Float](for: "gradients.output", repeating: 0, count: output.count),
            logits: try [Float](for: "gradients.logits", repeating: 0, count: logits.count))
        try addGradients(logits: logits, output: output, outputGradient: outputGradient, to: &gradients)
        return gradients
    }

    /// Adds the gradients to those that are there.
    ///
    /// - Parameters: as of ``gradients(logits:output:outputGradient:)``.
    /// - Throws: ``AttentionError`` of kind `elementCount`; the gradients are untouched then.
    public func addGradients(
        logits: [Float], output: [Float], outputGradient: [Float], to gradients: inout OutputGateGradients
    ) throws(AttentionError) {
        // Before the buffers are asked for: that would copy arrays which others share.
        try checkCount("gradients.output", gradients.output.count, output.count)
        try checkCount("gradients.logits", gradients.logits.count, logits.count)
        try withUnsafeBuffers([logits, output, outputGradient][...]) { inputs throws(AttentionError) in
            try gradients.output.withUnsafeMutableBufferPointer { outputs throws(AttentionError) in
                try gradients.logits.withUnsafeMutableBufferPointer { logits throws(AttentionError) in
                    try self.gradients(
                        logits: inputs[0], output: inputs[1], outputGradient: inputs[2], intoOutput: outputs,
                        intoLogits: logits, accumulating: true)
                }
            }
        }
    }

    /// Computes the gradients into the caller's memory, apart from the inputs.
    ///
    /// - Parameters:
    ///   - logits: those of the forward pass.
    ///   - output: before it was gated.
    ///   - outputGradient: in the order of the output.
    ///   - outputs: as many as the output has.
    ///   - logitGradients: as many as the logits.
    ///   - accumulating: whether the gradients are added to what is there.
    /// - Throws: ``AttentionError`` of kind `elementCount`; nothing is written then.
    public func gradients(
        logits: UnsafeBufferPointer<Float>, output: UnsafeBufferPointer<Float>,
        outputGradient: UnsafeBufferPointer<Float>, intoOutput outputs: UnsafeMutableBufferPointer<Float>,
        intoLogits logitGradients: UnsafeMutableBufferPointer<Float>, accumulating: Bool = false
    ) throws(AttentionError) {
        try check(logits: logits.count, output: output.count)
        try checkCount("outputGradient", outputGradient.count, output.count)
        try checkCount("gradients.output", outputs.count, output.count)
        try checkCount("gradients.logits", logitGradients.count, logits.count)
        if !accumulating {
            outputs.update(repeating: 0)
            logitGradients.update(repeating: 0)
        }
        inFloatMode {
            withUnsafeTemporaryAllocation(of: Float.self, capacity: 2 * Self.part) { scratch in
                let gates = UnsafeMutableBufferPointer(rebasing: scratch[..<Self.part])
                let products = UnsafeMutableBufferPointer(rebasing: scratch[Self.part...])
                for start in stride(from: 0, to: logits.count, by: Self.part) {
                    let part = start..<min(start + Self.part, logits.count)
                    multiply(outputGradient, output, part, into: products)
                    let own = UnsafeBufferPointer(rebasing: logits[part])
                    slopes(own, into: gates)
                    // A -0 that is there counts as +0.
                    for index in part {
                        let gradient = products[index - start] * gates[index - start]
                        logitGradients[index] = (logitGradients[index] + 0) + gradient
                    }
                    sigmoids(own, into: gates)
                    add(outputGradient, times: gates, part, to: outputs)
                }
            }
        }
    }

    /// `products[i] = sum of gradient output` over what each logit of a part gates.
    private func multiply(
        _ gradient: UnsafeBufferPointer<Float>, _ output: UnsafeBufferPointer<Float>, _ part: Range<Int>,
        into products: UnsafeMutableBufferPointer<Float>
    ) {
        guard granularity == .head else {
            for index in part {
                products[index - part.lowerBound] = gradient[index] == 0 ? 0 : gradient[index] * output[index]
            }
            return
        }
        // The sums of products of rows that the gradients of scales are made of, too.
        var arguments = qattn_backward_args()
        arguments.problem.heads = 1
        arguments.problem.queries = part.upperBound
        (arguments.row_begin, arguments.row_end) = (part.lowerBound, part.upperBound)
        arguments.queries = UnsafeRawPointer(output.baseAddress)
        arguments.query_storage = QATTN_FLOAT32
        arguments.query_strides.query = valueDimension
        // Only read.
        arguments.query_gradients = UnsafeMutablePointer(mutating: gradient.baseAddress)
        arguments.query_gradient_strides.query = valueDimension
        arguments.head_dim = valueDimension
        kernels.functions.pointee.log_scale_gradients(&arguments, products.baseAddress)
    }

    /// sigmoid'(x) = z / (1 + z)^2, z = e^-abs(x).
    private func slopes(_ logits: UnsafeBufferPointer<Float>, into slopes: UnsafeMutableBufferPointer<Float>) {
        powers(logits, into: slopes)
        for index in logits.indices {
            let z = slopes[index]
            slopes[index] = z / ((1 + z) * (1 + z))
        }
    }

    private func add(
        _ gradient: UnsafeBufferPointer<Float>, times gates: UnsafeMutableBufferPointer<Float>, _ logits: Range<Int>,
        to outputs: UnsafeMutableBufferPointer<Float>
    ) {
        let width = granularity == .head ? valueDimension : 1
        for logit in logits {
            let gate = gates[logit - logits.lowerBound]
            for index in logit * width..<(logit + 1) * width {
                outputs[index] = (outputs[index] + 0) + gradient[index] * gate
            }
        }
    }
}
