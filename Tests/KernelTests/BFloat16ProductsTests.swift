// SPDX-License-Identifier: Apache-2.0
// BFloat16ProductsTests.swift - products of bfloat16: every kernel set, and those with emulated instructions, against
// the reference, bit for bit.

import AttentionReference
import EmulatedTiles
import QuietAttention
import SeededInputs
import TestSupport
import Testing

private let sets = KernelSet.available + KernelSet.emulated

extension AttentionCase {
    fileprivate var ofBFloat16: AttentionCase {
        var shape = self
        shape.products = .bfloat16
        return shape
    }
}

extension [AttentionCase] {
    fileprivate var ofBFloat16: [AttentionCase] { map(\.ofBFloat16) }
}

@Suite struct BFloat16ProductsTests {
    /// Queries around the rows of a softmax tile (6), of dots (8), of a tile of the unit (16) and of a band (32); keys around segments (32),
    /// channels too.
    static let boundaries: [AttentionCase] =
        [7, 8, 9, 13, 15, 16, 17, 18, 19, 31, 32, 33, 36, 37, 47, 48, 49, 63, 64, 65, 127, 128, 129].map {
            AttentionCase(queries: $0, keys: 97, headDimension: 33, valueDimension: 48) { $0.geometry = .causal }
        }
        + [31, 32, 33, 34, 95, 96, 97, 127, 160, 257, 288].flatMap { size in
            [
                AttentionCase(queries: 20, keys: size, headDimension: 5, valueDimension: 17),
                AttentionCase(queries: 33, keys: 70, headDimension: size, valueDimension: 16),
                AttentionCase(queries: 9, keys: 66, headDimension: 40, valueDimension: size),
            ]
        }

    static let sizes = (boundaries + ForwardCases.sizes + ForwardCases.dimensions + ForwardCases.empty).ofBFloat16

    @Test("sizes", arguments: sets, sizes)
    func everySize(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test(
        "input families, chunks and scales",
        arguments: sets, (ForwardCases.families + ForwardCases.chunks + ForwardCases.scales).ofBFloat16)
    func inputs(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    /// Rows of a band, filled up to tiles of six, beside what the workspace has behind them; keys of several chunks, one of
    /// which begins with a value that is not finite.
    @Test("values that are not finite in a later chunk", arguments: sets, [13, 16, 31, 32, 48, 128])
    func laterChunks(kernels: KernelSet, queries: Int) throws {
        for family in [InputFamily.notANumber, .infinity] {
            for geometry in [AttentionCase.Geometry.none, .causal, .window(700)] {
                let shape = AttentionCase(queries: queries, keys: 2117, headDimension: 4, valueDimension: 18) {
                    ($0.family, $0.geometry, $0.sink) = (family, geometry, .amid)
                }
                try requireReferenceBits(shape.ofBFloat16, kernels)
            }
        }
    }

    @Test(
        "storage types and few queries", arguments: sets, (ForwardCases.storages + ForwardCases.fewQueries).ofBFloat16)
    func storages(kernels: KernelSet, shape: AttentionCase) throws {
        try requireReferenceBits(shape, kernels)
        try requireReferenceBits(shape, kernels, threads: 2)
    }

    @Test(
        "heads, masks, lengths and biases",
        arguments: sets,
        (ForwardCases.heads + ForwardCases.geometries + ForwardCases.lengths + ForwardCases.paddedQueries
            + ForwardCases.masks + ForwardCases.biases + ForwardCases.mixtures).ofBFloat16)
    func masks(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    /// Softcap, ALiBi and factors by every normaliser, and rows that meet NaN and infinities in keys and values.
    @Test("score rules and normalisers", arguments: sets, AttentionCase.NormaliserChoice.allCases)
    func rules(kernels: KernelSet, normaliser: AttentionCase.NormaliserChoice) throws {
        for family in [InputFamily.unitNormal, .notANumber, .infinity, .wide] {
            for (softcap, hasALiBi, scaling) in [
                (nil, false, AttentionCase.ScalingChoice.none), (2.5, true, .clippedLogKeys), (nil, true, .table),
            ] where scaling == .none || normaliser != .normalisedReluSquared {
                let shape = AttentionCase(queries: 35, keys: 150, headDimension: 40, valueDimension: 20) {
                    ($0.softcap, $0.hasALiBi, $0.scaling, $0.family) = (softcap, hasALiBi, scaling, family)
                    ($0.normaliser, $0.geometry, $0.group, $0.sink) = (normaliser, .causal, 2, .amid)
                }
                try requireReferenceBits(shape.ofBFloat16, kernels)
            }
        }
    }

    /// A block of values of 1, then one of 0 that outweighs it by 2^109: what is left of the first is no multiple of 2^-126.
    @Test("sums too small for tile instructions are 0", arguments: sets)
    func tinySums(kernels: KernelSet) throws {
        let shape = AttentionCase(queries: 33, keys: 128, headDimension: 4, valueDimension: 5) { $0.sink = .none }
            .ofBFloat16
        var inputs = shape.inputs
        inputs.queries = inputs.queries.map { _ in 1 }
        inputs.keys = inputs.keys.indices.map { $0 / 4 < 64 ? 0 : 38 }
        inputs.values = inputs.values.indices.map { $0 / 5 < 64 ? 1 : 0 }
        let actual = try shape.run(inputs, kernels: kernels)
        try requireSameBits(actual, shape.reference(inputs), valueDimension: 5, "\(kernels)")
        #expect(actual.output.allSatisfy { $0 == 0 })
    }

    /// Weights that round to less than 2^-56 are 0, which weights of AVX512-BF16 know by their exponents: those of the
    /// six numbers around the least that is none.
    @Test("the least weights", arguments: sets)
    func leastWeights(kernels: KernelSet) throws {
        let shape = AttentionCase(queries: 9, keys: 70, headDimension: 4, valueDimension: 5) {
            ($0.sink, $0.scale) = (.none, .negative)
        }.ofBFloat16
        var inputs = shape.inputs
        inputs.queries = inputs.queries.indices.map { $0 % 4 == 0 ? 1 : 0 }
        inputs.keys = inputs.keys.indices.map { $0 % 4 == 0 && $0 > 0 ? 1 : 0 }
        inputs.values = inputs.values.indices.map { $0 < 5 ? 0 : 1 }
        for step in -3..<3 {
            let exponent = Float(bitPattern: UInt32(Int((-0x1.c005c6p+5 as Float).bitPattern) - step))
            inputs.scale = Double(exponent) / 0x1.71547652b82fep0
            let actual = try shape.run(inputs, kernels: kernels)
            try requireSameBits(actual, shape.reference(inputs), valueDimension: 5, "\(kernels) \(step)")
            #expect(actual.output.allSatisfy { ($0 > 0) == (step >= 0) }, "\(kernels) \(step)")
        }
    }

    /// Prepared rows are rounded, once.
    @Test("norms and positions", arguments: sets)
    func preparedRows(kernels: KernelSet) throws {
        let shape = AttentionCase(queries: 37, keys: 70, headDimension: 36) { $0.geometry = .causal }.ofBFloat16
        for positions in PositionCase.all(headDimension: shape.headDimension) {
            let inputs = shape.inputs
            func prepared(_ rows: [Float], _ numbers: Range<Int>, _ side: ReferencePositions.Side) -> [Float] {
                positions.prepared(
                    rows, positions: numbers, headDimension: shape.headDimension, length: shape.keys, side)
            }
            let expected = shape.referenceProblem(inputs).forward(
                queries: prepared(inputs.queries, shape.keys - shape.queries..<shape.keys, .queries),
                keys: prepared(inputs.keys, 0..<shape.keys, .keys), values: inputs.values)
            let attention = try shape.attention(
                inputs, positions: positions.positions, queryKeyNorm: positions.norm, kernels: kernels)
            try requireSameBits(
                "out", try shape.run(inputs, attention).output, expected.output,
                extents: [shape.queries, shape.valueDimension], "\(kernels): \(positions)")
        }
    }

    /// One to seven rows over keys and values of bfloat16, which tile instructions and fma read where they stand; of 1090 keys
    /// the last block, of fewer than 64, is packed.
    @Test("few queries over rows of bfloat16", arguments: sets, 1...7)
    func rowsInPlace(kernels: KernelSet, queries: Int) throws {
        for family in InputFamily.allCases {
            for allowed in [AttentionCase.AllowedChoice.none, .random] {
                let shape = AttentionCase(queries: queries, keys: 320, headDimension: 64, valueDimension: 96) {
                    ($0.family, $0.storage, $0.geometry, $0.sink) = (family, .bfloat16, .causal, .amid)
                    $0.allowed = allowed
                }
                try requireReferenceBits(shape.ofBFloat16, kernels)
            }
        }
        for normaliser in AttentionCase.NormaliserChoice.allCases {
            for layout in AttentionCase.LayoutChoice.allCases {
                let shape = AttentionCase(queries: 1, keys: 1090, headDimension: 48, valueDimension: 176) {
                    ($0.normaliser, $0.layout, $0.storage, $0.group) = (normaliser, layout, .bfloat16, queries)
                    ($0.allowed, $0.geometry, $0.batch) = (.random, .window(1000), 2)
                }
                try requireReferenceBits(shape.ofBFloat16, kernels)
            }
        }
    }

    /// One number too small for a factor, or nearly, in a key that such rows would otherwise read where it stands: it would
    /// move a score by 8. The same in a value, where other values of its column are as small.
    @Test("a number too small for a factor", arguments: sets, [1, 2, 4, 6])
    func smallFactors(kernels: KernelSet, queries: Int) throws {
        let shape = AttentionCase(queries: queries, keys: 128, headDimension: 64, valueDimension: 32) {
            ($0.storage, $0.sink, $0.scale) = (.bfloat16, .none, .one)
        }.ofBFloat16
        for number in [0x1p-56 as Float, -0x1.fep-57, 0x1p-133] {
            for place in [0, 63, 64 * 17 + 31, 64 * 63 + 32] {
                var inputs = shape.inputs
                inputs.queries = inputs.queries.map { _ in 0x1p60 }
                inputs.keys = inputs.keys.indices.map { $0 == place ? number : 0 }
                for (column, value) in inputs.values.enumerated() where column % 32 == place % 32 {
                    inputs.values[column] = column / 32 == place / 64 ? number : value * 0x1p-60
                }
                try requireSameBits(
                    try shape.run(inputs, kernels: kernels), shape.reference(inputs), valueDimension: 32,
                    "\(kernels) \(number) \(place)")
            }
        }
    }

    /// Every option with every other.
    @Test("random cases", arguments: sets)
    func randomCases(kernels: KernelSet) throws {
        try forAll(RandomCase.self, cases: 150) { try requireReferenceBits($0.shape.ofBFloat16, kernels) }
    }

    /// Without this the emulation could pass every test by never being used; and a thread that kept tiles would be slowed down.
    @Test(arguments: [(2, false), (3, true), (30, true)])
    func tilesAreUsedAndGivenBack(queries: Int, areUsed: Bool) throws {
        let shape = AttentionCase(queries: queries, keys: 65, headDimension: 33).ofBFloat16
        let before = qattn_emulated_products()
        try requireReferenceBits(shape, .emulatedTiles)
        #expect((qattn_emulated_products() > before) == areUsed)
        #expect(!qattn_emulated_tiles_are_held())
        let products = qattn_emulated_products()
        try requireReferenceBits(
            AttentionCase(queries: 1, keys: 65, headDimension: 32) { $0.storage = .bfloat16 }.ofBFloat16, .emulatedTiles
        )
        #expect(qattn_emulated_products() == products + 4, "of the one whole block, where it stands")
        var float32 = shape
        float32.products = .float32
        try requireReferenceBits(float32, .emulatedTiles)
        #expect(qattn_emulated_products() == products + 4)
    }

    @Test(arguments: [(5, false), (6, true), (30, true)])
    func dotsAreUsed(queries: Int, areUsed: Bool) throws {
        let shape = AttentionCase(queries: queries, keys: 65, headDimension: 33).ofBFloat16
        let before = qattn_emulated_dots()
        try requireReferenceBits(shape, .emulatedDots)
        let dots = qattn_emulated_dots()
        #expect((dots > before) == areUsed)
        var float32 = shape
        float32.products = .float32
        try requireReferenceBits(float32, .emulatedDots)
        #expect(qattn_emulated_dots() == dots)
    }
}

/// A random case of any input family and storage type, of enough rows for tiles.
private struct RandomCase: PropertyCase {
    var shape: AttentionCase
    var description: String { shape.description }
    var shrunk: [RandomCase] { shape.shrunk.map(RandomCase.init) }

    static func random(using generator: inout SeededGenerator) -> RandomCase {
        var shape = AttentionCase.random(using: &generator)
        shape.family = generator.element(of: InputFamily.allCases)
        shape.storage = generator.element(of: AttentionCase.StorageChoice.available)
        if generator.chance(1, outOf: 2) { shape.headDimension = generator.next(in: 20...70) }
        if generator.chance(1, outOf: 2) { shape.queries = generator.next(in: 7...70) }
        return RandomCase(shape: shape)
    }
}
