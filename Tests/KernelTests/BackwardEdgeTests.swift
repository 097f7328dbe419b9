// SPDX-License-Identifier: Apache-2.0
// BackwardEdgeTests.swift - the gradients of every kernel set where numbers are tiny, huge, zeros of both signs or not
// finite: those of the reference, bit for bit, by the C interface.

import AttentionReference
import EmulatedTiles
import SeededInputs
import TestSupport
import Testing

@Suite struct BackwardEdgeTests {
    static let normalisers: [(ReferenceNormaliser, Float)] = [
        (.softmax, 0), (.clippedSoftmax(zeta: 1.0625), -0.03125), (.sigmoid, -3), (.softpick, 0x1p-20),
        (.reluSquared, 100), (.normalisedReluSquared, 1),
    ]

    /// With biases and ALiBi, so that scores and slopes have gradients, too; a row in seven has a gradient of 0.
    private func rules(_ number: Int, _ problem: inout HeadProblem, _ loss: inout ReferenceLoss) {
        let (normaliser, constant) = Self.normalisers[number % Self.normalisers.count]
        (problem.normaliser, problem.constant) = (normaliser, constant)
        problem.alibiSlope = 0.0625
        if number % 2 == 1 { problem.softcap = 3 }
        for index in loss.outputGradient.indices where index / problem.valueDimension % 7 == 3 {
            loss.outputGradient[index] = index % 2 == 0 ? 0 : -0.0
        }
    }

    private static let shape = AttentionCase(queries: 19, keys: 75, headDimension: 6, valueDimension: 5) {
        ($0.geometry, $0.sink, $0.bias) = (.causal, .amid, .normal)
    }

    // MARK: - Sizes of numbers

    /// What tensors are multiplied by: powers of two of queries, keys, values and gradients. Products of bfloat16 take
    /// gradients below 2^-79 and other factors below 2^-56 for 0; from 2^80 on, sums of gradients are infinite.
    static let powers: [(queries: Int, keys: Int, values: Int, gradients: Int)] =
        [-145, -126, -104, -82, -80, -79, -78, -76, -72, -48, 60, 79, 80, 100].map { (0, 0, 0, $0) }
        + [-140, -126, -60, -57, -56, 60, 100, 125].map { (0, 0, $0, 0) }
        + [(0, 0, 100, -100), (0, 0, 30, 30), (0, 0, 60, 60), (0, 0, -120, 100), (0, 0, -50, -100), (0, 0, 40, -140)]
        + [(-56, 56, 0, 0), (-60, 60, 0, 0), (60, -60, 0, 0), (-140, 120, 0, 0), (40, 40, 0, 0), (3, 3, 0, -76)]
        + [(-50, -50, 0, -70), (-54, -54, 20, -79)]

    @Test("magnitudes", arguments: ReferenceProducts.all, powers.indices)
    func magnitudes(products: ReferenceProducts, index: Int) throws {
        let powers = Self.powers[index]
        for number in Self.normalisers.indices {
            try requireReferenceGradients(Self.shape, products) { problem, loss in
                rules(number, &problem, &loss)
                problem.queries = problem.queries.scaled(powers.queries)
                problem.keys = problem.keys.scaled(powers.keys)
                problem.values = problem.values.scaled(powers.values)
                loss.outputGradient = loss.outputGradient.scaled(powers.gradients)
                loss.logSumExpGradient = loss.logSumExpGradient?.scaled(powers.values + powers.gradients)
            }
        }
    }

    /// Gradients of 16 bits: subnormal numbers of float16 are no zeros, those of bfloat16 are.
    @Test("magnitudes of 16 bits", arguments: ReferenceProducts.all, AttentionCase.StorageChoice.available.dropFirst())
    func storedMagnitudes(products: ReferenceProducts, storage: AttentionCase.StorageChoice) throws {
        for power in storage == .float16 ? [-22, -15, 10] : [-130, -79, 80] {
            try requireReferenceGradients(
                Self.shape, products, [DirectBackward(call: DirectCall(storage: storage, outStorage: storage))]
            ) { problem, loss in
                rules(0, &problem, &loss)
                loss.outputGradient = loss.outputGradient.scaled(power)
            }
        }
    }

    @Test("input families", arguments: ReferenceProducts.all, InputFamily.allCases)
    func families(products: ReferenceProducts, family: InputFamily) throws {
        for (number, geometry) in [AttentionCase.Geometry.none, .causal, .window(9)].enumerated() {
            var shape = Self.shape
            (shape.family, shape.geometry) = (family, geometry)
            for step in [0, 3] {
                try requireReferenceGradients(shape, products) { problem, loss in
                    rules(number + step, &problem, &loss)
                    guard family == .zeros else { return }
                    for index in loss.outputGradient.indices where index % 5 < 3 {
                        loss.outputGradient[index] = index % 2 == 0 ? 0 : -0.0
                    }
                }
            }
        }
    }

    // MARK: - Numbers that are not finite

    /// A number in one row of a tensor.
    struct Harm: Sendable {
        enum Tensor: CaseIterable { case queries, keys, values, gradients }
        let tensor: Tensor
        let row: Int
        let number: Float

        fileprivate func put(_ problem: inout HeadProblem, _ loss: inout ReferenceLoss) {
            let (d, e) = (problem.headDimension, problem.valueDimension)
            switch tensor {
            case .queries: problem.queries[row * d + d - 1] = number
            case .keys: problem.keys[row * d + d / 2] = number
            case .values: problem.values[row * e] = number
            case .gradients: loss.outputGradient[row * e + e - 1] = number
            }
        }
    }

    /// The greatest number of Float is none of bfloat16.
    static let numbers: [Float] = [.nan, .infinity, -.infinity, .greatestFiniteMagnitude]

    /// Two blocks of queries and of keys, not whole: what all rows see, some, and none.
    private static let masks: [(AttentionCase.Geometry, AttentionCase.AllowedChoice)] = [
        (.none, .none), (.causal, .none), (.window(20), .none), (.none, .random), (.causal, .rowsWithout),
        (.none, .blocksWithout),
    ]

    /// What sees the number has a gradient of NaN or infinity, and nothing else.
    private func requireReference(_ products: ReferenceProducts, _ harms: [Harm], first: Int) throws {
        for (number, (geometry, allowed)) in Self.masks.enumerated() {
            // Where scores are far apart, which no softcap prevents then, weights of 0 meet what is not finite.
            let shape = AttentionCase(queries: 66, keys: 80, headDimension: 5, valueDimension: 3) {
                ($0.geometry, $0.allowed, $0.sink) = (geometry, allowed, .amid)
                $0.family = (number + first) % 2 == 0 ? .wide : .unitNormal
            }
            try requireReferenceGradients(shape, products) { problem, loss in
                rules(number + first, &problem, &loss)
                for harm in harms { harm.put(&problem, &loss) }
            }
        }
    }

    @Test("one that is not finite", arguments: ReferenceProducts.all, Harm.Tensor.allCases)
    func notFinite(products: ReferenceProducts, tensor: Harm.Tensor) throws {
        for (index, number) in Self.numbers.enumerated() {
            let row = index % 2 == 0 ? 3 : 65
            try requireReference(products, [Harm(tensor: tensor, row: row, number: number)], first: index)
        }
    }

    /// One that all blocks must look for keeps none of them from summing what others see.
    @Test("two that are not finite", arguments: ReferenceProducts.all, Harm.Tensor.allCases)
    func twoNotFinite(products: ReferenceProducts, tensor: Harm.Tensor) throws {
        for (index, other) in Harm.Tensor.allCases.enumerated() {
            try requireReference(
                products,
                [Harm(tensor: tensor, row: 12, number: .infinity), Harm(tensor: other, row: 64, number: .nan)],
                first: index)
        }
    }

    /// Rows that see nothing and keys that nothing sees hold NaN, and so do gradients of such rows; beside them is one
    /// that is seen, or none.
    @Test("what is hidden does no harm", arguments: ReferenceProducts.all, [nil] + Harm.Tensor.allCases.map { $0 })
    func hidden(products: ReferenceProducts, seen: Harm.Tensor?) throws {
        for number in Self.normalisers.indices {
            let shape = AttentionCase(queries: 70, keys: 130, headDimension: 4, valueDimension: 3) {
                ($0.allowed, $0.geometry, $0.bias) = (.random, number % 2 == 0 ? .causal : .none, .normal)
            }
            try requireReferenceGradients(shape, products) { problem, loss in
                rules(number, &problem, &loss)
                for row in [0, 9, 69] {
                    for key in 0..<problem.keyCount { problem.allowed![row * problem.keyCount + key] = false }
                    Harm(tensor: .queries, row: row, number: .nan).put(&problem, &loss)
                    Harm(tensor: .gradients, row: row, number: .nan).put(&problem, &loss)
                }
                for key in [2, 77, 129] {
                    for row in 0..<problem.queryCount { problem.allowed![row * problem.keyCount + key] = false }
                    Harm(tensor: .keys, row: key, number: .nan).put(&problem, &loss)
                    Harm(tensor: .values, row: key, number: .infinity).put(&problem, &loss)
                }
                if let seen { Harm(tensor: seen, row: 40, number: .infinity).put(&problem, &loss) }
            }
        }
    }

    // MARK: - Emulated instructions

    /// Without this the emulation could pass every test by never being used; and a thread that kept tiles would be slowed
    /// down.
    @Test(arguments: ReferenceProducts.all, normalisers.indices.prefix(2))
    func tilesAreUsedAndGivenBack(products: ReferenceProducts, number: Int) throws {
        let before = qattn_emulated_products()
        let dots = qattn_emulated_dots()
        try requireReferenceGradients(Self.shape, products) { rules(number, &$0, &$1) }
        #expect((qattn_emulated_products() > before) == (products == .bfloat16))
        #expect((qattn_emulated_dots() > dots) == (products == .bfloat16))
        #expect(!qattn_emulated_tiles_are_held())
    }
}

extension [Float] {
    /// Times a power of two, rounded where that is subnormal.
    fileprivate func scaled(_ power: Int) -> [Float] {
        map { Float(Double($0) * Double(sign: .plus, exponent: power, significand: 1)) }
    }
}
