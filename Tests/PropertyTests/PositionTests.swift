// SPDX-License-Identifier: Apache-2.0
// PositionTests.swift - attention with positions and norms, through the public API: the reference's bits, and what is true
// of each encoding.

import AttentionReference
import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct PositionTests {
    // MARK: - Bits

    /// Every feature, with what else may be asked for: 140 keys are two blocks and a part, 101 queries two calls.
    private static let shapes: [AttentionCase] = [
        AttentionCase(queries: 5, keys: 140, headDimension: 8, valueDimension: 6) {
            ($0.batch, $0.keyValueHeads, $0.group, $0.geometry) = (2, 2, 2, .causal)
        },
        AttentionCase(queries: 13, keys: 9, headDimension: 12) {
            ($0.sink, $0.storage, $0.layout) = (.amid, .bfloat16, .sequenceFirst)
        },
        AttentionCase(queries: 101, keys: 70, headDimension: 4) { ($0.geometry, $0.bias) = (.window(30), .normal) },
    ]

    /// What the reference gives, for the features and shapes.
    private static let solved: [(shape: AttentionCase, positions: PositionCase, solved: Solved)] =
        shapes.flatMap { shape in
            let inputs = shape.inputs
            return PositionCase.all(headDimension: shape.headDimension).map { positions in
                let expected = shape.reference(shape.prepared(inputs, positions))
                return (shape, positions, Solved(inputs: inputs, expected: expected))
            }
        }

    @Test("every encoding and norm equals the reference", arguments: kernelSets, 0..<3)
    func equalsTheReference(kernels: KernelSet, number: Int) throws {
        for (shape, positions, solved) in Self.solved where shape == Self.shapes[number] {
            for threads in [1, 2] {
                try requireSameBits(
                    shape.run(solved.inputs, shape.attention(solved.inputs, positions, kernels, threads: threads)),
                    solved.expected, valueDimension: shape.valueDimension,
                    "\(kernels), \(threads) threads: \(positions): \(shape)")
            }
        }
    }
}

extension AttentionCase {
    /// The case with positions and norms. Storage is of the inputs: queries and keys are prepared from what they hold.
    func attention(
        _ inputs: AttentionInputs, _ positions: PositionCase, _ kernels: KernelSet, threads: Int
    ) throws -> Attention {
        let plain = try attention(inputs, kernels: kernels, threads: threads)
        return try Attention(
            plain.shape, sink: .logits(inputs.sinks), mask: plain.mask, scale: plain.scale, bias: plain.bias,
            positions: positions.positions, queryKeyNorm: positions.norm, layout: plain.layout, threads: threads,
            kernels: kernels)
    }

    /// The inputs with queries and keys prepared by the reference.
    func prepared(_ inputs: AttentionInputs, _ positions: PositionCase) -> AttentionInputs {
        var result = inputs
        result.queries = (0..<batch * queryHeads).flatMap { head in
            positions.prepared(
                inputs.queries.rows(head * queries, queries, headDimension), positions: keys - queries..<keys,
                headDimension: headDimension, length: keys, .queries)
        }
        result.keys = (0..<batch * keyValueHeads).flatMap { head in
            positions.prepared(
                inputs.keys.rows(head * keys, keys, headDimension), positions: 0..<keys,
                headDimension: headDimension, length: keys, .keys)
        }
        return result
    }
}
