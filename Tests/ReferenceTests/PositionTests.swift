// SPDX-License-Identifier: Apache-2.0
// PositionTests.swift - positions in the reference: its functions against the platform's, golden values, and what is true of
// each encoding.

import AttentionReference
import Foundation
import SeededInputs
import TestSupport
import Testing

@Suite struct PositionTests {
    // MARK: - Functions

    /// Bounds in units of 2^-53, the largest relative error of a rounded Double.
    private static let unit = 0x1p-53

    @Test func logarithmsAndExponentials() {
        var generator = SeededGenerator(seed: 1)
        var (logarithms, exponentials) = (0.0, 0.0)
        for _ in 0..<20_000 {
            let x = exp(40 * (Double(generator.nextUniform()) - 0.5))
            logarithms = max(logarithms, abs(ReferenceMath.logarithm(x) - log(x)) / max(abs(log(x)), 1e-3))
            let y = 1200 * (Double(generator.nextUniform()) - 0.5)
            exponentials = max(exponentials, abs(ReferenceMath.exponential(y) / exp(y) - 1))
        }
        #expect(logarithms < 6 * Self.unit)
        #expect(exponentials < 4 * Self.unit)
        #expect(ReferenceMath.logarithm(1) == 0 && ReferenceMath.exponential(0) == 1)
        #expect(ReferenceMath.exponential(-701) == 0)
    }

    /// The platform reduces one rounded angle; with theta a power of two the product is exact, and both see the same.
    @Test func sinesAndCosines() {
        var generator = SeededGenerator(seed: 2)
        var error = 0.0
        for _ in 0..<20_000 {
            let position = generator.next(in: 0...1 << 40) >> generator.next(in: 0...40)
            let theta = [1, 0.5, 0x1p-12][generator.next(in: 0...2)]
            let (sine, cosine) = ReferenceMath.sineAndCosine(position: -position, theta: theta)
            error = max(error, abs(sine + sin(Double(position) * theta)))
            error = max(error, abs(cosine - cos(Double(position) * theta)))
        }
        #expect(error < 4 * Self.unit)
    }

    /// Far below half of a unit in the last place of Float, 3e-8, where the rounding of a product alone would be 1e-10.
    @Test func anglesStayExactAtLargePositions() {
        // sin and cos of 1048575 * 10000^(-2j/64), to 20 digits by mpmath.
        let exact: [(pair: Int, sine: Double, cosine: Double)] = [
            (1, -0.99503312460665718673, 0.099544366668901119727),
            (7, -0.54480322325963671873, -0.83856392000008587812),
            (31, 0.99958385352803466098, -0.028846486199267820672),
        ]
        let positions = ReferencePositions(dimensions: 64)
        for (pair, sine, cosine) in exact {
            let result = ReferenceMath.sineAndCosine(position: 1_048_575, theta: positions.thetas[pair])
            #expect(abs(result.sine - sine) < 2e-9 && abs(result.cosine - cosine) < 2e-9)
            let rounded = positions.cosineAndSine(position: 1_048_575, pair: pair, .keys)
            #expect(rounded == (Float(cosine), Float(sine)))
        }
    }

    // MARK: - Golden values

    private func dot(_ a: [Float], _ b: [Float]) -> Double {
        zip(a, b).reduce(0) { $0 + Double($1.0) * Double($1.1) }
    }

    private func dot(_ a: [Double], _ b: [Double]) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }

    @Test("CoCA strict and slack", arguments: [ReferencePositions.Form.strict, .slack])
    func coca(form: ReferencePositions.Form) {
        let golden = Golden.shared.positions.coca
        let expected = (form == .strict ? golden.strict : golden.slack).value
        let positions = ReferencePositions(base: golden.base, dimensions: 8, form: form)
        // What is given as keys are two halves with these means.
        let key = golden.lengths.floats.map { $0 + 0.5 } + golden.lengths.floats.map { $0 - 0.5 }
        let score = dot(
            positions.turned(golden.query.floats, position: golden.m, .queries),
            positions.turned(key, position: golden.n, .keys))
        #expect(abs(score - expected) < 4e-6)
        let exact = dot(
            positions.oracle(golden.query.doubles, position: golden.m, .queries),
            positions.oracle(key.map(Double.init), position: golden.n, .keys))
        #expect(abs(exact - expected) < 1e-13)
        // A negative mean counts as 0: -t is no key at all.
        #expect(positions.turned(key.map { -$0 }, position: 3, .keys).allSatisfy { $0 == 0 })
    }

    @Test func dynamicNTKBases() {
        #expect(Golden.shared.positions.dynamicNTK.count == 12)
        for golden in Golden.shared.positions.dynamicNTK {
            let positions = ReferencePositions(
                base: golden.base, dimensions: golden.dimensions,
                scaling: .dynamic(
                    factor: golden.factor, trainedLength: golden.trainedLength, length: golden.length))
            #expect(abs(positions.scaledBase / golden.scaledBase - 1) < 1e-13)
            if golden.length == golden.trainedLength { #expect(positions.scaledBase == golden.base) }
        }
    }

    /// Base 150000, factor 32, 64 channels, trained on 4096 positions; computed with mpmath.
    @Test func yarnOfGPTOss() {
        let positions = ReferencePositions(
            base: 150_000, dimensions: 64,
            scaling: .yarn(factor: 32, trainedLength: 4096, truncate: false))
        let thetas: [Int: Double] = [
            0: 1, 1: 0.68904430588816327366, 8: 0.050813274815461473628, 9: 0.031705696184663765988,
            12: 0.0067949594897322178331, 16: 0.00045648391922324016956, 17: 0.00012931870124506272061,
            18: 0.000038308812373753382914, 31: 3.0235114281192143739e-7,
        ]
        for (pair, theta) in thetas { #expect(abs(positions.thetas[pair] / theta - 1) < 1e-13) }
        // At position 0 the cosine is the concentration alone, 0.1 ln 32 + 1.
        #expect(positions.cosineAndSine(position: 0, pair: 5, .keys).cosine == Float(1.3465735902799726547))
    }

    /// Computed with mpmath; transformers 5.24 has the same angles and factors in float64, to 4e-15.
    @Test func parametersOfCheckpoints() throws {
        let golden = Golden.shared.positions.checkpoints
        #expect(golden.count == 11)
        for (name, checkpoint) in golden {
            let positions = try #require(checkpoint.reference)
            #expect(positions.thetas.count == checkpoint.thetas.count)
            for (j, theta) in checkpoint.thetas.enumerated() {
                #expect(abs(positions.thetas[j] / theta - 1) < 1e-13, "\(name), pair \(j)")
                #expect(abs(positions.oracleTheta(j) / theta - 1) < 1e-13, "\(name), pair \(j)")
            }
            let factor = positions.cosineAndSine(position: 0, pair: 0, .keys).cosine
            #expect(factor == Float(checkpoint.attentionFactor), "\(name)")
        }
    }

    @Test func positionInterpolationAndNTK() {
        let plain = ReferencePositions(dimensions: 64)
        let interpolated = ReferencePositions(dimensions: 64, scaling: .linear(factor: 4))
        let aware = ReferencePositions(dimensions: 64, scaling: .ntk(factor: 4))
        #expect(zip(plain.thetas, interpolated.thetas).allSatisfy { $0 == 4 * $1 })
        // The fastest pair stays, the slowest is interpolated by the factor.
        #expect(aware.thetas[0] == 1)
        #expect(abs(plain.thetas[31] / aware.thetas[31] - 4) < 1e-12)
    }

    // MARK: - Against the formulas in Double

    @Test("rows are right", arguments: PositionCase.all(headDimension: 24))
    func rowsAreRight(positions: PositionCase) throws {
        var generator = SeededGenerator(seed: 3)
        let rows = generator.normals(6 * 24)
        let places = [0, 1, 17, 49, 60, 63]
        for side in ReferencePositions.Side.allCases {
            let actual = positions.prepared(rows, positions: places, headDimension: 24, length: 100, side)
            let exact = positions.oracle(rows, positions: places, headDimension: 24, length: 100, side)
            #expect(relativeError(actual, exact) < 1.5e-7)
        }
    }

    // MARK: - What scores depend on

    /// The score of a query at m and a key at n, in Double.
    private func score(_ positions: ReferencePositions, _ m: Int, _ n: Int) -> Double {
        var generator = SeededGenerator(seed: 4)
        let query = generator.normals(16).map(Double.init)
        let key = generator.normals(16).map { Double($0) + 0.5 }
        return dot(
            positions.oracle(query, position: m, .queries), positions.oracle(key, position: n, .keys))
    }

    private static let encodings: [(name: String, positions: ReferencePositions, isRelative: Bool)] = [
        ("RoPE", ReferencePositions(dimensions: 16), true),
        ("RoPE interleaved", ReferencePositions(dimensions: 16, pairing: .interleaved), true),
        ("partial RoPE", ReferencePositions(dimensions: 6), true),
        ("PI", ReferencePositions(dimensions: 16, scaling: .linear(factor: 8)), true),
        ("NTK", ReferencePositions(dimensions: 16, scaling: .ntk(factor: 8)), true),
        ("xPos", ReferencePositions(dimensions: 16, scaling: .xPos(scaleBase: 512, centre: 100)), true),
        ("CoCA strict", ReferencePositions(dimensions: 16, form: .strict), true),
        ("CoCA slack", ReferencePositions(dimensions: 16, form: .slack), false),
    ]

    @Test("depends on m - n alone", arguments: 0..<8)
    func relative(index: Int) {
        let (name, positions, isRelative) = Self.encodings[index]
        for (m, n) in [(11, 4), (4, 11), (30, 30)] {
            let shifts = [1, 77, 1000].map { abs(score(positions, m + $0, n + $0) - score(positions, m, n)) }
            if isRelative {
                #expect(shifts.allSatisfy { $0 < 1e-11 }, "\(name)")
            } else {
                #expect(shifts.allSatisfy { $0 > 0.1 }, "\(name)")
            }
        }
        #expect(abs(score(positions, 11, 4) - score(positions, 12, 4)) > 1e-3, "\(name) knows of positions")
    }

    @Test func xPosDoesNotDependOnItsCentre() {
        func positions(_ centre: Int) -> ReferencePositions {
            ReferencePositions(dimensions: 16, scaling: .xPos(scaleBase: 512, centre: centre))
        }
        let centres = [0, -512, 512, 700].map { score(positions($0), 900, 250) }
        #expect(centres.allSatisfy { abs($0 - centres[0]) < 1e-12 })
        // One pair: the score of RoPE times zeta^((m - n) / 512).
        let rows = [[0.3, -1.2], [0.7, 0.4]]
        func onePair(_ scaling: ReferencePositions.Scaling) -> Double {
            let positions = ReferencePositions(dimensions: 2, scaling: scaling)
            return dot(
                positions.oracle(rows[0], position: 900, .queries), positions.oracle(rows[1], position: 250, .keys))
        }
        let faded = onePair(.none) * pow(0.4 / 1.4, Double(900 - 250) / 512)
        #expect(abs(onePair(.xPos(scaleBase: 512, centre: 300)) - faded) < 1e-13)
    }

    /// Equation 9 of the paper equals RoPE of the pairs (|q|^2, 0) and (t, 0).
    @Test("CoCA strict equals a plain RoPE product", arguments: ReferencePositions.Pairing.allCases)
    func strictIsRoPE(pairing: ReferencePositions.Pairing) {
        var generator = SeededGenerator(seed: 5)
        let query = generator.normals(16).map(Double.init)
        let key = generator.normals(16).map(Double.init)
        let strict = ReferencePositions(dimensions: 16, pairing: pairing, form: .strict)
        let rope = ReferencePositions(dimensions: 16, pairing: pairing)
        var (squares, lengths, formula) = ([Double](repeating: 0, count: 16), [Double](repeating: 0, count: 16), 0.0)
        for j in 0..<8 {
            let (first, second) = rope.channels(ofPair: j)
            squares[first] = query[first] * query[first] + query[second] * query[second]
            lengths[first] = max(0, (key[first] + key[second]) / 2)
            formula += lengths[first] * squares[first] * cos(Double(23 - 9) * rope.oracleTheta(j))
        }
        let score = dot(strict.oracle(query, position: 23, .queries), strict.oracle(key, position: 9, .keys))
        let plain = dot(rope.oracle(squares, position: 23, .queries), rope.oracle(lengths, position: 9, .keys))
        #expect(abs(score - plain) < 1e-13 && abs(score - formula) < 1e-12)
    }

    @Test func zeroStaysZero() {
        for (_, positions, _) in Self.encodings {
            for side in ReferencePositions.Side.allCases {
                let row = positions.turned([Float](repeating: 0, count: 16), position: 1234, side)
                #expect(row.allSatisfy { $0 == 0 })
            }
        }
    }
}
