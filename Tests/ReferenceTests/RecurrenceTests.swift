// SPDX-License-Identifier: Apache-2.0
// RecurrenceTests.swift - linear attention and retention over all pairs, worked out by hand.

import AttentionReference
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
}
