// SPDX-License-Identifier: Apache-2.0
// Int8Tests.swift - keys and values packed in int8: every kernel set, and the one with emulated tile instructions, against the
// reference, bit for bit. Int8BandTests has the sizes of tiles.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

private let sets = KernelTable.available + KernelTable.emulated

@Suite struct Int8Tests {
    @Test("sizes", arguments: sets)
    func sizes(kernels: KernelTable) throws {
        try requireBits(
            kernels,
            Sizes.queries.map { AttentionCase(queries: $0, keys: 67, headDimension: 8, valueDimension: 24) }
                + (Sizes.keys + [2049]).map { AttentionCase(queries: 4, keys: $0, headDimension: 5, valueDimension: 3) }
        )
    }

    /// Odd ones, beside panels, and of more than the 512 channels of an integer sum.
    @Test("dimensions", arguments: sets)
    func dimensions(kernels: KernelTable) throws {
        try requireBits(
            kernels,
            [1, 2, 3, 15, 16, 17, 33, 80, 127, 256, 512, 600, 1031].flatMap { dimension in
                (1...6).map { AttentionCase(queries: $0, keys: 19, headDimension: dimension, valueDimension: 7) }
            }
                + [1, 15, 16, 17, 64, 65, 80, 81, 256].map {
                    AttentionCase(queries: 4, keys: 35, headDimension: 3, valueDimension: $0)
                })
    }

    /// NaN and infinity in queries, keys and values among them.
    @Test("input families and scales", arguments: sets)
    func families(kernels: KernelTable) throws {
        try requireBits(
            kernels,
            InputFamily.allCases.flatMap { family in
                [(4, 1030), (7, 150)].map { queries, keys in
                    AttentionCase(queries: queries, keys: keys, headDimension: 6, valueDimension: 18) {
                        ($0.family, $0.sink, $0.geometry) = (family, .amid, .causal)
                    }
                }
                    + AttentionCase.ScaleChoice.allCases.map { scale in
                        AttentionCase(queries: 3, keys: 70, headDimension: 6) {
                            ($0.family, $0.sink, $0.scale) = (family, .none, scale)
                        }
                    }
            })
    }

    @Test("masks and biases", arguments: sets)
    func masks(kernels: KernelTable) throws {
        func cases(_ change: @escaping (inout AttentionCase) -> Void) -> [AttentionCase] {
            [(4, 130), (9, 70), (2, 1100)].map { queries, keys in
                AttentionCase(queries: queries, keys: keys, headDimension: 3, valueDimension: 5) {
                    ($0.sink, $0.family) = (.amid, .wide)
                    change(&$0)
                }
            }
        }
        try requireBits(
            kernels,
            ForwardCases.geometries.filter { $0.keys < 200 }
                + AttentionCase.AllowedChoice.allCases.flatMap { allowed in
                    cases { ($0.allowed, $0.geometry) = (allowed, .window(40)) } + cases { $0.allowed = allowed }
                }
                + AttentionCase.BiasChoice.allCases.flatMap { bias in cases { $0.bias = bias } }
                + AttentionCase.LengthChoice.allCases.flatMap { lengths in cases { $0.keyLengths = lengths } })
    }

    static let rules: [@Sendable (inout HeadProblem) -> Void] = [
        { $0.softcap = 5 }, { $0.alibiSlope = 0.0625 },
        { problem in problem.rowFactors = (0..<problem.queryCount).map { 0.5 + Double($0 % 7) / 4 } },
        { ($0.normaliser, $0.constant) = (.clippedSoftmax(zeta: 1.0625), -0.03125) },
        { ($0.normaliser, $0.constant) = (.sigmoid, -3) }, { ($0.normaliser, $0.constant) = (.softpick, 0x1p-20) },
        { ($0.normaliser, $0.constant) = (.reluSquared, 100) },
        { ($0.normaliser, $0.constant) = (.normalisedReluSquared, 1) },
    ]

    /// Rules for scores, and normalisers, alone and with others.
    @Test("rules for scores", arguments: sets)
    func rules(kernels: KernelTable) throws {
        for (index, rule) in Self.rules.enumerated() {
            let other = Self.rules[(index + 5) % 8]
            let families: [InputFamily] = [.unitNormal, .wide, .notANumber, .infinity, .minusInfinity]
            for (number, family) in families.enumerated() {
                let shape = AttentionCase(
                    queries: 5, keys: number == 0 ? 1090 : 190, headDimension: 5, valueDimension: 18
                ) {
                    ($0.geometry, $0.allowed, $0.sink, $0.family) = (.causal, .blocksWithout, .amid, family)
                }
                try requireBits(kernels, shape) {
                    rule(&$0)
                    if number % 2 == 1 { other(&$0) }
                }
            }
        }
    }

    @Test("random cases", arguments: sets)
    func randomCases(kernels: KernelTable) throws {
        var generator = SeededGenerator(seed: 8)
        for _ in 0..<60 {
            var shape = AttentionCase.random(using: &generator)
            shape.family = generator.element(of: InputFamily.allCases)
            let rule = generator.element(of: Self.rules)
            try requireBits(kernels, shape, rule)
        }
    }

    /// Only the first keys are in memory; what the reference reads behind them is NaN, as is what is not packed.
    @Test("keys behind the length are not touched", arguments: sets)
    func unwrittenKeys(kernels: KernelTable) throws {
        for length in [0, 1, 16, 63, 64, 65, 130, 1025] {
            for side in GuardedBuffer<UInt8>.Side.allCases {
                let shape = AttentionCase(queries: 4, keys: 1100, headDimension: 5, valueDimension: 9) {
                    ($0.allowed, $0.bias) = (.random, .normal)
                }
                try requireBits(kernels, shape, DirectCall(guardSide: side)) { problem in
                    problem.keyLength = length
                    for index in length * 5..<problem.keys.count { problem.keys[index] = .nan }
                    for index in length * 9..<problem.values.count { problem.values[index] = .nan }
                }
            }
        }
    }

    /// One row a call is a decoder's step, 132 a prefill; any set's packing serves any other.
    @Test("rows per call, inputs, packing by another set", arguments: sets, sets)
    func calls(kernels: KernelTable, packing: KernelTable) throws {
        let shape = AttentionCase(queries: 13, keys: 150, headDimension: 33, valueDimension: 35) {
            $0.geometry = .window(130)
        }
        let calls: [(rows: Int, storage: AttentionCase.StorageChoice)] = [
            (1, .float32), (2, .bfloat16), (4, .float32), (5, .bfloat16), (132, .float32),
        ]
        for (rows, storage) in calls {
            var stored = shape
            stored.storage = storage
            try requireBits(
                kernels, stored, DirectCall(padding: 3, storage: storage, rowsPerCall: rows, packing: packing))
        }
    }

    private func requireBits(_ kernels: KernelTable, _ shapes: [AttentionCase]) throws {
        for shape in shapes { try requireBits(kernels, shape) }
    }

    private func requireBits(
        _ kernels: KernelTable, _ shape: AttentionCase, _ call: DirectCall = DirectCall(),
        _ change: (inout HeadProblem) -> Void = { _ in }
    ) throws {
        try requireInt8Bits([kernels], shape, call, change)
    }

    private func requireBits(
        _ kernels: KernelTable, _ shape: AttentionCase, _ change: (inout HeadProblem) -> Void
    ) throws {
        try requireBits(kernels, shape, DirectCall(), change)
    }
}

/// Throws unless each of the sets gives the reference's bits for the first and the last head of a case whose keys and values are
/// packed in int8, with a change or without. What the reference gives for the last of them.
@discardableResult
func requireInt8Bits(
    _ sets: [KernelTable], _ shape: AttentionCase, _ call: DirectCall = DirectCall(),
    _ change: (inout HeadProblem) -> Void = { _ in }
) throws -> AttentionOutputs {
    var expected = AttentionOutputs(output: [], logSumExp: [], sinkShare: [])
    guard shape.batch * shape.queryHeads > 0 else { return expected }
    let inputs = shape.inputs
    for (item, head) in Set([0, shape.batch - 1]).map({ ($0, $0 == 0 ? 0 : shape.queryHeads - 1) }) {
        var problem = shape.headProblem(inputs, item: item, head: head)
        problem.packedStorage = .int8
        change(&problem)
        expected = problem.reference
        for kernels in sets {
            try requireSameBits(
                call.run(problem, kernels), expected, valueDimension: shape.valueDimension,
                "\(kernels), \(call), head \(head): \(shape)")
        }
    }
    return expected
}
