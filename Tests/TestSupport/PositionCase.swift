// SPDX-License-Identifier: Apache-2.0
// PositionCase.swift - one way of preparing queries and keys, for the library and for the reference.

import AttentionReference
import QuietAttention
import SeededInputs

/// A position encoding and a normalisation.
public struct PositionCase: Sendable, CustomStringConvertible {
    public var name: String
    /// nil: positions turn nothing.
    public var embedding: RotaryEmbedding?
    public var form = ReferencePositions.Form.rotary
    public var norm: QueryKeyNorm?

    public init(
        _ name: String, _ embedding: RotaryEmbedding?, _ form: ReferencePositions.Form = .rotary,
        norm: QueryKeyNorm? = nil
    ) {
        self.name = name
        self.embedding = embedding
        self.form = form
        self.norm = norm
    }

    public var description: String { name }

    /// For the library.
    public var positions: AttentionPositions {
        guard let embedding else { return .none }
        return switch form {
        case .rotary: .rotary(embedding)
        case .slack: .collinear(.slack, embedding)
        case .strict: .collinear(.strict, embedding)
        }
    }

    /// For the reference.
    public func reference(headDimension: Int, length: Int) -> ReferencePositions? {
        guard let embedding else { return nil }
        return ReferencePositions(embedding, headDimension: headDimension, length: length, form: form)
    }

    /// Rows `[positions][headDimension]` prepared by the reference.
    ///
    /// - Parameter length: keys of the sequence.
    public func prepared(
        _ rows: [Float], positions: some Collection<Int>, headDimension: Int, length: Int,
        _ side: ReferencePositions.Side
    ) -> [Float] {
        let reference = reference(headDimension: headDimension, length: length)
        return zip(0..., positions).flatMap { index, position in
            var row = rows.rows(index, 1, headDimension)
            if let norm = norm.map({ ReferenceNorm($0, side) }) { row = norm.normalised(row) }
            return reference?.turned(row, position: position, side) ?? row
        }
    }

    /// The same in Double, by the formulas.
    public func oracle(
        _ rows: [Float], positions: some Collection<Int>, headDimension: Int, length: Int,
        _ side: ReferencePositions.Side
    ) -> [Double] {
        let reference = reference(headDimension: headDimension, length: length)
        return zip(0..., positions).flatMap { index, position in
            var row = rows.rows(index, 1, headDimension).map(Double.init)
            if let norm = norm.map({ ReferenceNorm($0, side) }) { row = norm.oracle(row) }
            return reference?.oracle(row, position: position, side) ?? row
        }
    }
}

extension ReferencePositions {
    public init(
        _ embedding: RotaryEmbedding, headDimension: Int, length: Int, form: ReferencePositions.Form = .rotary
    ) {
        let scaling: Scaling =
            switch embedding.scaling {
            case .none: .none
            case .interpolation(let factor): .interpolation(factor: factor)
            case .ntk(let factor): .ntk(factor: factor)
            case .dynamicNTK(let factor, let trained, let given):
                .dynamicNTK(factor: factor, trainedLength: trained, length: given ?? length)
            case .yarn(let factor, let trained, let fast, let slow, let concentration, let wholePairs):
                .yarn(
                    factor: factor, trainedLength: trained, betaFast: fast, betaSlow: slow,
                    concentration: concentration, wholePairs: wholePairs)
            case .xPos(let scaleBase, let centre): .xPos(scaleBase: scaleBase, centre: centre)
            }
        self.init(
            base: embedding.base, dimensions: embedding.dimensions ?? headDimension,
            pairing: embedding.pairing == .halves ? .halves : .interleaved, scaling: scaling, form: form)
    }
}

extension ReferenceNorm {
    public init(_ norm: QueryKeyNorm, _ side: ReferencePositions.Side) {
        self.init(
            norm.kind == .rms ? .rms : .layer, epsilon: norm.epsilon,
            gain: side == .queries ? norm.queryGain : norm.keyGain,
            bias: side == .queries ? norm.queryBias : norm.keyBias)
    }
}

extension PositionCase {
    /// Every feature by its name, for heads of this dimension: 4 and up, even.
    public static func all(headDimension d: Int) -> [PositionCase] {
        var generator = SeededGenerator(seed: 77)
        func gain() -> [Float] { generator.normals(d).map { 1 + 0.25 * $0 } }
        let partial = max(2, d / 4 * 2)
        return [
            PositionCase("RoPE halves", RotaryEmbedding()),
            PositionCase("RoPE interleaved", RotaryEmbedding(pairing: .interleaved)),
            PositionCase("partial RoPE halves", RotaryEmbedding(base: 500, dimensions: partial)),
            PositionCase(
                "partial RoPE interleaved", RotaryEmbedding(dimensions: partial, pairing: .interleaved)),
            PositionCase("PI", RotaryEmbedding(scaling: .interpolation(factor: 4))),
            PositionCase("NTK", RotaryEmbedding(scaling: .ntk(factor: 8))),
            PositionCase("dynamic NTK", RotaryEmbedding(scaling: .dynamicNTK(factor: 2, trainedLength: 40))),
            PositionCase(
                "dynamic NTK frozen",
                RotaryEmbedding(scaling: .dynamicNTK(factor: 1, trainedLength: 512, length: 8192))),
            PositionCase(
                "YaRN", RotaryEmbedding(base: 150_000, scaling: .yarn(factor: 32, trainedLength: 4096))),
            PositionCase(
                "YaRN whole pairs",
                RotaryEmbedding(
                    pairing: .interleaved,
                    scaling: .yarn(factor: 4, trainedLength: 2048, concentration: 1.25, wholePairs: true))),
            PositionCase("xPos", RotaryEmbedding(scaling: .xPos(scaleBase: 64, centre: 30))),
            PositionCase("CoCA slack", RotaryEmbedding(), .slack),
            PositionCase("CoCA slack interleaved", RotaryEmbedding(pairing: .interleaved), .slack),
            PositionCase("CoCA strict", RotaryEmbedding(), .strict),
            PositionCase("CoCA strict dynamic NTK", RotaryEmbedding(scaling: .ntk(factor: 4)), .strict),
            PositionCase("QK RMSNorm", nil, norm: .rms()),
            PositionCase("QK RMSNorm, RoPE", RotaryEmbedding(), norm: .rms(queryGain: gain(), keyGain: gain())),
            PositionCase(
                "QK LayerNorm, RoPE interleaved", RotaryEmbedding(pairing: .interleaved),
                norm: .layer(queryGain: gain(), queryBias: gain(), keyGain: gain())),
            PositionCase("QK LayerNorm, CoCA slack", RotaryEmbedding(), .slack, norm: .layer()),
        ]
    }
}
