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
            case .linear(let factor): .linear(factor: factor)
            case .ntk(let factor): .ntk(factor: factor)
            case .dynamic(let factor, let trained, let given):
                .dynamic(factor: factor, trainedLength: trained, length: given ?? length)
            case .yarn(
                let factor, let trained, let fast, let slow, let attentionFactor, let mscale, let allDim, let truncate):
                .yarn(
                    factor: factor, trainedLength: trained, betaFast: fast, betaSlow: slow,
                    attentionFactor: attentionFactor, mscale: mscale, mscaleAllDim: allDim, truncate: truncate)
            case .longrope(let short, let long, let factor, let trained, let attentionFactor, let given):
                .longrope(
                    shortFactor: short, longFactor: long, factor: factor, trainedLength: trained,
                    attentionFactor: attentionFactor, length: given ?? length)
            case .llama3(let factor, let low, let high, let trained):
                .llama3(factor: factor, lowFreqFactor: low, highFreqFactor: high, trainedLength: trained)
            case .thetas(let thetas, let attentionFactor): .thetas(thetas, attentionFactor: attentionFactor)
            case .xPos(let scaleBase, let centre): .xPos(scaleBase: scaleBase, centre: centre)
            }
        var thetas: [Double]?
        if case .thetas(let own, _) = embedding.scaling { thetas = own }
        self.init(
            base: embedding.base, dimensions: embedding.dimensions ?? thetas.map { 2 * $0.count } ?? headDimension,
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
            PositionCase("PI", RotaryEmbedding(scaling: .linear(factor: 4))),
            PositionCase("NTK", RotaryEmbedding(scaling: .ntk(factor: 8))),
            PositionCase("dynamic NTK", RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 40))),
            PositionCase(
                "dynamic NTK frozen",
                RotaryEmbedding(scaling: .dynamic(factor: 1, trainedLength: 512, length: 8192))),
            PositionCase(
                "YaRN, not truncated",
                RotaryEmbedding(base: 150_000, scaling: .yarn(factor: 32, trainedLength: 4096, truncate: false))),
            PositionCase(
                "YaRN",
                RotaryEmbedding(
                    pairing: .interleaved,
                    scaling: .yarn(factor: 4, trainedLength: 2048, attentionFactor: 1.25))),
            PositionCase(
                "YaRN of DeepSeek",
                RotaryEmbedding(
                    scaling: .yarn(factor: 40, trainedLength: 256, betaFast: 16, mscale: 0.7, mscaleAllDim: 1.2))),
            PositionCase(
                "LongRoPE",
                RotaryEmbedding(
                    scaling: .longrope(
                        shortFactor: (0..<d / 2).map { 1 + 0.01 * Double($0) },
                        longFactor: (0..<d / 2).map { 1.5 + Double($0) }, factor: 32, trainedLength: 70))),
            PositionCase(
                "Llama 3",
                RotaryEmbedding(
                    base: 500_000,
                    scaling: .llama3(factor: 8, lowFreqFactor: 1, highFreqFactor: 4, trainedLength: 64))),
            PositionCase(
                "own angles",
                RotaryEmbedding(
                    scaling: .thetas((0..<partial / 2).map { 0.3 * Double($0) - 0.2 }, attentionFactor: 1.1))),
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
