// SPDX-License-Identifier: Apache-2.0
// GuardTests.swift - the C interface with every tensor at the edge of its memory, rows apart, and any storage type.

import AttentionReference
import CKernels
import TestSupport
import Testing

@Suite struct GuardTests {
    static let shapes: [AttentionCase] = [
        AttentionCase(queries: 1, keys: 1, headDimension: 1),
        AttentionCase(queries: 7, keys: 17, headDimension: 15, valueDimension: 17),
        AttentionCase(queries: 5, keys: 63, headDimension: 16, valueDimension: 15) { $0.geometry = .causal },
        AttentionCase(queries: 6, keys: 64, headDimension: 3, valueDimension: 33) { $0.allowed = .random },
        AttentionCase(queries: 13, keys: 65, headDimension: 33, valueDimension: 1) { $0.bias = .excluding },
        AttentionCase(queries: 97, keys: 70, headDimension: 8, valueDimension: 64) {
            ($0.allowed, $0.bias, $0.geometry) = (.rowsWithout, .normal, .window(20))
        },
        AttentionCase(queries: 3, keys: 1030, headDimension: 17, valueDimension: 47) {
            ($0.allowed, $0.bias, $0.sink) = (.blocksWithout, .excluding, .amid)
        },
        AttentionCase(queries: 1, keys: 70, headDimension: 20, valueDimension: 33),
        AttentionCase(queries: 4, keys: 1029, headDimension: 132, valueDimension: 48) { $0.allowed = .random },
        AttentionCase(queries: 4, keys: 1029, headDimension: 86, valueDimension: 112),
        AttentionCase(queries: 20, keys: 200, headDimension: 20, valueDimension: 70),
        AttentionCase(queries: 33, keys: 20, headDimension: 80, valueDimension: 96) { $0.geometry = .causal },
    ]

    @Test("tensors end and start at unmapped pages", arguments: KernelTable.available, shapes)
    func guardPages(kernels: KernelTable, shape: AttentionCase) throws {
        let problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        let expected = problem.reference
        for call in [
            DirectCall(), DirectCall(guardSide: .before), DirectCall(padding: 5),
            DirectCall(guardSide: .before, padding: 1, keyStride: 3), DirectCall(keyStride: 2, rowsPerCall: 7),
            DirectCall(unpacked: true), DirectCall(guardSide: .before, unpacked: true, fromMemory: true),
            DirectCall(padding: 5, rowsPerCall: 7, unpacked: true), DirectCall(unpacked: true, fromMemory: true),
            DirectCall(rowsPerCall: 1, unpacked: true, fromMemory: true, inQuarters: true),
            DirectCall(padding: 3, unpacked: true, fromMemory: true, inQuarters: true),
            DirectCall(
                guardSide: .before, padding: 5, rowsPerCall: 4, unpacked: true, fromMemory: true, inQuarters: true),
            DirectCall(fromMemory: true), DirectCall(guardSide: .before, rowsPerCall: 2, fromMemory: true),
            DirectCall(padding: 5, rowsPerCall: 4, fromMemory: true),
            DirectCall(guardSide: .before, rowsPerCall: 8, fromMemory: true),
            DirectCall(rowsPerCall: 17, fromMemory: true), DirectCall(inQuarters: true),
            DirectCall(fromMemory: true, inQuarters: true),
            DirectCall(guardSide: .before, rowsPerCall: 2, fromMemory: true, inQuarters: true),
            DirectCall(padding: 5, rowsPerCall: 5, fromMemory: true, inQuarters: true),
            DirectCall(guardSide: .before, rowsPerCall: 8, fromMemory: true, inQuarters: true),
            DirectCall(rowsPerCall: 17, fromMemory: true, inQuarters: true),
        ] {
            let actual = try call.run(problem, kernels)
            try requireSameBits(actual, expected, valueDimension: shape.valueDimension, "\(kernels) \(shape) \(call)")
        }
    }

    /// Blocks of 16 bit have the bits of float32, by any number of rows that stream from memory, however it is asked for.
    @Test(
        "few rows over blocks of 16 bit", arguments: KernelTable.available,
        [AttentionCase.StorageChoice.float16, .bfloat16])
    func streamedHalves(kernels: KernelTable, storage: AttentionCase.StorageChoice) throws {
        let shape = AttentionCase(queries: 13, keys: 200, headDimension: 40, valueDimension: 70) {
            $0.storage = storage
        }
        let problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        for rows in 1...13 {
            for (fromMemory, inQuarters) in [(false, false), (true, false), (false, true), (true, true)] {
                let call = DirectCall(
                    storage: storage, rowsPerCall: rows, fromMemory: fromMemory, inQuarters: inQuarters,
                    packsAsStored: true)
                let actual = try call.run(problem, kernels)
                try requireSameBits(actual, problem.reference, valueDimension: 70, "\(kernels) \(shape) \(call)")
            }
        }
    }

    /// Products of bfloat16 of rows that are multiplied where they stand, at any distance from each other, or packed, where
    /// they are no factors and where a block is not whole.
    @Test(
        "rows of bfloat16 end and start at unmapped pages", arguments: KernelTable.available + KernelTable.emulated,
        [(300, InputFamily.unitNormal), (130, .subnormal), (67, .unitNormal)])
    func rowsOfBFloat16(kernels: KernelTable, inputs: (keys: Int, family: InputFamily)) throws {
        let shape = AttentionCase(queries: 13, keys: inputs.keys, headDimension: 112, valueDimension: 48) {
            ($0.storage, $0.products, $0.family) = (.bfloat16, .bfloat16, inputs.family)
        }
        let problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        for (rows, padding) in [(1, 0), (2, 7), (3, 0), (4, 1), (5, 0), (6, 32), (7, 0)] {
            for (side, fromMemory) in [(GuardedBuffer<UInt8>.Side.after, false), (.before, true), (.after, true)] {
                let call = DirectCall(
                    guardSide: side, padding: padding, storage: .bfloat16, rowsPerCall: rows, unpacked: true,
                    fromMemory: fromMemory, inQuarters: fromMemory)
                let actual = try call.run(problem, kernels)
                try requireSameBits(actual, problem.reference, valueDimension: 48, "\(kernels) \(shape) \(call)")
            }
        }
    }

    /// As many rows as a call takes, of the normaliser that needs all of the workspace: it ends at an unmapped page.
    @Test(
        "the workspace is as large as it is said to be", arguments: KernelTable.available + KernelTable.emulated,
        [1, 16, 33, 257])
    func wholeWorkspace(kernels: KernelTable, dimension: Int) throws {
        for products in ReferenceProducts.all {
            let shape = AttentionCase(
                queries: Int(QATTN_QUERY_BLOCK), keys: 70, headDimension: dimension, valueDimension: dimension
            ) { ($0.normaliser, $0.products) = (.clipped, products) }
            let problem = shape.headProblem(shape.inputs, item: 0, head: 0)
            let actual = try DirectCall().run(problem, kernels)
            try requireSameBits(actual, problem.reference, valueDimension: dimension, "\(kernels) \(shape)")
        }
    }

    @Test("lse and sink share are not written unasked", arguments: KernelTable.available, shapes)
    func optionalSums(kernels: KernelTable, shape: AttentionCase) throws {
        let problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        let actual = try DirectCall(wantsSums: false).run(problem, kernels)
        try requireSameBits("out", actual.output, problem.reference.output, "\(kernels) \(shape)")
        #expect(actual.logSumExp.allSatisfy(\.isNaN) && actual.sinkShare.allSatisfy(\.isNaN))
    }
}
