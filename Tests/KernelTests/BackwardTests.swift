// SPDX-License-Identifier: Apache-2.0
// BackwardTests.swift - the gradients of every kernel set through the C interface: those of the reference, bit for bit,
// at sizes around every boundary, with every tensor at the edge of its memory, however the work is cut into calls.

import AttentionReference
import TestSupport
import Testing

@Suite struct BackwardTests {
    private static let lengths = [1, 5, 6, 7, 63, 64, 65, 191, 192, 193]
    private static let widths = [1, 3, 16, 20, 48, 64, 65, 80, 128, 130]
    /// Around tiles of 16 rows and two of them, and around segments of 32, which products of bfloat16 alone have.
    private static let lengthsOfTiles = [15, 16, 17, 31, 32, 33, 47, 48, 49, 127, 128, 129]
    private static let widthsOfSegments = [31, 32, 33, 34, 63, 96, 127, 129]

    @Test("lengths", arguments: ReferenceProducts.all)
    func lengths(products: ReferenceProducts) throws {
        for length in Self.lengths + (products == .bfloat16 ? Self.lengthsOfTiles : []) {
            try requireReferenceGradients(
                AttentionCase(queries: length, keys: 67, headDimension: 5, valueDimension: 17), products)
            try requireReferenceGradients(
                AttentionCase(queries: 13, keys: length, headDimension: 3) { $0.geometry = .causal }, products)
            try requireReferenceGradients(
                AttentionCase(queries: length, keys: 193, headDimension: 4) { $0.geometry = .window(20) }, products,
                [DirectBackward(heads: 2)])
        }
    }

    @Test("dimensions", arguments: ReferenceProducts.all)
    func dimensions(products: ReferenceProducts) throws {
        for width in Self.widths + (products == .bfloat16 ? Self.widthsOfSegments : []) {
            for other in [width, 16, 37] {
                let shape = AttentionCase(queries: 11, keys: 66, headDimension: width, valueDimension: other) {
                    $0.geometry = .causal
                }
                try requireReferenceGradients(shape, products)
            }
            try requireReferenceGradients(
                AttentionCase(queries: 7, keys: 9, headDimension: 5, valueDimension: width), products)
        }
        try requireReferenceGradients(
            AttentionCase(queries: 3, keys: 5, headDimension: 1024, valueDimension: 1023), products)
    }

    private static let masked: [AttentionCase] = [
        AttentionCase(queries: 1, keys: 1, headDimension: 1),
        AttentionCase(queries: 70, keys: 63, headDimension: 16, valueDimension: 15) { $0.geometry = .causal },
        AttentionCase(queries: 6, keys: 64, headDimension: 3, valueDimension: 33) { $0.allowed = .random },
        AttentionCase(queries: 13, keys: 65, headDimension: 33, valueDimension: 1) { $0.bias = .excluding },
        AttentionCase(queries: 97, keys: 150, headDimension: 8, valueDimension: 64) {
            ($0.allowed, $0.bias, $0.geometry, $0.sink) = (.rowsWithout, .normal, .window(20), .amid)
        },
    ]

    @Test("tensors end and start at unmapped pages", arguments: ReferenceProducts.all, masked)
    func guardPages(products: ReferenceProducts, shape: AttentionCase) throws {
        let storages = AttentionCase.StorageChoice.available.map {
            DirectBackward(call: DirectCall(storage: $0, outStorage: $0))
        }
        try requireReferenceGradients(
            shape, products,
            storages + [
                DirectBackward(call: DirectCall(guardSide: .before)),
                DirectBackward(call: DirectCall(padding: 5, storage: .bfloat16)),
                DirectBackward(call: DirectCall(guardSide: .before, padding: 1, keyStride: 3)),
            ])
    }

    /// The largest panel and group, in place and not, with a workspace that ends at an unmapped page. At 129 channels
    /// products of bfloat16 need the most of it, at the others those of Float.
    @Test("the workspace is as large as it is said to be", arguments: ReferenceProducts.all, [16, 33, 129, 192])
    func wholeWorkspace(products: ReferenceProducts, dimension: Int) throws {
        try requireReferenceGradients(
            AttentionCase(queries: 192, keys: 513, headDimension: dimension) { $0.geometry = .window(9) }, products)
    }

    @Test("the bits do not depend on how rows and keys are cut into calls", arguments: ReferenceProducts.all)
    func cuts(products: ReferenceProducts) throws {
        let shape = AttentionCase(queries: 270, keys: 200, headDimension: 4, valueDimension: 6) {
            ($0.geometry, $0.allowed) = (.window(90), .random)
        }
        try requireReferenceGradients(
            shape, products,
            [(nil, nil), (64, 64), (192, nil), (nil, 128), (128, 64)].map {
                DirectBackward(heads: 2, rowsPerCall: $0.0, keysPerCall: $0.1)
            })
    }

    /// More keys than are at work at a time, eight blocks: sums of queries go on from one group to the next.
    @Test("groups of blocks", arguments: ReferenceProducts.all)
    func groups(products: ReferenceProducts) throws {
        for geometry in [AttentionCase.Geometry.none, .window(400)] {
            let shape = AttentionCase(queries: 130, keys: 1090, headDimension: 3, valueDimension: 2) {
                $0.geometry = geometry
            }
            try requireReferenceGradients(
                shape, products, [DirectBackward(heads: 2), DirectBackward(keysPerCall: 576)])
        }
    }

    private static let normalisers: [(ReferenceNormaliser, Float)] = [
        (.softmax, 0), (.clippedSoftmax(zeta: 1.0625), -0.03125), (.sigmoid, -3), (.softpick, 0x1p-20),
        (.reluSquared, 100), (.normalisedReluSquared, 1),
    ]

    @Test("normalisers and rules of scores", arguments: ReferenceProducts.all)
    func scoreRules(products: ReferenceProducts) throws {
        for (normaliser, constant) in Self.normalisers {
            for option in 0..<3 {
                let shape = AttentionCase(queries: 67, keys: 130, headDimension: 6, valueDimension: 5) {
                    ($0.geometry, $0.sink, $0.bias) = (.causal, .amid, option == 2 ? .excluding : .none)
                }
                try requireReferenceGradients(shape, products) { problem, _ in
                    (problem.normaliser, problem.constant) = (normaliser, constant)
                    guard option > 0 else { return }
                    (problem.softcap, problem.alibiSlope) = (3, 0.0625)
                    problem.rowFactors = (0..<problem.queryCount).map { 0.5 + Double($0 % 7) / 4 }
                }
            }
        }
    }

    /// Only the sums over what is seen may meet them: rows and keys that are hidden hold NaN and infinities.
    @Test("what is hidden does no harm", arguments: ReferenceProducts.all, [Float.nan, .infinity])
    func hidden(products: ReferenceProducts, harm: Float) throws {
        let shape = AttentionCase(queries: 70, keys: 130, headDimension: 20, valueDimension: 5) {
            ($0.allowed, $0.geometry) = (.random, .causal)
        }
        try requireReferenceGradients(shape, products) { problem, _ in
            for query in 0..<problem.queryCount { problem.allowed![query * problem.keyCount + 77] = false }
            for key in 0..<problem.keyCount { problem.allowed![9 * problem.keyCount + key] = false }
            problem.keys[77 * problem.headDimension + 3] = harm
            problem.values[77 * problem.valueDimension] = harm
            problem.queries[9 * problem.headDimension + 19] = harm
        }
    }
}
