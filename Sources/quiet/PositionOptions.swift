// SPDX-License-Identifier: Apache-2.0
// PositionOptions.swift - the options for position encodings and the normalisation of queries and keys.

import ArgumentParser
import QuietAttention

/// How queries and keys are normalised and turned before they are multiplied.
struct PositionOptions: ParsableArguments {
    enum Encoding: String, CaseIterable, ExpressibleByArgument {
        case none, rope
        case ropeInterleaved = "rope-interleaved"
        case cocaSlack = "coca-slack"
        case cocaStrict = "coca-strict"
    }

    enum Norm: String, CaseIterable, ExpressibleByArgument { case none, rms, layer }

    @Option(
        help: ArgumentHelp(
            "How scores learn of positions: none; rope, rotary embedding whose pairs are channels j and j + r/2 (NeoX, Llama at "
                + "Hugging Face); rope-interleaved, pairs 2j and 2j + 1 (GPT-J, Llama's own weights); coca-slack or "
                + "coca-strict, collinear constrained attention, where the keys hold its lengths t.",
            valueName: "encoding"))
    var positions = Encoding.none

    @Option(help: ArgumentHelp("Pair j turns by base^(-2j / r) per position.", valueName: "base"))
    var ropeBase = 10_000.0

    @Option(
        help: ArgumentHelp(
            "For sequences beyond those of training: none; pi=<f>, position interpolation; ntk=<f>, NTK-aware; "
                + "dynamic=<f>,<L0> or dynamic=<f>,<L0>,<L>, dynamic NTK trained on L0 positions, for L keys or all there "
                + "are; yarn=<f>,<L0>, YaRN; xpos or xpos=<scale base>, decaying with distance. f is the factor. "
                + "Default: none.",
            valueName: "scaling"),
        transform: RopeScaling.init(parsing:))
    var ropeScaling = RopeScaling.none

    @Option(
        help: ArgumentHelp(
            "Channels r that are turned, even; those behind them stay. Default: the head dimension.", valueName: "r"))
    var rotaryDim: Int?

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Position of the first key; the last query stands at the last key.", valueName: "position"))
    var positionOffset = 0

    @Option(
        help: ArgumentHelp(
            "Normalise each query and key of each head first: none, rms (root mean square, epsilon 1e-6) or layer (mean "
                + "and standard deviation, epsilon 1e-5).",
            valueName: "norm"))
    var qkNorm = Norm.none

    mutating func validate() throws {
        // What can be said before there is a head dimension: with all channels, or the largest head there is.
        let isCollinear = positions == .cocaSlack || positions == .cocaStrict
        let dimension = isCollinear ? min(max(rotaryDim ?? 1024, 1), 1024) : 1024
        _ = try usage {
            try Attention(
                AttentionShape(queryHeads: 0, queries: 0, keys: 0, headDimension: dimension),
                positions: library(keys: 0),
                kernels: KernelSet.available.last)
        }
        if positions == .none, ropeScaling.description != "none" || rotaryDim != nil || positionOffset != 0 {
            throw ValidationError(
                "--rope-scaling, --rotary-dim and --position-offset need --positions: nothing is turned without it")
        }
    }

    /// For sequences of so many keys.
    func library(keys: Int) -> AttentionPositions {
        let embedding = RotaryEmbedding(
            base: ropeBase, dimensions: rotaryDim, pairing: positions == .ropeInterleaved ? .interleaved : .halves,
            scaling: ropeScaling.library(firstPosition: positionOffset, keys: keys))
        let encoding: AttentionPositions =
            switch positions {
            case .none: .none
            case .rope, .ropeInterleaved: .rotary(embedding)
            case .cocaSlack: .collinear(.slack, embedding)
            case .cocaStrict: .collinear(.strict, embedding)
            }
        return encoding.offset(by: positionOffset)
    }

    var norm: QueryKeyNorm? {
        switch qkNorm {
        case .none: nil
        case .rms: .rms()
        case .layer: .layer()
        }
    }

    /// As reports print it: the encoding, and what is not as usual.
    var summary: String {
        var words = [positions.rawValue]
        if positions != .none { words.append("base \(decimal(ropeBase, digits: 6, format: "g"))") }
        if ropeScaling.description != "none" { words.append("scaling \(ropeScaling)") }
        if let rotaryDim { words.append("\(rotaryDim) channels") }
        if positionOffset != 0 { words.append("from \(positionOffset)") }
        return words.joined(separator: ", ")
    }
}

/// A scaling of rotary embeddings, as it is written.
struct RopeScaling: CustomStringConvertible {
    let description: String
    private let scaling: RotaryEmbedding.Scaling

    static let none = RopeScaling(description: "none", scaling: .none)

    init(parsing text: String) throws {
        guard let scaling = Self.scaling(text) else {
            throw ValidationError(
                "expected none, pi=<f>, ntk=<f>, dynamic=<f>,<L0>, dynamic=<f>,<L0>,<L>, yarn=<f>,<L0>, xpos or "
                    + "xpos=<scale base>")
        }
        self.init(description: text, scaling: scaling)
    }

    private init(description: String, scaling: RotaryEmbedding.Scaling) {
        self.description = description
        self.scaling = scaling
    }

    private static func scaling(_ text: String) -> RotaryEmbedding.Scaling? {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let words = parts.count == 2 ? parts[1].split(separator: ",", omittingEmptySubsequences: false) : []
        let (factor, lengths) = (words.first.flatMap { Double($0) }, words.dropFirst().map { Int($0) })
        switch (parts[0], factor, lengths.count) {
        case ("none", nil, 0) where words.isEmpty: return RotaryEmbedding.Scaling.none
        case ("xpos", nil, 0) where words.isEmpty: return .xPos()
        case ("pi", let factor?, 0): return .interpolation(factor: factor)
        case ("ntk", let factor?, 0): return .ntk(factor: factor)
        case ("xpos", let scaleBase?, 0): return .xPos(scaleBase: scaleBase)
        case ("yarn", let factor?, 1):
            return lengths[0].map { .yarn(factor: factor, trainedLength: $0) }
        case ("dynamic", let factor?, 1):
            return lengths[0].map { .dynamicNTK(factor: factor, trainedLength: $0) }
        case ("dynamic", let factor?, 2):
            guard let trained = lengths[0], let length = lengths[1] else { return nil }
            return .dynamicNTK(factor: factor, trainedLength: trained, length: length)
        default: return nil
        }
    }

    /// The factors of xPos are smallest with the middle of the positions as their centre, which changes no score.
    func library(firstPosition: Int, keys: Int) -> RotaryEmbedding.Scaling {
        guard case .xPos(let scaleBase, _) = scaling else { return scaling }
        return .xPos(scaleBase: scaleBase, centre: firstPosition &+ keys / 2)
    }
}
