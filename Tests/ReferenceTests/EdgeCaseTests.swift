// SPDX-License-Identifier: Apache-2.0
// EdgeCaseTests.swift - rows without keys, infinities, NaN, sinks out of range: what the forward pass promises of each.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct EdgeCaseTests {
    /// Scores as attention: one query of 1 and keys `scores`, so that a row is easy to write down. Values are 1, 2, 3...
    private func attend(
        _ scores: [Float], sink: Float, values: [Float]? = nil, _ change: (inout ReferenceProblem) -> Void = { _ in }
    ) -> (output: Float, logSumExp: Float, sinkShare: Float) {
        var problem = ReferenceProblem(queries: 1, keys: scores.count, headDimension: 1, scale: 1, sinks: [sink])
        change(&problem)
        let values = values ?? scores.indices.map { Float($0 + 1) }
        let result = problem.forward(queries: [1], keys: scores, values: values)
        return (result.output[0], result.logSumExp[0], result.sinkShare[0])
    }

    // MARK: - No keys

    static let waysToSeeNothing: [@Sendable (inout ReferenceProblem) -> Void] = [
        { $0.allowed = ReferenceBroadcast([false, false, false], extents: [1, 1, 1, 3]) },
        { $0.bias = ReferenceBroadcast([-.infinity, -.infinity, -.infinity], extents: [1, 1, 1, 3]) },
        { $0.keyLengths = [0] },
        { $0.lastKeyOffset = 0 },
        { $0.lastKeyOffset = -5 },
        { $0.firstKeyOffset = 3 },
        { $0.firstKeyOffset = 100 },
        {
            $0.firstKeyOffset = 2
            $0.lastKeyOffset = 1
        },
    ]

    @Test(arguments: waysToSeeNothing.indices, [-Float.infinity, 0, 0.5, -3, 100, -200])
    func rowWithoutKeys(way: Int, sink: Float) {
        let result = attend(
            [.nan, 1, .infinity], sink: sink, values: [.nan, .infinity, 1], Self.waysToSeeNothing[way])
        #expect(result.output.bitPattern == 0)
        #expect(result.logSumExp == sink)
        #expect(result.sinkShare == (sink == -.infinity ? 0 : 1))
    }

    @Test(arguments: [-Float.infinity, 0, 0.5])
    func noKeysAtAll(sink: Float) {
        let problem = ReferenceProblem(queries: 2, keys: 0, headDimension: 3, valueDimension: 2, sinks: [sink])
        let result = problem.forward(queries: [1, 2, 3, 4, 5, 6], keys: [], values: [])
        #expect(result.output == [0, 0, 0, 0])
        #expect(result.logSumExp == [sink, sink])
        #expect(result.sinkShare == (sink == -.infinity ? [0, 0] : [1, 1]))
    }

    @Test func noRowsAtAll() {
        for (batch, queries) in [(0, 4), (2, 0)] {
            let problem = ReferenceProblem(batch: batch, queries: queries, keys: 3, headDimension: 1, sinks: [0])
            let data = [Float](repeating: 1, count: batch * 3)
            let result = problem.forward(queries: [], keys: data, values: data)
            #expect(result.output.isEmpty && result.logSumExp.isEmpty && result.sinkShare.isEmpty)
        }
    }

    /// Bottom-right alignment: of 4 queries over 2 keys the first two see nothing, the third sees key 0.
    @Test func moreQueriesThanKeys() {
        let problem = ReferenceProblem(queries: 4, keys: 2, headDimension: 1, scale: 1, sinks: [-.infinity]).causal
        let result = problem.forward(queries: [1, 1, 1, 1], keys: [0, 0], values: [2, 4])
        #expect(result.output == [0, 0, 2, 3])
        #expect(result.logSumExp[0] == -.infinity && result.logSumExp[2] == 0)
    }

    // MARK: - Infinite and NaN scores

    @Test(arguments: [-Float.infinity, 0, 4])
    func minusInfinityWeighsNothing(sink: Float) {
        let withIt = attend([-.infinity, 0.5, -.infinity, 1], sink: sink)
        let without = attend([0.5, 1], sink: sink, values: [2, 4])
        #expect(withIt == without)
    }

    /// Every visible score -infinity: like no key at all, except that the sink comes back through its logarithm.
    @Test func allScoresMinusInfinity() {
        let softmax = attend([-.infinity, -.infinity], sink: -.infinity)
        #expect(softmax == (0, -.infinity, 0))
        let learned = attend([-.infinity, -.infinity], sink: 0.75)
        #expect(learned.output.bitPattern == 0 && learned.sinkShare == 1)
        #expect(abs(learned.logSumExp - 0.75) <= 1e-7)
    }

    /// Whole blocks and chunks of -infinity before, between and after others.
    @Test(arguments: [0, 64, 1000, 1024, 2048, 2500])
    func blocksOfMinusInfinity(place: Int) {
        var scores = [Float](repeating: -.infinity, count: 2600)
        scores[place] = 1
        scores[place + 1] = 2
        let result = attend(scores, sink: 0)
        let expected = attend([1, 2], sink: 0, values: [Float(place + 1), Float(place + 2)])
        #expect(result.logSumExp == expected.logSumExp && result.sinkShare == expected.sinkShare)
        #expect(abs(result.output - expected.output) <= expected.output.ulp * 4)
    }

    @Test(arguments: [Float.nan, .infinity], [-Float.infinity, 0, 50])
    func nanAndInfinityTakeTheirRowOnly(score: Float, sink: Float) throws {
        // Two rows, of which the second alone sees the last key.
        let problem = ReferenceProblem(queries: 2, keys: 3, headDimension: 1, scale: 1, sinks: [sink]).causal
        let result = problem.forward(queries: [1, 1], keys: [1, 2, score], values: [1, 2, 3])
        let clean = problem.forward(queries: [1, 1], keys: [1, 2, 3], values: [1, 2, 3])
        #expect(result.output[0] == clean.output[0] && result.logSumExp[0] == clean.logSumExp[0])
        #expect(result.output[1].isNaN && result.logSumExp[1].isNaN && result.sinkShare[1].isNaN)
    }

    /// A NaN must survive a maximum that ignores it, in every chunk, under every sink.
    @Test(arguments: [0, 63, 64, 1023, 1024, 2047, 2048], [-Float.infinity, 0, 200])
    func nanIsNotLost(place: Int, sink: Float) {
        var scores = [Float](repeating: 0.5, count: 2100)
        scores[place] = .nan
        let result = attend(scores, sink: sink)
        #expect(result.output.isNaN && result.logSumExp.isNaN && result.sinkShare.isNaN)
    }

    @Test func nanInAValueTakesItsColumn() {
        let problem = ReferenceProblem(queries: 1, keys: 2, headDimension: 1, valueDimension: 2, scale: 1, sinks: [0])
        let result = problem.forward(queries: [1], keys: [0, -.infinity], values: [1, 2, .nan, 4])
        #expect(result.output[0].isNaN && result.output[1] == 1)
        #expect(result.logSumExp[0].isFinite)
    }

    @Test(arguments: [AttentionCase.AllowedChoice.random, .rowsWithout, .blocksWithout])
    func hiddenKeysDoNoHarm(choice: AttentionCase.AllowedChoice) throws {
        var shape = AttentionCase(queries: 5, keys: 1200, headDimension: 3)
        shape.allowed = choice
        shape.broadcast = .allButKeys
        var inputs = shape.inputs
        let allowed = try #require(inputs.allowed?.values)
        let clean = shape.reference(inputs)
        for key in allowed.indices where !allowed[key] {
            for d in 0..<3 {
                inputs.keys[key * 3 + d] = d == 0 ? .nan : .infinity
                inputs.values[key * 3 + d] = d == 1 ? .nan : -.infinity
            }
        }
        try requireSameBits(shape.reference(inputs), clean, valueDimension: 3, "\(shape)")
    }

    // MARK: - Low scores, finite masks

    /// Nothing may take the place of -infinity as the first maximum: scores below it would vanish.
    @Test(arguments: [Float(-100), -1e4, -6e4, -1e9, -1e30])
    func lowScoresAreScores(score: Float) {
        let softmax = attend([score, score * 2], sink: -.infinity)
        #expect(softmax.output == 1 && softmax.sinkShare == 0)
        #expect(abs(softmax.logSumExp - score) <= 1e-6 * abs(score))
        let softmax1 = attend([score, score * 2], sink: 0)
        #expect(softmax1.output < 1e-37 && softmax1.logSumExp == 0 && softmax1.sinkShare == 1)
    }

    /// Large finite biases are not masks: all keys lowered equally give softmax its mean, and a sink everything.
    @Test func finiteMaskOfAllKeys() {
        let lowered: (inout ReferenceProblem) -> Void = {
            $0.bias = ReferenceBroadcast([-1e9, -1e9], extents: [1, 1, 1, 2])
        }
        #expect(attend([1, 1], sink: -.infinity, lowered).output == 1.5)
        #expect(attend([1, 1], sink: 0, lowered) == (0, 0, 1))
    }

    /// The lowest finite bias is beyond Float in base 2, and finite all the same: such keys weigh nothing beside others, and
    /// everything by themselves.
    @Test func lowestFiniteBias() {
        let lowest: (inout ReferenceProblem) -> Void = {
            $0.bias = ReferenceBroadcast([-.greatestFiniteMagnitude, 0], extents: [1, 1, 1, 2])
        }
        #expect(attend([1, 1], sink: -.infinity, lowest).output == 2)
        let lowestOfAll: (inout ReferenceProblem) -> Void = {
            $0.bias = ReferenceBroadcast([-.greatestFiniteMagnitude], extents: [1, 1, 1, 1])
        }
        let alone = attend([1], sink: -.infinity, lowestOfAll)
        #expect(alone.output == 1 && alone.sinkShare == 0)
        #expect(abs(alone.logSumExp / -Float.greatestFiniteMagnitude - 1) < 1e-6)
        #expect(attend([1], sink: 0, lowestOfAll) == (0, 0, 1))
    }

    /// Beside a score that is no number, however far the bias moves the others.
    @Test(arguments: [0, 3e38, -3.4e38] as [Float])
    func biasBesideNaN(_ bias: Float) {
        let result = attend([.nan, 0], sink: 0) {
            $0.bias = ReferenceBroadcast([bias, bias], extents: [1, 1, 1, 2])
        }
        #expect(result.output.isNaN && result.sinkShare.isNaN && result.logSumExp.isNaN)
    }

    // MARK: - Sinks

    @Test(arguments: [Float(100), 200, 1e4, 1e30])
    func highSink(sink: Float) {
        let result = attend([0, 1, 2], sink: sink)
        #expect(abs(result.logSumExp - sink) <= 2e-7 * sink)
        #expect(result.sinkShare == 1 && result.output < 1e-30)
    }

    @Test(arguments: [Float(-200), -1e4, -1e30])
    func lowSinkIsNone(sink: Float) {
        let (low, none) = (attend([0, 1, 2], sink: sink), attend([0, 1, 2], sink: -.infinity))
        #expect(low == none && low.sinkShare == 0)
    }

    /// The sink belongs to the query head, not to the key/value head.
    @Test func sinkOfEachQueryHead() {
        let sinks: [Float] = [-.infinity, 0, 2, 5]
        let problem = ReferenceProblem(
            queryHeads: 4, keyValueHeads: 2, queries: 1, keys: 1, headDimension: 1, scale: 1, sinks: sinks)
        let result = problem.forward(queries: [0, 0, 0, 0], keys: [0, 0], values: [1, 10])
        #expect(result.sinkShare[0] == 0 && result.sinkShare[1] == 0.5)
        #expect(result.output[0] == 1 && result.output[1] == 0.5)
        #expect(abs(result.sinkShare[2] - 0.880797) < 1e-6 && abs(result.output[2] - 1.19203) < 1e-5)
        #expect(abs(result.sinkShare[3] - 0.993307) < 1e-6)
    }

    /// It has no part in the scale and the bias.
    @Test func sinkIsNeitherScaledNorBiased() {
        let plain = attend([0, 0], sink: 1)
        let scaled = attend([0, 0], sink: 1) { $0.scale = 100 }
        #expect(scaled == plain)
        let biased = attend([-3, -3], sink: 1) { $0.bias = ReferenceBroadcast([3, 3], extents: [1, 1, 1, 2]) }
        #expect(abs(biased.logSumExp - plain.logSumExp) <= 6e-7 && abs(biased.sinkShare - plain.sinkShare) <= 6e-7)
    }

    @Test func sinksOutOfRangeAreRefused() async {
        await #expect(processExitsWith: .failure) { Self.attendOneKey(sink: .infinity) }
        await #expect(processExitsWith: .failure) { Self.attendOneKey(sink: .nan) }
        await #expect(processExitsWith: .failure) { Self.attendOneKey(sink: .greatestFiniteMagnitude) }
    }

    private static func attendOneKey(sink: Float) {
        _ = ReferenceProblem(queries: 1, keys: 1, headDimension: 1, sinks: [sink])
            .forward(queries: [1], keys: [1], values: [1])
    }
}
