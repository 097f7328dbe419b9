// SPDX-License-Identifier: Apache-2.0
// GradientTrapTests.swift - where backward passes of others went wrong: deep rows, sinks, hidden places, empty rows.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct GradientTrapTests {
    /// One query of 1 and keys that are its scores, with dp as values of one channel.
    private func gradients(
        _ scores: [Float], sink: Float, dp: [Float], dL: Float = 0, biased: Bool = true,
        products: ReferenceProducts = .float32
    ) -> (gradients: ReferenceGradients<Float>, forward: ForwardResult<Float>) {
        var problem = ReferenceProblem(queries: 1, keys: scores.count, headDimension: 1, scale: 1, sinks: [sink])
        problem.products = products
        if biased {
            problem.bias = ReferenceBroadcast(
                [Float](repeating: 0, count: scores.count), extents: [1, 1, 1, scores.count])
        }
        let loss = ReferenceLoss(outputGradient: [1], logSumExpGradient: [dL])
        return (
            problem.backward(queries: [1], keys: scores, values: dp, loss),
            problem.forward(queries: [1], keys: scores, values: dp)
        )
    }

    private static let dp: [Float] = [1, -2, 0.5, 3, -1, 0.25]

    /// Scores of 1, 2 ... by `depth` lower.
    private func deep(_ depth: Float) -> [Float] { Self.dp.indices.map { Float($0 % 4) * 0.75 - depth } }

    // MARK: - Rows far below 0

    /// cudnn-frontend 744: scores that backward computes less exactly than forward. Gradients of values are the weights,
    /// and those are forward's own, to the bit.
    @Test(arguments: [Float(0), 200, 700, 1500, 2500], [-Float.infinity, 0, -2499])
    func weightsAreForwards(depth: Float, sink: Float) throws {
        let scores = deep(depth)
        let count = scores.count
        var generator = SeededGenerator(seed: 7)
        let problem = ReferenceProblem(
            queries: 1, keys: count, headDimension: 2, valueDimension: count, scale: 1, sinks: [sink])
        let keys = scores.flatMap { [$0, generator.nextNormal()] }
        let unitMatrix = (0..<count * count).map { Float($0 / count == $0 % count ? 1 : 0) }
        let weights = problem.forward(queries: [1, 0.5], keys: keys, values: unitMatrix).output
        let ones = ReferenceLoss(outputGradient: [Float](repeating: 1, count: count))
        let result = problem.backward(queries: [1, 0.5], keys: keys, values: unitMatrix, ones)
        try requireSameBits("dv", (0..<count).map { result.values[$0 * count] }, weights, "\(depth), \(sink)")
        if sink == -.infinity { #expect(abs(weights.reduce(0, +) - 1) < 1e-6) }
    }

    /// Where the sink has all the weight, nothing but the sink has a gradient, and only of the log-sum-exp.
    @Test(arguments: [Float(200), 700, 1500, 2500])
    func onlyTheSinkHasWeight(depth: Float) {
        let (result, forward) = gradients(deep(depth), sink: 0, dp: Self.dp, dL: 0.75)
        #expect(forward.sinkShare == [1])
        #expect((result.queries + result.keys + result.values + result.bias).allSatisfy { $0 == 0 })
        #expect(result.sinks == [0.75])
    }

    /// Softmax knows no depth: gradients are those of the same scores near 0, to the rounding of the scores.
    @Test(arguments: [Float(200), 700, 1500, 2500])
    func softmaxTrainsAtAnyDepth(depth: Float) throws {
        let near = gradients(deep(0), sink: -.infinity, dp: Self.dp).gradients
        let far = gradients(deep(depth), sink: -.infinity, dp: Self.dp).gradients
        // A score in base 2 is rounded by 2^-13 near 3600.
        try requireClose(
            "dx", far.bias, near.bias.map(Double.init), tolerance: { _ in 1e-7 * Double(depth) + 1e-6 }, "")
        #expect(abs(far.bias.reduce(0, +)) < 2e-6)
    }

    // MARK: - Sinks

    /// TransformerEngine 3551: a sink of 0 under large scores is no test of a sink; far below it is one.
    @Test func droppedSinkIsSeen() {
        let scores = deep(3)
        let (quiet, plain) = (
            gradients(scores, sink: 0, dp: Self.dp).gradients,
            gradients(scores, sink: -.infinity, dp: Self.dp).gradients
        )
        #expect(relativeError(quiet.bias, plain.bias.map(Double.init)) > 0.2)
        #expect(abs(quiet.sinks[0]) > 0.01 && plain.sinks[0] == 0)
    }

    /// A sink far above takes all the weight; one far below has no part, to the bit.
    @Test func sinksFarFromTheScores() throws {
        let above = gradients(deep(0), sink: 200, dp: Self.dp, dL: -0.5).gradients
        #expect((above.keys + above.values).allSatisfy { abs($0) < 1e-37 } && above.sinks == [-0.5])
        let below = gradients(deep(0), sink: -200, dp: Self.dp, dL: 0.5).gradients
        let none = gradients(deep(0), sink: -.infinity, dp: Self.dp, dL: 0.5).gradients
        try requireSameBits(below, none, "a sink of -200")
        #expect(none.sinks == [0])
    }

    /// "Rows of dS sum to 0" is false with a sink: sum_j dx_j = p_sink D + (1 - p_sink) dL, and with the sink's own dL.
    /// Forward rounds weights to factors of bfloat16, backward does not, before it takes the gradients of scores.
    @Test(arguments: [-Float.infinity, -2, 0, 1.5, 20], [ReferenceProducts.float32, .bfloat16])
    func sumOfScoreGradients(sink: Float, products: ReferenceProducts) {
        let bound: Float = products == .bfloat16 ? 0x1p-8 : 1e-6
        for dL in [0, 0.75] as [Float] {
            let (result, forward) = gradients(deep(1), sink: sink, dp: Self.dp, dL: dL, products: products)
            let (share, mean) = (forward.sinkShare[0], forward.output[0])
            let sum = result.bias.reduce(0, +)
            #expect(abs(sum - (share * mean + (1 - share) * dL)) < bound)
            #expect(abs(sum + result.sinks[0] - dL) < bound)
        }
    }

    /// Without a sink, softmax's gradients, worked out here.
    @Test func noSinkIsSoftmax() throws {
        let scores = deep(0).map(Double.init)
        let sum = scores.reduce(0) { $0 + exponential($1) }
        let p = scores.map { exponential($0) / sum }
        let mean = zip(p, Self.dp).reduce(0) { $0 + $1.0 * Double($1.1) }
        let expected = zip(p, Self.dp).map { $0 * (Double($1) - mean) }
        let result = gradients(deep(0), sink: -.infinity, dp: Self.dp).gradients
        try requireClose("dx", result.bias, expected, tolerance: { _ in 5e-7 }, "softmax")
    }

    private func exponential(_ x: Double) -> Double { ReferenceMath.exponential(x) }

    /// tt-metal 53216: weights from a chunk's log-sum-exp instead of the row's. Every chunk outweighs the one before.
    @Test(arguments: [InputFamily.ascending, .descending, .unitNormal])
    func chunksShareOneDenominator(family: InputFamily) {
        var shape = AttentionCase(queries: 3, keys: 2100, headDimension: 4)
        shape.family = family
        let (inputs, loss) = (shape.inputs, shape.loss)
        let (actual, exact) = (shape.referenceGradients(inputs, loss), shape.oracleGradients(inputs, loss))
        for (actual, exact) in zip(actual.named.prefix(4), exact.named) {
            #expect(relativeError(actual.values, exact.values) < 2e-5, "\(actual.name)")
        }
    }

    // MARK: - Hidden places

    /// A key that no row sees has a gradient of exactly 0, whatever lies in it.
    @Test(arguments: AttentionCase.NormaliserChoice.allCases, [ReferenceProducts.float32, .bfloat16])
    func hiddenPlaces(normaliser: AttentionCase.NormaliserChoice, products: ReferenceProducts) throws {
        var shape = AttentionCase(queries: 90, keys: 70, headDimension: 4) {
            ($0.batch, $0.group, $0.geometry, $0.keyLengths, $0.sink) = (2, 2, .causal, .partial, .amid)
        }
        (shape.normaliser, shape.products) = (normaliser, products)
        let (inputs, loss) = (shape.inputs, shape.loss)
        let clean = shape.referenceGradients(inputs, loss)
        let spoiled = shape.spoiled(inputs, loss)
        try requireSameBits(shape.referenceGradients(spoiled.inputs, spoiled.loss), clean, "\(shape)")
        let hidden = spoiled.inputs.keys.indices.filter { spoiled.inputs.keys[$0].isNaN }
        #expect(!hidden.isEmpty && hidden.allSatisfy { clean.keys[$0].bitPattern == 0 })
        #expect(hidden.allSatisfy { clean.values[$0].bitPattern == 0 })
    }

    /// A mask among visible keys: the same pairs hidden by `allowed`, with NaN behind every key that a row does not see.
    @Test func hiddenPairs() throws {
        var shape = AttentionCase(queries: 2, keys: 3, headDimension: 1)
        shape.sink = .amid
        var inputs = shape.inputs
        var problem = shape.referenceProblem(inputs)
        problem.allowed = ReferenceBroadcast([true, false, true, true, false, true], extents: [1, 1, 2, 3])
        let clean = problem.backward(queries: inputs.queries, keys: inputs.keys, values: inputs.values, shape.loss)
        (inputs.keys[1], inputs.values[1]) = (.nan, .infinity)
        let dirty = problem.backward(queries: inputs.queries, keys: inputs.keys, values: inputs.values, shape.loss)
        try requireSameBits(dirty, clean, "\(shape)")
        #expect(clean.keys[1].bitPattern == 0 && clean.values[1].bitPattern == 0)
    }

    /// What NaN in a visible place spoils: its own row, and the keys that this row sees.
    @Test func nanTakesItsRow() {
        let problem = ReferenceProblem(queries: 2, keys: 2, headDimension: 1, scale: 1, sinks: [0]).causal
        let result = problem.backward(
            queries: [1, .nan], keys: [0.5, 1], values: [1, 2], ReferenceLoss(outputGradient: [1, 1]))
        #expect(result.queries[0].isFinite && result.queries[1].isNaN)
        #expect(result.keys.allSatisfy(\.isNaN) && result.sinks[0].isNaN)
    }

    /// They give 0 and, to the sink, the gradient of the log-sum-exp, which is the sink itself.
    @Test(arguments: [Float(0.5), -.infinity])
    func rowsWithoutKeys(sink: Float) {
        var problem = ReferenceProblem(queries: 3, keys: 1, headDimension: 1, scale: 1, sinks: [sink]).causal
        problem.keyLengths = [0]
        let loss = ReferenceLoss(outputGradient: [1, .nan, .infinity], logSumExpGradient: [0.5, 0.25, 1])
        let result = problem.backward(queries: [1, .nan, 2], keys: [.nan], values: [.nan], loss)
        #expect((result.queries + result.keys + result.values).allSatisfy { $0.bitPattern == 0 })
        #expect(result.sinks == [sink == -.infinity ? 0 : 1.75])
        let none = ReferenceProblem(queries: 3, keys: 0, headDimension: 1, scale: 1, sinks: [sink])
            .backward(queries: [1, 1, 1], keys: [], values: [], loss)
        #expect(none.queries == [0, 0, 0] && none.keys.isEmpty && none.sinks == result.sinks)
    }
}
