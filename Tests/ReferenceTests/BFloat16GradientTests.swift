// SPDX-License-Identifier: Apache-2.0
// BFloat16GradientTests.swift - gradients from products of bfloat16: factors, sums and powers of two by hand, and what
// holds for every loss.

import TestSupport
import Testing

@testable import AttentionReference

@Suite struct BFloat16GradientTests {
    /// One head of one channel, scale 1 and no sink, unless changed.
    private func problem(
        queries: Int = 1, keys: Int = 1, _ normaliser: ReferenceNormaliser = .softmax, scale: Double = 1,
        _ change: (inout ReferenceProblem) -> Void = { _ in }
    ) -> ReferenceProblem {
        var problem = ReferenceProblem(
            queries: queries, keys: keys, headDimension: 1, scale: scale, sinks: [-.infinity])
        (problem.normaliser, problem.products) = (normaliser, .bfloat16)
        problem.bias = ReferenceBroadcast([Float](repeating: 0, count: keys), extents: [1, 1, 1, keys])
        change(&problem)
        return problem
    }

    /// Where the score is 0, sigmoid's p is 1/2 and its slope 1/4: with a scale of 2 and dO = 2 x, p dO and w are x v.
    private func sigmoid(queries: Int = 1, keys: Int = 1) -> ReferenceProblem {
        problem(queries: queries, keys: keys, .sigmoid, scale: 2)
    }

    // MARK: - Sums

    /// What terms at these places of a sum give, by how products of bfloat16 add up: 2^24 + 1 rounds to 2^24.
    static let sums: [(terms: [Int: Float], sum: Float)] = [
        // Within one chain each 1 is lost; from the other chain 1 + 1 arrive together.
        ([0: 0x1p24, 2: 1, 4: 1], 0x1p24), ([0: 0x1p24, 1: 1, 3: 1], 0x1p24 + 2),
        ([33: 0x1p24, 35: 1, 63: 1], 0x1p24), ([33: 0x1p24, 34: 1, 62: 1], 0x1p24 + 2),
        // Of two segments the first is rounded before the second is added.
        ([0: 0x1p24, 1: 1, 32: 1], 0x1p24), ([0: 0x1p24, 32: 1, 33: 1], 0x1p24 + 2),
        ([30: 0x1p24, 31: 1, 32: 1], 0x1p24), ([31: 0x1p24, 62: 1, 63: 1], 0x1p24 + 2),
        // A block has no sum of its own: its segments, too, are added one by one.
        ([0: 0x1p24, 64: 1, 96: 1], 0x1p24), ([0: 0x1p24, 64: 1, 65: 1], 0x1p24 + 2),
        ([64: 0x1p24, 65: 1, 128: 1], 0x1p24),
        // Blocks and segments count from the first place of all, not from the first that is seen.
        ([40: 0x1p24, 64: 1, 66: 1], 0x1p24 + 2), ([72: 0x1p24, 96: 1, 97: 1], 0x1p24 + 2),
        // The last block is shorter.
        ([127: 0x1p24, 128: 1, 129: 1], 0x1p24 + 2), ([128: 0x1p24, 129: 1], 0x1p24),
    ]

    /// Places without a term are seen, with a term of 0, or hidden, with NaN.
    @Test(arguments: sums.indices, [false, true])
    func sumsGoByBlocksSegmentsAndChains(index: Int, hidden: Bool) {
        let (terms, sum) = Self.sums[index]
        let count = 130
        let other: Float = hidden ? .nan : 0
        func row(_ factor: Float) -> [Float] { (0..<count).map { factor * (terms[$0] ?? other) } }
        let seen = (0..<count).map { !hidden || terms[$0] != nil }
        let ones = [Float](repeating: 1, count: count)

        var oneKey = sigmoid(queries: count)
        oneKey.allowed = ReferenceBroadcast(seen, extents: [1, 1, count, 1])
        let overQueries = oneKey.backward(queries: ones, keys: [0], values: [1], ReferenceLoss(outputGradient: row(2)))
        #expect(overQueries.keys == [sum] && overQueries.values == [sum])

        var oneQuery = sigmoid(keys: count)
        oneQuery.allowed = ReferenceBroadcast(seen, extents: [1, 1, 1, count])
        let overKeys = oneQuery.backward(queries: [0], keys: ones, values: row(1), ReferenceLoss(outputGradient: [2]))
        #expect(overKeys.queries == [sum])
    }

    /// dO.v goes by segments of 32 value channels. The gradient of the score is a quarter of it, and not rounded.
    @Test(arguments: [0, 1, 4, 5])
    func outputGradientsMeetValuesBySegments(index: Int) {
        let (terms, sum) = Self.sums[index]
        var problem = sigmoid()
        problem.valueDimension = 64
        let values = (0..<64).map { terms[$0] ?? 0 }
        let loss = ReferenceLoss(outputGradient: [Float](repeating: 2, count: 64))
        #expect(problem.backward(queries: [0], keys: [1], values: values, loss).bias == [sum / 2])
    }

    /// The least products, 2^-149, and the least number of a buffer keep every bit while they are raised, and from 2^80 on
    /// there is no room.
    @Test func buffersAreRaised() {
        let smallest = Float.leastNonzeroMagnitude
        func gradients(dO: Float, _ start: Float) -> (query: Float, key: Float) {
            var sums = ReferenceGradients<Float>(zerosFor: sigmoid())
            (sums.queries, sums.keys) = ([start], [start])
            let loss = ReferenceLoss(outputGradient: [dO])
            let query = sigmoid().backward(queries: [0], keys: [0x1p-56], values: [1], loss, addedTo: sums)
            let key = sigmoid().backward(queries: [0x1p-56], keys: [0], values: [1], loss, addedTo: sums)
            return (query.queries[0], key.keys[0])
        }
        let least: Float = 0x1p-135
        #expect(gradients(dO: 0x1p-78, smallest) == (least + smallest, least + smallest))
        #expect(gradients(dO: -0x1p-78, least) == (0, 0))
        #expect(gradients(dO: 1, 0x1.fffffep79) == (0x1.fffffep79, 0x1.fffffep79))
        #expect(gradients(dO: 1, 0x1p80) == (.infinity, .infinity))
    }

    // MARK: - Factors

    /// Gradients of outputs are cut at 2^-79, not at 2^-56, and rounded like them.
    @Test func outputGradientsAreFactors() {
        for (dO, expected) in [
            (1, 1), (0x1.01p0, 1), (0x1.0100_02p0, 0x1.02p0), (-0x1.03p-70, -0x1.04p-70), (0x1p-79, 0x1p-79),
            (0x1.ffp-80, 0x1p-79), (0x1.fep-80, 0), (-0x1p-80, 0), (0x1.fep79, 0x1.fep79), (0x1p80, .infinity),
        ] as [(Float, Float)] {
            // The only key has the weight 1.
            let result = problem().backward(
                queries: [0], keys: [0], values: [0], ReferenceLoss(outputGradient: [dO]))
            #expect(result.values == [expected] && result.values[0].sign == expected.sign, "\(dO)")
        }
    }

    /// A weight below 2^-56 counts as 0 in the gradient of the value, and as itself in that of the score.
    @Test func weightsAreFactors() {
        let squares = problem(.reluSquared) { $0.rowConstants = [1] }
        func gradients(score: Float) -> ReferenceGradients<Float> {
            squares.backward(queries: [1], keys: [score], values: [1], ReferenceLoss(outputGradient: [1]))
        }
        #expect(gradients(score: 0x1p-28).values == [0x1p-56])
        #expect(gradients(score: 0x1p-29).values == [0] && gradients(score: 0x1p-29).bias == [0x1p-28])
        // (1 + 2^-7)^2 = 1 + 2^-6 + 2^-14.
        #expect(gradients(score: 0x1.02p0).values == [0x1.04p0])
        // Of sigmoid p (1 - p), and p is no factor there.
        let sigmoid = problem(.sigmoid) { $0.rowConstants = [1] }
        let loss = ReferenceLoss(outputGradient: [1])
        let result = sigmoid.backward(queries: [0], keys: [1], values: [1], loss)
        let p = sigmoid.forward(queries: [0], keys: [1], values: [1]).output[0]
        let exact = 1 / (1 + ReferenceMath.exponential(-1))
        #expect(result.values == [p.roundedForProducts] && abs(Double(p) - exact) > 0x1p-12)
        #expect(abs(Double(result.bias[0]) - exact * (1 - exact)) < 0x1p-23)
    }

    /// A gradient of q.k below 2^-79 counts as 0 in those of queries and keys; that of the score keeps all its bits.
    @Test func gradientsOfScoresAreFactors() {
        let squares = problem(.reluSquared) { $0.rowConstants = [1] }
        func gradients(_ q: Float, dO: Float) -> ReferenceGradients<Float> {
            squares.backward(queries: [q], keys: [1], values: [1], ReferenceLoss(outputGradient: [dO]))
        }
        // u = dO 2 q.
        let smallest = gradients(0.5, dO: 0x1p-79)
        #expect(smallest.queries == [0x1p-79] && smallest.keys == [0x1p-80] && smallest.bias == [0x1p-79])
        let smaller = gradients(0.25, dO: 0x1p-79)
        #expect(smaller.queries == [0] && smaller.keys == [0] && smaller.bias == [0x1p-80])
        // 1.0234375 * 1.0078125 has more bits than a factor.
        let rounded = gradients(0x1.02p0, dO: 0x1.06p0)
        #expect(rounded.bias == [0x1.080cp1] && rounded.queries == [0x1.08p1] && rounded.keys == [0x1.0a1p1])
    }

    /// The gradient of the logarithm of the scale takes the query as it was multiplied.
    @Test func logScalesTakeRoundedQueries() {
        let squares = problem(.reluSquared) { $0.rowConstants = [1] }
        let result = squares.backward(
            queries: [0x1.004p0], keys: [1], values: [1], ReferenceLoss(outputGradient: [1]))
        #expect(result.logScales == [2])
    }

    /// delta is made of dO as it is multiplied, here 1: p = share = 1/2, so delta = 1/2 and u = (1 - 1/2) / 2. A weight of 1 has
    /// no gradient of its score.
    @Test func deltaTakesRoundedOutputGradients() {
        let quiet = problem { $0.sinks = [0] }
        func gradients(_ problem: ReferenceProblem, dL: Float? = nil) -> ReferenceGradients<Float> {
            problem.backward(
                queries: [0], keys: [0], values: [1],
                ReferenceLoss(outputGradient: [0x1.004p0], logSumExpGradient: dL.map { [$0] }))
        }
        let result = gradients(quiet)
        #expect(result.values == [0.5] && result.sinks == [-0.25] && result.bias == [0.25])
        let withLogSumExp = gradients(quiet, dL: 0.5)
        #expect(withLogSumExp.sinks == [0] && withLogSumExp.bias == [0.5])
        #expect(gradients(problem()).bias == [0])
    }

    // MARK: - Powers of two

    private static let options = FiniteDifferenceTests.options.indices
    private static let normalisers = AttentionCase.NormaliserChoice.allCases

    private func shape(_ normaliser: AttentionCase.NormaliserChoice, _ option: Int) -> AttentionCase {
        var shape = AttentionCase(queries: 66, keys: 70, headDimension: 3, valueDimension: 5) {
            $0.sink = .amid
            FiniteDifferenceTests.options[option](&$0)
        }
        (shape.normaliser, shape.products) = (normaliser, .bfloat16)
        return shape
    }

    /// A loss times a power of two has all gradients times that power, to the bit.
    @Test(arguments: normalisers, options)
    func lossesOfAnySize(normaliser: AttentionCase.NormaliserChoice, option: Int) throws {
        let shape = shape(normaliser, option)
        let (inputs, loss) = (shape.inputs, shape.loss)
        let once = shape.referenceGradients(inputs, loss)
        for exponent in [-30, -17, 30] {
            let factor = Float(sign: .plus, exponent: exponent, significand: 1)
            let scaled = ReferenceLoss(
                outputGradient: loss.outputGradient.map { factor * $0 },
                logSumExpGradient: loss.logSumExpGradient?.map { factor * $0 })
            for (actual, expected) in zip(shape.referenceGradients(inputs, scaled).named, once.named) {
                try requireSameBits(
                    actual.name, actual.values, expected.values.map { factor * $0 }, "2^\(exponent), \(shape)")
            }
        }
    }

    /// A loss of 1e-20 still has gradients, and they are right.
    @Test func tinyLosses() {
        let shape = shape(.softmax, 0)
        let inputs = shape.inputs
        var loss = shape.loss
        loss.outputGradient = loss.outputGradient.map { $0 * 1e-20 }
        loss.logSumExpGradient = loss.logSumExpGradient?.map { $0 * 1e-20 }
        let (actual, exact) = (shape.referenceGradients(inputs, loss), shape.oracleGradients(inputs, loss))
        for (actual, exact) in zip(actual.named.prefix(4), exact.named) {
            #expect(actual.values.allSatisfy { $0 != 0 }, "\(actual.name)")
            #expect(relativeError(actual.values, exact.values) < 5e-3, "\(actual.name)")
        }
    }

    // MARK: - Zeros and NaN

    /// A gradient of 0 is +0, also where the loss's is -0 or too small to count.
    @Test(arguments: normalisers, [Float(0), -0.0, 0x1p-120])
    func zeros(normaliser: AttentionCase.NormaliserChoice, factor: Float) {
        let shape = shape(normaliser, 1)
        let (inputs, loss) = (shape.inputs, shape.loss)
        let none = ReferenceLoss(outputGradient: loss.outputGradient.map { factor * $0 })
        let result = shape.referenceGradients(inputs, none)
        for (name, gradients) in result.named.prefix(factor == 0 ? 7 : 3) {
            #expect(gradients.allSatisfy { $0.bitPattern == 0 }, "\(name)")
        }
    }

    /// NaN in the gradient of one output: all of the row's query, its sink, the keys that it sees, and the channel of
    /// their values. Everything else keeps its bits.
    @Test(arguments: [ReferenceProducts.float32, .bfloat16])
    func nanInAnOutputGradient(products: ReferenceProducts) {
        var shape = AttentionCase(queries: 70, keys: 70, headDimension: 3, valueDimension: 4) {
            ($0.group, $0.keyValueHeads, $0.geometry) = (2, 2, .causal)
        }
        shape.products = products
        let (inputs, clean) = (shape.inputs, shape.loss)
        var loss = clean
        // Query head 1 uses key/value head 0.
        let (head, row, channel) = (1, 66, 2)
        loss.outputGradient[(head * 70 + row) * 4 + channel] = .nan
        let (actual, expected) = (shape.referenceGradients(inputs, loss), shape.referenceGradients(inputs, clean))
        func check(_ name: String, _ actual: [Float], _ expected: [Float], isNaN: (Int) -> Bool) {
            for index in actual.indices {
                let isRight = isNaN(index) ? actual[index].isNaN : sameBits(actual[index], expected[index])
                #expect(isRight && !expected[index].isNaN, "\(name)[\(index)] is \(actual[index])")
            }
        }
        check("dq", actual.queries, expected.queries) { $0 / 3 == head * 70 + row }
        check("dk", actual.keys, expected.keys) { $0 / 3 <= row }
        check("dv", actual.values, expected.values) { $0 / 4 <= row && $0 % 4 == channel }
        check("dsink", actual.sinks, expected.sinks) { $0 == head }
    }
}
