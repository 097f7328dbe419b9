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
