// SPDX-License-Identifier: Apache-2.0
// ScoreTests.swift - score scaling, softcap, ALiBi and the normalisers beside softmax: every kernel set against the
// reference, bit for bit.

import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct ScoreTests {
    @Test("score scaling", arguments: kernelSets, ScoreCases.scalings)
    func scalings(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("softcap", arguments: kernelSets, ScoreCases.softcaps)
    func softcaps(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("ALiBi", arguments: kernelSets, ScoreCases.alibi)
    func alibi(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("normalisers", arguments: kernelSets, ScoreCases.normalisers)
    func normalisers(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("normalisers of every input family", arguments: kernelSets, ScoreCases.families)
    func families(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    /// Every option with every other.
    @Test("random scores", arguments: kernelSets)
    func randomScores(kernels: KernelSet) throws {
        try forAll(ScoredCase.self, cases: 200) { try requireReferenceBits($0.shape, kernels) }
    }

    @Test("threads", arguments: kernelSets)
    func threads(kernels: KernelSet) throws {
        for shape in ScoreCases.normalisers.prefix(40) { try requireReferenceBits(shape, kernels, threads: 3) }
    }
}

enum ScoreCases {
    private static let sizes = [(1, 1), (7, 67), (13, 13), (20, 140), (4, 1100)]
    private static let geometries: [AttentionCase.Geometry] = [.none, .causal, .window(30)]

    private static func cases(_ change: @escaping (inout AttentionCase) -> Void) -> [AttentionCase] {
        zip(sizes, [0, 1, 2, 1, 0]).map { size, geometry in
            AttentionCase(queries: size.0, keys: size.1, headDimension: 9, valueDimension: 18) {
                ($0.keyValueHeads, $0.group, $0.sink, $0.geometry) = (1, 3, .amid, geometries[geometry])
                change(&$0)
            }
        }
    }

    static let scalings = AttentionCase.ScalingChoice.allCases.flatMap { scaling in
        cases { $0.scaling = scaling } + cases { ($0.scaling, $0.allowed, $0.batch) = (scaling, .random, 2) }
            + cases { ($0.scaling, $0.bias, $0.keyLengths, $0.batch) = (scaling, .excluding, .partial, 2) }
    }

    static let softcaps = [0.5, 5, 50].flatMap { cap in
        cases { $0.softcap = cap } + cases { ($0.softcap, $0.family) = (cap, .wide) }
            + cases { ($0.softcap, $0.bias, $0.scaling) = (cap, .normal, .table) }
    }

    static let alibi =
        (1...6).flatMap { group in cases { ($0.group, $0.hasALiBi) = (group, true) } }
        + cases { ($0.hasALiBi, $0.softcap, $0.scaling, $0.bias) = (true, 5, .logKeys, .normal) }
        + cases { ($0.hasALiBi, $0.keyLengths, $0.batch, $0.layout) = (true, .partial, 2, .sequenceFirst) }
        + cases { ($0.hasALiBi, $0.keyLengths, $0.batch, $0.padsQueries) = (true, .partial, 2, true) }

    static let normalisers = AttentionCase.NormaliserChoice.allCases.flatMap { normaliser in
        cases { $0.normaliser = normaliser }
            + cases { ($0.normaliser, $0.allowed, $0.batch) = (normaliser, .rowsWithout, 2) }
            + cases { ($0.normaliser, $0.bias, $0.softcap, $0.hasALiBi) = (normaliser, .excluding, 5, true) }
            + cases { ($0.normaliser, $0.storage) = (normaliser, .bfloat16) }
    }

    static let families = AttentionCase.NormaliserChoice.allCases.flatMap { normaliser in
        InputFamily.allCases.flatMap { family in
            [1090, 130].map { keys in
                AttentionCase(queries: 3, keys: keys, headDimension: 6) {
                    ($0.normaliser, $0.family, $0.geometry, $0.sink) = (normaliser, family, .causal, .amid)
                }
            }
        }
    }
}

/// A random case with random rules for scores.
private struct ScoredCase: PropertyCase {
    var shape: AttentionCase
    var description: String { shape.description }
    var shrunk: [ScoredCase] { shape.shrunk.map(ScoredCase.init) }

    static func random(using generator: inout SeededGenerator) -> ScoredCase {
        var shape = AttentionCase.random(using: &generator)
        shape.normaliser = generator.element(of: AttentionCase.NormaliserChoice.allCases)
        if shape.normaliser != .normalisedReluSquared {
            shape.scaling = generator.element(of: AttentionCase.ScalingChoice.allCases)
        }
        if generator.chance(1, outOf: 2) { shape.softcap = generator.element(of: [0.5, 3, 30]) }
        shape.hasALiBi = generator.chance(1, outOf: 2)
        return ScoredCase(shape: shape)
    }
}
