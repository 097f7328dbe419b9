// SPDX-License-Identifier: Apache-2.0
// PrepareTests.swift - prepared rows of every kernel set against the reference, bit for bit.

import AttentionReference
import CKernels
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct PrepareTests {
    /// Pairs around lanes, channels behind them; every storage, side and way of preparing.
    private static let cases: [PreparedCase] = [4, 16, 30, 34, 64, 130].flatMap { dimension in
        zip(0..., PositionCase.all(headDimension: dimension)).flatMap { index, positions in
            ReferencePositions.Side.allCases.map { side in
                let storages = AttentionCase.StorageChoice.available
                return PreparedCase(positions, dimension, side, storages[(index + dimension / 2) % storages.count])
            }
        }
    }

    /// One channel; an odd number of which all but one are turned; the most there are.
    private static let dimensions: [PreparedCase] = [
        PreparedCase(PositionCase("one", nil, norm: .rms()), 1, .queries, .float32),
        PreparedCase(PositionCase("odd", RotaryEmbedding(dimensions: 34)), 35, .queries, .bfloat16),
        PreparedCase(PositionCase("odd, layer", RotaryEmbedding(dimensions: 34), norm: .layer()), 35, .keys, .float32),
        PreparedCase(PositionCase("large", RotaryEmbedding(pairing: .interleaved)), 1024, .keys, .float32),
        PreparedCase(PositionCase("large, rms", RotaryEmbedding(), norm: .rms()), 1023, .keys, .float32, pairs: 511),
    ]

    @Test("gradients of prepared rows", arguments: KernelTable.available)
    func gradients(kernels: KernelTable) throws {
        for (index, prepared) in (Self.cases + Self.dimensions).enumerated() {
            try prepared.requireReferenceGradients(kernels, index)
        }
    }

    /// Rows of several blocks of 64, whose sums of gains and biases are added block by block.
    @Test("gains and biases of many rows", arguments: KernelTable.available)
    func manyRows(kernels: KernelTable) throws {
        let (gain, bias) = ((1...20).map { Float($0) / 8 }, (1...20).map { 3 - Float($0) / 4 })
        let norms = [QueryKeyNorm.rms(keyGain: gain), .layer(keyGain: gain, keyBias: bias)]
        for (index, norm) in norms.enumerated() {
            for count in [63, 64, 65, 150] {
                try PreparedCase(PositionCase("norm", nil, norm: norm), 20, .keys, .float32, count: count)
                    .requireReferenceGradients(kernels, index)
            }
        }
    }

    @Test("prepared rows", arguments: KernelTable.available)
    func rows(kernels: KernelTable) throws {
        for prepared in Self.cases { try prepared.requireReferenceBits(kernels) }
    }

    @Test("prepared rows of odd and large dimensions", arguments: KernelTable.available)
    func dimensions(kernels: KernelTable) throws {
        for prepared in Self.dimensions { try prepared.requireReferenceBits(kernels) }
    }
}
