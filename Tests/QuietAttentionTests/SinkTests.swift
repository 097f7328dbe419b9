// SPDX-License-Identifier: Apache-2.0
// SinkTests.swift - the ways to say the same sink.

import QuietAttention
import Testing

@Suite struct SinkTests {
    private let problem: Problem

    init() throws {
        problem = Problem(
            try AttentionShape(queryHeads: 3, keyValueHeads: 1, queries: 7, keys: 66, headDimension: 5))
    }

    private func run(_ sink: AttentionSink) throws -> [UInt32] {
        try problem.run(Attention(problem.shape, sink: sink)).bits
    }

    @Test func namesAndNumbersAgree() throws {
        let (softmax, softmax1) = (try run(.softmax), try run(.softmax1))
        #expect(softmax != softmax1)
        #expect(try run(.softmaxN(0)) == softmax)
        #expect(try run(.softmaxN(1)) == softmax1)
        #expect(try run(.logits([-.infinity, -.infinity, -.infinity])) == softmax)
        #expect(try run(.logits([0, 0, 0])) == softmax1)
        #expect(try run(.softmaxN(4)) == run(.logits([Float](repeating: 1.3862944, count: 3))))
    }

    @Test func oneLogitPerQueryHead() throws {
        let logits: [Float] = [-1, 40, 0.25]
        let all = try problem.run(Attention(problem.shape, sink: .logits(logits)))
        for (head, logit) in logits.enumerated() {
            let sink = AttentionSink.logits([Float](repeating: logit, count: 3))
            let one = try problem.run(Attention(problem.shape, sink: sink))
            let rows = head * 7..<(head + 1) * 7
            #expect(bits(Array(all.sinkShare[rows])) == bits(Array(one.sinkShare[rows])))
            #expect(
                bits(Array(all.output[head * 35..<(head + 1) * 35]))
                    == bits(Array(one.output[head * 35..<(head + 1) * 35]))
            )
        }
        #expect(all.sinkShare[7..<14].allSatisfy { $0 > 0.999 })
    }

    /// One key with score 0 under softmax_1: half of the weight is the sink's.
    @Test func halfAndHalf() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1)
        let result = try Attention(shape, sink: .softmax1).forward(queries: [0], keys: [1], values: [3])
        #expect(result.output == [1.5] && result.sinkShare == [0.5])
        #expect(abs(result.logSumExp[0] - 0.6931472) < 1e-7)
    }
}
