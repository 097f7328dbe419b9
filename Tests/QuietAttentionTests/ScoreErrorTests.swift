// SPDX-License-Identifier: Apache-2.0
// ScoreErrorTests.swift - what score scaling, softcap, ALiBi and normalisers refuse, alone and together.

import Testing

@testable import QuietAttention

@Suite struct ScoreErrorTests {
    private let shape: AttentionShape
    private let problem: Problem

    init() throws {
        shape = try AttentionShape(queryHeads: 2, queries: 3, keys: 5, headDimension: 4)
        problem = Problem(shape)
    }

    @Test(arguments: [1, 0, -2, Double.nan, .infinity])
    func bases(_ base: Double) {
        expectRefusal(.scaling, "scaling.base") {
            _ = try Attention(shape, sink: .softmax1, scaling: .logKeys(base: base))
        }
        expectRefusal(.scaling, "scaling.base") {
            _ = try Attention(shape, sink: .softmax1, scaling: .clippedLogKeys(base: base))
        }
    }

    @Test func factors() throws {
        expectRefusal(.scaling, "scaling.kappa") {
            _ = try Attention(shape, sink: .softmax1, scaling: .logKeysPerDimension(kappa: .nan))
        }
        expectRefusal(.scaling, "scaling.scalableSoftmax") {
            _ = try Attention(shape, sink: .softmax1, scaling: .scalableSoftmax([1]))
        }
        expectRefusal(.scaling, "scaling") {
            _ = try Attention(shape, sink: .softmax1, scaling: .scalableSoftmax([1, .nan]))
        }
        let tooLong = try BroadcastTensor([Double](repeating: 1, count: 4), queries: 4, keys: 1)
        expectRefusal(.broadcastExtent, "scaling.table.queries") {
            _ = try Attention(shape, sink: .softmax1, scaling: .table(tooLong))
        }
        let perKey = try BroadcastTensor([Double](repeating: 1, count: 5), keys: 5)
        expectRefusal(.broadcastExtent, "scaling.table.keys") {
            _ = try Attention(shape, sink: .softmax1, scaling: .table(perKey))
        }
        let infinite = try BroadcastTensor([1, .infinity, 1], queries: 3, keys: 1)
        expectRefusal(.scaling, "scaling") { _ = try Attention(shape, sink: .softmax1, scaling: .table(infinite)) }
    }

    @Test(arguments: [0, -1, Double.nan, .infinity])
    func softcaps(_ cap: Double) {
        expectRefusal(.softcap, "softcap") { _ = try Attention(shape, sink: .softmax1, softcap: cap) }
        expectRefusal(.softcap, "softcap") { _ = try CachedAttention(queryHeads: 2, sink: .softmax1, softcap: cap) }
    }

    /// Queries are multiplied by their quotient.
    @Test func softcapsFarBelowTheScale() {
        expectRefusal(.softcap, "softcap") { _ = try Attention(shape, sink: .softmax1, scale: 1e30, softcap: 1e-10) }
    }

    @Test func slopes() {
        expectRefusal(.alibi, "alibi.slopes") { _ = try Attention(shape, sink: .softmax1, alibi: .slopes([1])) }
        expectRefusal(.alibi, "alibi.slopes[1]") {
            _ = try Attention(shape, sink: .softmax1, alibi: .slopes([1, .nan]))
        }
        expectRefusal(.alibi, "alibi.slopes") {
            _ = try CachedAttention(queryHeads: 2, sink: .softmax1, alibi: .slopes([1, 2, 3]))
        }
    }

    @Test(
        arguments: [
            (.clippedSoftmax(gamma: .fixed(0.1)), "gamma"), (.clippedSoftmax(gamma: .fixed(0), zeta: 0.9), "zeta"),
            (.clippedSoftmax(gamma: .overKeys(alpha: -1, .visible)), "gamma.alpha"),
            (.clippedSoftmax(gamma: .overKeys(alpha: 1, .fixed(0))), "gamma.keys"),
            (.sigmoid(bias: .fixed(.nan)), "bias"), (.sigmoid(bias: .minusLog(.fixed(-1))), "bias.keys"),
            (.softpick(epsilon: -1), "epsilon"), (.reluSquared(divisor: .fixed(0)), "divisor"),
            (.normalisedReluSquared(sink: -1), "sink"),
        ] as [(AttentionNormaliser, String)])
    func constants(_ normaliser: AttentionNormaliser, _ argument: String) {
        expectRefusal(.normaliser, "normaliser.\(argument)") {
            _ = try Attention(shape, sink: normaliser.usualSink, normaliser: normaliser)
        }
    }

    @Test(
        arguments: [.sigmoid(), .softpick(), .reluSquared(), .normalisedReluSquared(sink: 1)] as [AttentionNormaliser])
    func sinksOfNormalisersWithoutOne(_ normaliser: AttentionNormaliser) throws {
        for sink in [AttentionSink.softmax1, .softmaxN(2), .logits([0, 0]), .logKeys()] {
            expectRefusal(.composition, "sink") { _ = try Attention(shape, sink: sink, normaliser: normaliser) }
        }
        let attention = try Attention(shape, sink: normaliser.usualSink, normaliser: normaliser)
        let result = try problem.run(attention)
        #expect(result.logSumExp.isEmpty && result.sinkShare.isEmpty)
        var output = [Float](repeating: 7, count: shape.outputCount)
        var sums = [Float](repeating: 7, count: shape.rowCount)
        var shares = sums
        let untouched = output
        expectRefusal(.composition, "logSumExp") {
            var outputSpan = output.mutableSpan
            var sumsSpan = sums.mutableSpan
            var sharesSpan = shares.mutableSpan
            try attention.forward(
                queries: problem.queries.span, keys: problem.keys.span, values: problem.values.span, into: &outputSpan,
                logSumExp: &sumsSpan, sinkShare: &sharesSpan)
        }
        #expect(output == untouched)
    }

    @Test func compositions() throws {
        let diagnosed = expectRefusal(.composition, "normaliser") {
            _ = try Attention(shape, sink: .softmax, normaliser: .sigmoid()).diagnostics(
                queries: problem.queries, keys: problem.keys)
        }
        #expect(diagnosed?.found == "sigmoid")
        let learned = expectRefusal(.composition, "sink") {
            _ = try Attention(shape, sink: .logits([1, 2]), normaliser: .softpick())
        }
        #expect(learned?.found == "learned logits")
        expectRefusal(.composition, "sink") {
            _ = try Attention(shape, sink: .logKeys(), normaliser: .clippedSoftmax(gamma: .fixed(0)))
        }
        expectRefusal(.composition, "scaling") {
            _ = try Attention(shape, sink: .softmax, scaling: .logKeys(), normaliser: .normalisedReluSquared())
        }
        let cache = try CacheProblem(tokens: 9).cache(appending: 0..<9)
        let attention = try CachedAttention(queryHeads: 6, sink: .softmax, normaliser: .sigmoid())
        expectRefusal(.composition, "normaliser") {
            _ = try attention.partial(queries: [Float](repeating: 0, count: 30), cache: cache)
        }
    }
}
