// SPDX-License-Identifier: Apache-2.0
// GradientDigestTests.swift - digests of gradients by the reference: those of cross.c, which runs where no Swift does.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct GradientDigestTests {
    /// The six variants of `run_backward` in cross.c: two query heads by every normaliser, with rules of scores for every
    /// other one. Biases of 0 show the gradients of scores, and change none of the others.
    private struct Variants {
        static let (heads, queries, keys, dimension, valueDimension) = (2, 70, 131, 20, 33)
        static let rows = heads * queries
        static let normalisers: [(ReferenceNormaliser, Float)] = [
            (.softmax, 0), (.clippedSoftmax(zeta: 1.0625), -0.03125), (.sigmoid, -3), (.softpick, 0x1p-20),
            (.reluSquared, 100), (.normalisedReluSquared, 1),
        ]

        static func hasRules(_ variant: Int) -> Bool { variant % 2 != 0 }

        private static func normals(_ stream: UInt64, _ count: Int) -> [Float] {
            var generator = SeededGenerator(seed: 17, stream: stream)
            return generator.normals(count)
        }

        static func gradients(_ variant: Int, _ products: ReferenceProducts) -> ReferenceGradients<Float> {
            let (normaliser, constant) = normalisers[variant]
            var problem = ReferenceProblem(
                queryHeads: heads, keyValueHeads: 1, queries: queries, keys: keys, headDimension: dimension,
                valueDimension: valueDimension, scale: 0.25, sinks: [0.5, -1]
            ).window(keys)
            if variant % 3 != 0 { problem = problem.window(40) }
            (problem.normaliser, problem.products) = (normaliser, products)
            problem.rowConstants = [Float](repeating: constant, count: rows)
            problem.bias = ReferenceBroadcast(
                [Float](repeating: 0, count: rows * keys), extents: [1, heads, queries, keys])
            if hasRules(variant) {
                problem.rowFactors = (0..<rows).map { 0.5 + Double($0 % 7) / 4 }
                (problem.softcap, problem.alibiSlopes) = (5, [0.0625, 0.125])
            }
            let loss = ReferenceLoss(
                outputGradient: normals(3, rows * valueDimension),
                logSumExpGradient: variant < 2 ? normals(4, rows) : nil)
            return problem.backward(
                queries: normals(0, rows * dimension), keys: normals(1, keys * dimension),
                values: normals(2, keys * valueDimension), loss)
        }
    }

    @Test(arguments: ReferenceProducts.all)
    func attention(products: ReferenceProducts) {
        var (digest, ofHeads) = (BitDigest(), BitDigest())
        let (rows, keys) = (Variants.rows, Variants.keys)
        for variant in Variants.normalisers.indices {
            let gradients = Variants.gradients(variant, products)
            digest.add(gradients.queries)
            digest.add(gradients.keys)
            digest.add(gradients.values)
            for row in 0..<rows { digest.add(Array(gradients.bias[row * keys + 64..<row * keys + 128])) }
            ofHeads.add(Variants.hasRules(variant) ? gradients.slopes : [0, 0])
            ofHeads.add(gradients.logScales)
        }
        for (name, digest) in [("backward", digest), ("head_gradients", ofHeads)] {
            let line = products == .float32 ? name : name + "_pairs"
            #expect(
                digest.hexadecimal == DigestCase.functionDigest(line), "function \(line) \(digest.hexadecimal)")
        }
    }

    /// The variants of `run_prepare_backward` in cross.c.
    @Test func preparedRows() {
        let (count, dimension, pairs) = (70, 40, 17)
        func normals(_ stream: UInt64, _ count: Int) -> [Float] {
            var generator = SeededGenerator(seed: 18, stream: stream)
            return generator.normals(count)
        }
        let (rows, tables) = (normals(0, count * dimension), normals(1, count * 64))
        let (gain, shift) = (normals(2, dimension), normals(3, dimension))
        var gradients = normals(4, count * dimension)
        for d in 0..<dimension { gradients[d] = -0.0 }
        let norms = [
            nil, ReferenceNorm(.rms, epsilon: 0.25, gain: gain),
            ReferenceNorm(.layer, epsilon: 0.25, gain: gain, bias: shift),
        ]
        let forms: [(ReferencePositions.Form, ReferencePositions.Side)] = [
            (.rotary, .keys), (.slack, .queries), (.slack, .keys), (.strict, .queries), (.strict, .keys),
        ]
        func before(_ index: Int) -> Float { index % 2 == 0 ? 1 : -0.0 }
        let given = (0..<count).map { rows.rows($0, 1, dimension) }
        var digest = BitDigest()
        for variant in 0..<30 {
            let (norm, (form, side)) = (norms[variant % 3], forms[variant / 3 % 5])
            let positions = ReferencePositions(
                dimensions: 2 * pairs, pairing: variant < 15 ? .halves : .interleaved, form: form)
            let turnedBack = given.indices.map { row in
                positions.gradient(
                    norm?.normalised(given[row]) ?? given[row], of: gradients.rows(row, 1, dimension), side
                ) { j in (tables[row * 64 + j], tables[row * 64 + 32 + j]) }
            }
            let result = zip(given, turnedBack).flatMap { norm?.gradient($0, of: $1) ?? $1 }
            digest.add(result.enumerated().map { (variant % 2 == 1 ? before($0) + 0 : 0) + $1 })
            let start = ((0..<dimension).map(before), (0..<dimension).map(before))
            let sums = norm?.parameterGradients(given, of: turnedBack, addedTo: start)
            digest.add(sums?.gain ?? start.0)
            digest.add(norm?.bias == nil ? start.1 : sums?.bias ?? start.1)
        }
        #expect(
            digest.hexadecimal == DigestCase.functionDigest("prepare_backward"), "digest \(digest.hexadecimal)")
    }
}
