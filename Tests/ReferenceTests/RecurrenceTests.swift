// SPDX-License-Identifier: Apache-2.0
// RecurrenceTests.swift - linear attention and retention over all pairs, worked out by hand.

import AttentionReference
import SeededInputs
import Testing

@Suite struct RecurrenceTests {
    /// Keys 0 and 1 with the values 3 and 9, and heads of one query or of two.
    private func output(
        _ recurrence: ReferenceRecurrence, queries: [Float], heads: Int = 1, isCausal: Bool = true
    ) -> [Double] {
        let problem = ReferenceProblem(
            queryHeads: heads, keyValueHeads: 1, queries: queries.count / heads, keys: 2, headDimension: 1,
            sinks: [Float](repeating: 0, count: heads))
        return (isCausal ? problem.causal : problem).oracle(
            recurrence, queries: queries, keys: [0, 1], values: [3, 9])
    }

    /// phi(0) = 1, phi(1) = 2, phi(3) = 4: the second key has twice the weight of the first, whatever the query.
    @Test func linear() {
        #expect(output(.linear, queries: [1, 3]) == [3, 7])
        #expect(output(.linear, queries: [1, 3], isCausal: false) == [7, 7])
        #expect(output(.linear, queries: [1, 1], heads: 2) == [7, 7])
    }

    /// A product with the key 0 is 0. Head 0 decays by 31/32, head 1 by 63/64.
    @Test func retention() {
        let norm: [Double] = [(1 + 31.0 / 32).squareRoot(), (1 + 63.0 / 64).squareRoot()]
        #expect(output(.retention, queries: [2, 2]) == [0, 18.0 / norm[0]])
        let decayed: Double = 18 * 31.0 / 32
        #expect(output(.retention, queries: [2, 2], isCausal: false) == [decayed / norm[0], 18.0 / norm[0]])
        #expect(output(.retention, queries: [0, 2], heads: 2) == [0, 18.0 / norm[1]])
    }

    /// With more queries than keys the first see none.
    @Test(arguments: ReferenceRecurrence.allCases)
    func rowsWithoutKeys(recurrence: ReferenceRecurrence) {
        #expect(output(recurrence, queries: [5, 1, 1])[0] == 0)
    }

    /// Against differences of the output, of inputs whose steps of 2^-14 are exact and that stay off phi's bend at 0.
    @Test(arguments: ReferenceRecurrence.allCases, [true, false])
    func gradients(recurrence: ReferenceRecurrence, isCausal: Bool) {
        var problem = ReferenceProblem(
            batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 4, keys: 3, headDimension: 2, valueDimension: 3,
            sinks: [0, 0, 0, 0])
        if isCausal { problem = problem.causal }
        var generator = SeededGenerator(seed: 4)
        func tensor(_ count: Int) -> [Float] {
            generator.normals(count).map { (($0 + ($0 < 0 ? -0.01 : 0.01)) * 65_536).rounded() / 65_536 }
        }
        let inputs = [tensor(64), tensor(24), tensor(36)]
        let outputGradient = generator.normals(96)
        func derivative(_ part: Int, _ index: Int) -> Double {
            func loss(_ step: Float) -> Double {
                var inputs = inputs
                inputs[part][index] += step
                let output = problem.oracle(recurrence, queries: inputs[0], keys: inputs[1], values: inputs[2])
                return zip(output, outputGradient).reduce(0) { $0 + $1.0 * Double($1.1) }
            }
            let h: Float = 0x1p-14
            return (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * Double(h))
        }
        let result = problem.oracleGradients(
            recurrence, queries: inputs[0], keys: inputs[1], values: inputs[2], outputGradient: outputGradient)
        for (part, gradients) in [result.queries, result.keys, result.values].enumerated() {
            for index in gradients.indices {
                #expect(abs(gradients[index] - derivative(part, index)) < 1e-9, "part \(part), element \(index)")
            }
        }
    }
}
