// SPDX-License-Identifier: Apache-2.0
// OutputGateTests.swift - the sigmoid gate: bit for bit the reference on every kernel set, and near the formula.

import AttentionReference
import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct OutputGateTests {
    /// Logits of both signs and all sizes; counts below, at and above the part that is computed at once.
    private func logits(_ count: Int) -> [Float] {
        var generator = SeededGenerator(seed: UInt64(count))
        let special: [Float] = [0, -0.0, .infinity, -.infinity, .nan, 1e-30, -1e-30, 86, -86, 87, -87, 1e30, -1e30]
        return Array((special + (0..<count).map { _ in generator.nextNormal() * 8 }).prefix(max(count, special.count)))
    }

    @Test("gates", arguments: KernelSet.available, OutputGate.Granularity.allCases)
    func referenceBits(kernels: KernelSet, granularity: OutputGate.Granularity) throws {
        for (count, width) in [(13, 1), (20, 3), (1024, 2), (1025, 5)] {
            let rowLogits = logits(count)
            var generator = SeededGenerator(seed: 3)
            let input = generator.normals(rowLogits.count * width)
            let logits = granularity == .head ? rowLogits : rowLogits.flatMap { [Float](repeating: $0, count: width) }
            var output = input
            try OutputGate(granularity, valueDimension: width, kernels: kernels).apply(logits: logits, to: &output)
            let expected = input.indices.map { ReferenceMath.gated(input[$0], logit: rowLogits[$0 / width]) }
            try requireSameBits("out", output, expected, "\(kernels), \(granularity), \(count) x \(width)")
        }
    }

    /// Of gates on rows and on elements, into zeros, into what holds -0 and on what is there; channels around the lanes, and rows
    /// below, at and above the part that is computed at once. NaN in the output where the gradient is 0 does no harm.
    @Test("gradients of gates", arguments: KernelSet.available, OutputGate.Granularity.allCases)
    func gradients(kernels: KernelSet, granularity: OutputGate.Granularity) throws {
        for (count, width) in [(13, 1), (20, 16), (40, 37), (1024, 2), (1025, 17)] {
            let rowLogits = logits(count)
            var generator = SeededGenerator(seed: 4)
            var output = generator.normals(rowLogits.count * width)
            var gradient = generator.normals(output.count)
            for index in stride(from: 0, to: output.count, by: 7) { (output[index], gradient[index]) = (.nan, -0.0) }
            let logits = granularity == .head ? rowLogits : rowLogits.flatMap { [Float](repeating: $0, count: width) }
            let gate = try OutputGate(granularity, valueDimension: width, kernels: kernels)
            let expected = reference(granularity, width, logits, output, gradient)
            let context = "\(kernels), \(granularity), \(count) x \(width)"
            func requireSame(_ found: OutputGateGradients, times factor: Float = 1) throws {
                try requireSameBits("doutput", found.output, expected.output.map { $0 * factor }, context)
                try requireSameBits("dlogits", found.logits, expected.logits.map { $0 * factor }, context)
            }
            var found = try gate.gradients(logits: logits, output: output, outputGradient: gradient)
            try requireSame(found)
            try gate.addGradients(logits: logits, output: output, outputGradient: gradient, to: &found)
            try requireSame(found, times: 2)
            for accumulating in [false, true] {
                found.output = [Float](repeating: accumulating ? -0.0 : 7, count: output.count)
                found.logits = [Float](repeating: accumulating ? -0.0 : 7, count: logits.count)
                try found.output.withUnsafeMutableBufferPointer { outputs in
                    try found.logits.withUnsafeMutableBufferPointer { logitGradients in
                        try logits.withUnsafeBufferPointer { logits in
                            try output.withUnsafeBufferPointer { output in
                                try gradient.withUnsafeBufferPointer { gradient in
                                    try gate.gradients(
                                        logits: logits, output: output, outputGradient: gradient,
                                        intoOutput: outputs, intoLogits: logitGradients, accumulating: accumulating)
                                }
                            }
                        }
                    }
                }
                try requireSame(found)
            }
        }
    }

    private func reference(
        _ granularity: OutputGate.Granularity, _ width: Int, _ logits: [Float], _ output: [Float], _ gradient: [Float]
    ) -> OutputGateGradients {
        func elements(_ index: Int) -> (output: Float, logit: Float) {
            let logit = logits[granularity == .head ? index / width : index]
            return ReferenceMath.gateGradient(output[index], logit: logit, of: gradient[index])
        }
        let all = output.indices.map(elements)
        let ofRows = {
            logits.indices.map { row in
                ReferenceMath.gateGradient(
                    output.rows(row, 1, width), logit: logits[row], of: gradient.rows(row, 1, width))
            }
        }
        return OutputGateGradients(
            output: all.map(\.output), logits: granularity == .head ? ofRows() : all.map(\.logit))
    }

    @Test func sigmoidIsAccurate() {
        for logit in logits(4000) where logit.isFinite {
            let gate = Double(ReferenceMath.gated(1, logit: logit))
            #expect(abs(gate - 1 / (1 + exp(-Double(logit)))) <= 2e-7, "\(logit)")
        }
        #expect(ReferenceMath.gated(3, logit: 0) == 1.5)
        #expect(ReferenceMath.gated(3, logit: .infinity) == 3 && ReferenceMath.gated(3, logit: -.infinity) == 0)
        #expect(ReferenceMath.gated(3, logit: .nan).isNaN)
    }

    /// softmax_1 is softmax behind a gate whose logit is the log-sum-exp: O_1 = O_0 sigmoid(lse_0 - s).
    @Test("softmax_1 is a gate on softmax", arguments: KernelSet.available)
    func softmaxOneIsAGate(kernels: KernelSet) throws {
        let problem = AttentionCase(queries: 9, keys: 40, headDimension: 8) { $0.keyValueHeads = 2 }
        var softmax = problem
        softmax.sink = .none
        let inputs = problem.inputs
        let expected = try problem.run(inputs, kernels: kernels)
        let plain = try softmax.run(softmax.inputs, kernels: kernels)
        var output = plain.output
        try OutputGate(.head, valueDimension: 8, kernels: kernels).apply(logits: plain.logSumExp, to: &output)
        try requireClose(
            "out", output, expected.output.map(Double.init), tolerance: { _ in 1e-6 }, "\(kernels)")
    }
}
