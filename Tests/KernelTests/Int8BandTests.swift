// SPDX-License-Identifier: Apache-2.0
// Int8BandTests.swift - int8 by tile instructions, emulated, and by the body of every other set, against the reference, bit for
// bit: as many rows as tiles take, and sizes around those of tiles.

import AttentionReference
import CKernels
import EmulatedTiles
import SeededInputs
import TestSupport
import Testing

/// The set with tile instructions in plain C beside the best that this CPU has.
private let sets = [KernelTable.emulatedTiles, KernelTable.available[0]]

@Suite struct Int8BandTests {
    /// Around the rows of a softmax tile (6), of a tile of the unit (16), of a band (32) and of a call (128 and 132).
    static let rowCounts: [AttentionCase] =
        (Array(1...33) + [36, 37, 47, 48, 49, 63, 64, 65, 96, 97, 127, 128, 129, 132, 133]).map {
            AttentionCase(queries: $0, keys: 97, headDimension: 35, valueDimension: 48) { $0.geometry = .causal }
        }

    @Test("rows", arguments: rowCounts)
    func rows(shape: AttentionCase) throws { try requireInt8Bits(sets, shape) }

    /// Around fours and segments of 64, and beyond the 512 channels whose sum has room in 32 bits.
    @Test(arguments: [1, 2, 3, 4, 5, 16, 31, 32, 33, 34, 48, 63, 64, 65, 66, 95, 96, 97, 127, 128, 129, 320])
    func dimensions(size: Int) throws {
        try requireInt8Bits(sets, AttentionCase(queries: 17, keys: 70, headDimension: size, valueDimension: 7))
        try requireInt8Bits(sets, AttentionCase(queries: 32, keys: 66, headDimension: 6, valueDimension: size))
    }

    @Test(arguments: [511, 512, 513, 515, 576, 577, 1031, 1090])
    func manyChannels(size: Int) throws {
        try requireInt8Bits(sets, AttentionCase(queries: 16, keys: 67, headDimension: size, valueDimension: 5))
    }

    /// Around pairs, fours, vectors, blocks and chunks.
    @Test(arguments: [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 66, 127, 128, 129, 1023, 1024, 1025, 1100])
    func keys(count: Int) throws {
        for geometry in [AttentionCase.Geometry.none, .causal, .window(40)] {
            try requireInt8Bits(
                sets,
                AttentionCase(queries: 19, keys: count, headDimension: 9, valueDimension: 18) {
                    ($0.geometry, $0.sink) = (geometry, .amid)
                })
        }
    }

    /// NaN and infinity in a query, a key and a value, seen and hidden, among them.
    @Test("input families and scales", arguments: InputFamily.allCases)
    func families(family: InputFamily) throws {
        for geometry in [AttentionCase.Geometry.none, .causal, .window(3)] {
            try requireInt8Bits(
                sets,
                AttentionCase(queries: 40, keys: 150, headDimension: 6, valueDimension: 18) {
                    ($0.family, $0.sink, $0.geometry) = (family, .amid, geometry)
                })
        }
        for scale in AttentionCase.ScaleChoice.allCases {
            try requireInt8Bits(
                sets,
                AttentionCase(queries: 14, keys: 70, headDimension: 66) { ($0.family, $0.scale) = (family, scale) })
        }
    }

    @Test(
        "masks, biases and lengths",
        arguments: ForwardCases.geometries.filter { $0.queries > 12 && $0.keys < 200 } + AttentionCase.masked)
    func masks(shape: AttentionCase) throws { try requireInt8Bits(sets, shape) }

    @Test("rules for scores", arguments: Int8Tests.rules.indices)
    func rules(index: Int) throws {
        for (number, family) in [InputFamily.unitNormal, .wide, .notANumber, .infinity].enumerated() {
            let shape = AttentionCase(
                queries: 31, keys: number == 0 ? 1090 : 150, headDimension: 5, valueDimension: 18
            ) {
                ($0.geometry, $0.allowed, $0.sink, $0.family) = (.causal, .blocksWithout, .amid, family)
            }
            try requireInt8Bits(sets, shape) { Int8Tests.rules[index](&$0) }
        }
    }

    /// Keys and values that no row sees, and such as only the last row does, are not finite.
    @Test func hiddenKeysDoNoHarm() throws {
        let shape = AttentionCase(queries: 20, keys: 90, headDimension: 7, valueDimension: 17) {
            $0.geometry = .window(50)
        }
        for harm in [Float.nan, .infinity, -.infinity] {
            for key in [0, 20, 21, 69, 70, 89] {
                let outputs = try requireInt8Bits(sets, shape) { problem in
                    problem.keys[key * 7 + 3] = harm
                    problem.values[key * 17 + 5] = harm
                }
                let isNaN = (0..<20).map { row in outputs.output.rows(row, 1, 17).contains(where: \.isNaN) }
                #expect(isNaN == (0..<20).map { (21 + $0...70 + $0).contains(key) }, "\(harm) in key \(key)")
            }
        }
    }

    /// The largest integers of both signs, whose sums come close to 2^31, and those whose lower byte is 0 or 255.
    @Test(arguments: [Float(32767), -32767, 32512, -32513, 255, -1, -256])
    func extremes(integer: Float) throws {
        let shape = AttentionCase(queries: 16, keys: 66, headDimension: 512, valueDimension: 16) {
            ($0.scale, $0.sink) = (.one, .none)
        }
        for sign in [Float(1), -1] {
            try requireInt8Bits(sets, shape) { problem in
                // Of the largest magnitude 2^14 and more, a query's own numbers are its integers; the scale leaves them so.
                problem.scale = 1 / 1.4426950408889634
                problem.queries = problem.queries.indices.map { $0 % 512 == 0 ? 32767 : integer }
                problem.keys = problem.keys.indices.map { $0 / 512 % 2 == 0 ? sign * 1e-9 : -sign * 1e-9 }
                problem.values = problem.values.indices.map { $0 % 3 == 0 ? sign : -sign }
            }
        }
    }

    @Test("random cases")
    func randomCases() throws {
        var generator = SeededGenerator(seed: 18)
        for _ in 0..<60 {
            var shape = AttentionCase.random(using: &generator)
            shape.family = generator.element(of: InputFamily.allCases)
            shape.queries = generator.next(in: 13...70)
            if generator.chance(1, outOf: 2) { shape.headDimension = generator.next(in: 50...140) }
            let rule = generator.element(of: Int8Tests.rules)
            try requireInt8Bits(sets, shape) { rule(&$0) }
        }
    }

    /// Rows of any place in a call, blocks packed on demand, the workspace's end at an unmapped page, and both paths over the
    /// blocks of the other set.
    @Test(arguments: [
        DirectCall(rowsPerCall: 13), DirectCall(rowsPerCall: 31, packing: sets[1]), DirectCall(unpacked: true),
    ])
    func calls(call: DirectCall) throws {
        for dimension in [1, 16, 33, 64, 65] {
            let shape = AttentionCase(queries: 150, keys: 130, headDimension: dimension, valueDimension: dimension) {
                $0.geometry = .window(70)
            }
            try requireInt8Bits(sets, shape, call)
        }
        let whole = AttentionCase(queries: Int(QATTN_QUERY_BLOCK), keys: 70, headDimension: 64)
        try requireInt8Bits(sets, whole) { ($0.normaliser, $0.constant) = (.clippedSoftmax(zeta: 1.0625), -0.03125) }
    }

    /// Without this the emulation could pass every test by never being used.
    @Test(arguments: [(4, false), (6, false), (7, true), (30, true)])
    func tilesAreUsedAndGivenBack(queries: Int, areUsed: Bool) throws {
        let before = qattn_emulated_products()
        try requireInt8Bits([.emulatedTiles], AttentionCase(queries: queries, keys: 65, headDimension: 33))
        #expect((qattn_emulated_products() > before) == areUsed)
        #expect(!qattn_emulated_tiles_are_held())
    }
}

extension AttentionCase {
    fileprivate static var masked: [AttentionCase] {
        func cases(_ change: (inout AttentionCase) -> Void) -> [AttentionCase] {
            [(16, 130), (35, 70), (20, 1100)].map { queries, keys in
                AttentionCase(queries: queries, keys: keys, headDimension: 3, valueDimension: 5) {
                    ($0.sink, $0.family) = (.amid, .wide)
                    change(&$0)
                }
            }
        }
        return AllowedChoice.allCases.flatMap { allowed in
            cases { ($0.allowed, $0.geometry) = (allowed, .window(40)) } + cases { $0.allowed = allowed }
        }
            + BiasChoice.allCases.flatMap { bias in cases { $0.bias = bias } }
            + LengthChoice.allCases.flatMap { lengths in cases { $0.keyLengths = lengths } }
    }
}
