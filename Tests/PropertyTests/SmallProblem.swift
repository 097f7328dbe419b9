// SPDX-License-Identifier: Apache-2.0
// SmallProblem.swift - one head of random size, and a run of it with any rules for scores.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport

/// One query head of unit normal numbers.
struct SmallProblem: PropertyCase {
    var queries, keys, headDimension, valueDimension: Int
    var seed: UInt64
    var mask = AttentionMask.causal
    var queryData: [Float] = [], keyData: [Float] = [], valueData: [Float] = []

    /// One of each normaliser beside softmax.
    static let normalisers: [AttentionNormaliser] = [
        .clippedSoftmax(gamma: .fixed(-0.03), zeta: 1.003), .sigmoid(), .softpick(), .reluSquared(),
        .normalisedReluSquared(), .normalisedReluSquared(sink: 2),
    ]

    var scale: Double { 1 / Double(headDimension).squareRoot() }

    var description: String { "\(queries) x \(keys), d \(headDimension), dv \(valueDimension), seed \(seed)" }

    static func random(using generator: inout SeededGenerator) -> SmallProblem {
        var problem = SmallProblem(
            queries: generator.next(in: 1...9), keys: generator.element(of: [1, 2, 7, 63, 64, 65, 130, 1030]),
            headDimension: generator.next(in: 1...9), valueDimension: generator.next(in: 1...20), seed: generator.next()
        )
        problem.refill()
        return problem
    }

    var shrunk: [SmallProblem] {
        [\Self.queries, \.keys, \.headDimension, \.valueDimension].flatMap { size in
            self[keyPath: size].shrunk(toward: 1).map {
                var smaller = self
                smaller[keyPath: size] = $0
                smaller.refill()
                return smaller
            }
        }
    }

    mutating func refill() {
        var generator = SeededGenerator(seed: seed)
        queryData = generator.normals(queries * headDimension)
        keyData = generator.normals(keys * headDimension)
        valueData = generator.normals(keys * valueDimension)
    }

    /// - Parameters:
    ///   - sink: nil: softmax_1 where the normaliser has a sink.
    ///   - unitValues: values that make the output the weights.
    func run(
        _ kernels: KernelSet, normaliser: AttentionNormaliser = .softmax, sink: AttentionSink? = nil,
        scale: Double? = nil, scaling: ScoreScaling = .constant, softcap: Double? = nil, alibi: ALiBi? = nil,
        bias: BroadcastTensor<Float>? = nil, unitValues: Bool = false
    ) throws -> AttentionResult {
        let shape = try AttentionShape(
            queryHeads: 1, queries: queries, keys: keys, headDimension: headDimension,
            valueDimension: unitValues ? keys : valueDimension)
        let attention = try Attention(
            shape, sink: sink ?? normaliser.usualSink, mask: mask, scale: scale, scaling: scaling, softcap: softcap,
            alibi: alibi,
            normaliser: normaliser, bias: bias, kernels: kernels)
        return try attention.forward(
            queries: Array(queryData.prefix(shape.queryCount)), keys: Array(keyData.prefix(shape.keyCount)),
            values: unitValues
                ? (0..<keys * keys).map { $0 / keys == $0 % keys ? 1 : 0 } : Array(valueData.prefix(shape.valueCount)))
    }
}

/// The platform's functions, for what is only compared within a tolerance.
func exponential(_ x: Double) -> Double { exp(x) }
func logarithm(_ x: Double) -> Double { log(x) }
