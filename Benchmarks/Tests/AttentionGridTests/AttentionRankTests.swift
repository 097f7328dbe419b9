// SPDX-License-Identifier: Apache-2.0
// AttentionRankTests.swift - singular values of matrices whose ranks are known.

import QuietAttention
import Testing

@testable import AttentionGrid

struct AttentionRankTests {
    @Test("Known singular values")
    func known() {
        let diagonal = AttentionRank(of: [3, 0, 0, 0, 0, 4], rows: 2, columns: 3)
        #expect(diagonal.singularValues.map { ($0 * 1e6).rounded() / 1e6 } == [4, 3])
        #expect(diagonal.numerical == 2)

        let identity = AttentionRank(of: [1, 0, 0, 0, 1, 0, 0, 0, 1], rows: 3, columns: 3)
        #expect(identity.numerical == 3)
        #expect(abs(identity.effective - 3) < 1e-9)

        let flat = AttentionRank(of: Array(repeating: 0.25, count: 12), rows: 3, columns: 4)
        #expect(flat.numerical == 1)
        #expect(abs(flat.effective - 1) < 1e-6)

        let zero = AttentionRank(of: [0, 0, 0, 0], rows: 2, columns: 2)
        #expect(zero.numerical == 0)
        #expect(zero.effective == 0)
    }

    @Test(
        "Equal keys: every row of P is the same, rank 1, with and without a sink",
        arguments: [AttentionSink.softmax, .softmax1])
    func equalKeys(sink: AttentionSink) throws {
        var random = Normals(seed: 2)
        let key = random.next(8)
        let matrix = try attentionMatrix(
            queries: random.next(8 * 20), keys: Array(repeating: key, count: 30).flatMap(\.self), headDimension: 8,
            sink: sink, mask: .none)
        #expect(AttentionRank(of: matrix, rows: 20, columns: 30).numerical == 1)
    }

    /// One dimension: e^(q k) is smooth, and few singular values of a matrix of its samples are above the precision.
    @Test("Rows of P sum to 1 under softmax and to less under softmax_1, which leaves the rank as it is")
    func sinkKeepsRank() throws {
        var random = Normals(seed: 3)
        let (queries, keys) = (random.next(16), random.next(16))
        let matrices = try [AttentionSink.softmax, .softmax1].map {
            try attentionMatrix(queries: queries, keys: keys, headDimension: 1, sink: $0, mask: .none)
        }
        let sums = matrices.map { matrix in (0..<16).map { matrix[$0 * 16..<($0 + 1) * 16].reduce(0, +) } }
        #expect(sums[0].allSatisfy { abs($0 - 1) < 1e-5 })
        #expect(sums[1].allSatisfy { $0 < 1 })
        // The smallest singular values that count lie near the tolerance, and the sink moves them a little.
        let ranks = matrices.map { AttentionRank(of: $0, rows: 16, columns: 16).numerical }
        #expect(abs(ranks[0] - ranks[1]) <= 1)
        #expect(ranks[0] < 12)
    }

    @Test("Causal P is triangular with a positive diagonal: full rank, though the head has one dimension")
    func causalIsFull() throws {
        var random = Normals(seed: 3)
        let matrix = try attentionMatrix(
            queries: random.next(16), keys: random.next(16), headDimension: 1, sink: .softmax1, mask: .causal)
        let rank = AttentionRank(of: matrix, rows: 16, columns: 16)
        #expect(rank.numerical == 16)
        #expect(rank.effective < 16)
    }

    @Test("Without the exponential the rank is at most the head dimension")
    func linear() {
        var random = Normals(seed: 5)
        let (queries, keys) = (random.next(3 * 20).map(abs), random.next(3 * 20).map(abs))
        var matrix = [Float](repeating: 0, count: 20 * 20)
        for row in 0..<20 {
            for column in 0..<20 {
                for d in 0..<3 { matrix[20 * row + column] += queries[3 * row + d] * keys[3 * column + d] }
            }
        }
        #expect(AttentionRank(of: matrix, rows: 20, columns: 20).numerical == 3)
    }
}
