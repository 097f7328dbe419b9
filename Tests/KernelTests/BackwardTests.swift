// SPDX-License-Identifier: Apache-2.0
// BackwardTests.swift - the gradients of every kernel set through the C interface: those of the reference, bit for bit,
// at sizes around every boundary, with every tensor at the edge of its memory, however the work is cut into calls.

import AttentionReference
import CKernels
import SeededInputs
import TestSupport
import Testing

@Suite struct BackwardTests {
    /// Throws unless every way gives the reference's bits. Dbias of a head's own bias is that of its scores.
    private func requireReference(
        _ shape: AttentionCase, _ kernels: KernelTable, _ ways: [DirectBackward] = [DirectBackward()],
        change: (inout HeadProblem) -> Void = { _ in }
    ) throws {
        var problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        change(&problem)
        for way in ways {
            var generator = SeededGenerator(seed: 14)
            let rows = way.heads * problem.queryCount
            let storage = way.call.storage
            var stored = problem
            for tensor in [\HeadProblem.queries, \.keys, \.values] {
                stored[keyPath: tensor] = stored[keyPath: tensor].map(storage.rounded)
            }
            let outputGradient = generator.normals(rows * problem.valueDimension).map(storage.rounded)
            let hasSum = problem.normaliser.kernelNormaliser.hasSink
            let loss = ReferenceLoss(
                outputGradient: outputGradient, logSumExpGradient: hasSum ? generator.normals(rows) : nil)
            let queries = [[Float]](repeating: stored.queries, count: way.heads).flatMap { $0 }
            let expected = stored.referenceProblem(heads: way.heads).backward(
                queries: queries, keys: stored.keys, values: stored.values, loss,
                storedOutput: way.call.outStorage.rounded)
            let actual = try way.run(stored, loss, kernels)
            let context = "\(kernels), \(shape), \(way)"
            try requireSameBits("dq", actual.queries, expected.queries, context)
            try requireSameBits("dk", actual.keys, expected.keys, context)
            try requireSameBits("dv", actual.values, expected.values, context)
            if way.heads == 1 { try requireSameBits("dbias", actual.bias, expected.bias, context) }
            try requireSameBits("dslope", actual.slopes, expected.slopes, context)
            try requireSameBits("dlogscale", actual.logScales, expected.logScales, context)
        }
    }

    private static let lengths = [1, 5, 6, 7, 63, 64, 65, 191, 192, 193]
    private static let widths = [1, 3, 16, 20, 48, 64, 65, 80, 128, 130]

    @Test("lengths", arguments: KernelTable.available)
    func lengths(kernels: KernelTable) throws {
        for length in Self.lengths {
            try requireReference(
                AttentionCase(queries: length, keys: 67, headDimension: 5, valueDimension: 17), kernels)
            try requireReference(
                AttentionCase(queries: 13, keys: length, headDimension: 3) { $0.geometry = .causal }, kernels)
            try requireReference(
                AttentionCase(queries: length, keys: 193, headDimension: 4) { $0.geometry = .window(20) }, kernels,
                [DirectBackward(heads: 2)])
        }
    }

    @Test("dimensions", arguments: KernelTable.available)
    func dimensions(kernels: KernelTable) throws {
        for width in Self.widths {
            for other in [width, 16, 37] {
                let shape = AttentionCase(queries: 11, keys: 66, headDimension: width, valueDimension: other) {
                    $0.geometry = .causal
                }
                try requireReference(shape, kernels)
            }
            try requireReference(AttentionCase(queries: 7, keys: 9, headDimension: 5, valueDimension: width), kernels)
        }
        try requireReference(AttentionCase(queries: 3, keys: 5, headDimension: 1024, valueDimension: 1023), kernels)
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

    @Test("tensors end and start at unmapped pages", arguments: KernelTable.available, masked)
    func guardPages(kernels: KernelTable, shape: AttentionCase) throws {
        let storages = AttentionCase.StorageChoice.available.map {
            DirectBackward(call: DirectCall(storage: $0, outStorage: $0))
        }
        try requireReference(
            shape, kernels,
            storages + [
                DirectBackward(call: DirectCall(guardSide: .before)),
                DirectBackward(call: DirectCall(padding: 5, storage: .bfloat16)),
                DirectBackward(call: DirectCall(guardSide: .before, padding: 1, keyStride: 3)),
            ])
    }

    /// The largest panel and group, in place and not, with a workspace that ends at an unmapped page.
    @Test("the workspace is as large as it is said to be", arguments: KernelTable.available, [16, 33, 192])
    func wholeWorkspace(kernels: KernelTable, dimension: Int) throws {
        try requireReference(
            AttentionCase(queries: 192, keys: 513, headDimension: dimension) { $0.geometry = .window(9) }, kernels)
    }

    @Test("the bits do not depend on how rows and keys are cut into calls", arguments: KernelTable.available)
    func cuts(kernels: KernelTable) throws {
        let shape = AttentionCase(queries: 270, keys: 200, headDimension: 4, valueDimension: 6) {
            ($0.geometry, $0.allowed) = (.window(90), .random)
        }
        try requireReference(
            shape, kernels,
            [(nil, nil), (64, 64), (192, nil), (nil, 128), (128, 64)].map {
                DirectBackward(heads: 2, rowsPerCall: $0.0, keysPerCall: $0.1)
            })
    }

    private static let normalisers: [(ReferenceNormaliser, Float)] = [
        (.softmax, 0), (.clippedSoftmax(zeta: 1.0625), -0.03125), (.sigmoid, -3), (.softpick, 0x1p-20),
        (.reluSquared, 100), (.normalisedReluSquared, 1),
    ]

    @Test("normalisers and rules of scores", arguments: KernelTable.available)
    func scoreRules(kernels: KernelTable) throws {
        for (normaliser, constant) in Self.normalisers {
            for option in 0..<3 {
                let shape = AttentionCase(queries: 67, keys: 130, headDimension: 6, valueDimension: 5) {
                    ($0.geometry, $0.sink, $0.bias) = (.causal, .amid, option == 2 ? .excluding : .none)
                }
                try requireReference(shape, kernels) { problem in
                    (problem.normaliser, problem.constant) = (normaliser, constant)
                    guard option > 0 else { return }
                    (problem.softcap, problem.alibiSlope) = (3, 0.0625)
                    problem.rowFactors = (0..<problem.queryCount).map { 0.5 + Double($0 % 7) / 4 }
                }
            }
        }
    }

    /// Only the sums over what is seen may meet them: rows and keys that are hidden hold NaN and infinities.
    @Test("what is hidden does no harm", arguments: KernelTable.available, [Float.nan, .infinity])
    func hidden(kernels: KernelTable, harm: Float) throws {
        let shape = AttentionCase(queries: 70, keys: 130, headDimension: 20, valueDimension: 5) {
            ($0.allowed, $0.geometry) = (.random, .causal)
        }
        try requireReference(shape, kernels) { problem in
            for query in 0..<problem.queryCount { problem.allowed![query * problem.keyCount + 77] = false }
            for key in 0..<problem.keyCount { problem.allowed![9 * problem.keyCount + key] = false }
            problem.keys[77 * problem.headDimension + 3] = harm
            problem.values[77 * problem.valueDimension] = harm
            problem.queries[9 * problem.headDimension + 19] = harm
        }
    }
}
