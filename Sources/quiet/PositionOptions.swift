// SPDX-License-Identifier: Apache-2.0
// PositionOptions.swift - the options for position encodings.

import ArgumentParser
import QuietAttention

/// How queries and keys are rotated before they are multiplied.
struct PositionOptions: ParsableArguments {
    enum Encoding: String, CaseIterable {
        case none, rope
        case ropeInterleaved = "rope-interleaved"
        case cocaSlack = "coca-slack"
        case cocaStrict = "coca-strict"
    }

    @Option(
        help: ArgumentHelp(
            "Products of the query q at m and the key k at n.",
            discussion: """
                none              q.k, the default
                rope              (R(m) q).(R(n) k), R(m) rotates pair j by m theta[j],
                                  which is channels j and j + r/2
                rope-interleaved  the same, pair j is channels 2j and 2j + 1
                coca-strict       sum t[j] |q[j]|^2 cos((m - n) theta[j]),
                                  t[j] = max(0, mean of pair j of k)
                coca-slack        (q o R(m) q).(R(n) (t, t)), o channel by channel
                """,
            valueName: "encoding"),
        transform: Encoding.init(parsing:))
    var positions = Encoding.none

    @Option(parsing: .unconditional, help: ArgumentHelp("theta[j] = base^(-2j / r).", valueName: "base"))
    var ropeBase = Self.usualBase

    @Option(
        help: ArgumentHelp(
            "For more positions than the L0 of training, called as `rope_type` of a config.json calls it, with its keys behind.",
            discussion: """
                default           or none
                linear=<f>        theta / f, position interpolation; or pi=<f>
                ntk=<f>           base f^(r / (r - 2)), NTK-aware
                dynamic=<f>,<L0>[,<N>]
                                  base (f N / L0 - f + 1)^(r / (r - 2)) if N > L0,
                                  N = the largest position + 1
                yarn=<f>,<L0>[,<key>=<value>...]
                                  theta / f for the slow pairs alone. Keys: beta_fast,
                                  beta_slow, attention_factor, mscale, mscale_all_dim,
                                  and truncate=false of gpt-oss
                llama3=<f>,<low_freq_factor>,<high_freq_factor>,<L0>
                                  the same by turns within L0
                longrope=<f>,<L0>[,attention_factor=<a>][,length=<N>]
                                  theta / --rope-short-factor, and if N > L0
                                  theta / --rope-long-factor
                xpos[=<b>]        scores times zeta[j]^((m - n) / b), xPos; b = 512
                """,
            valueName: "scaling"),
        transform: RopeScaling.init(parsing:))
    var ropeScaling = RopeScaling.none

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp(
            "r, even: so many channels are rotated, those behind them stay. Default: D.", valueName: "r"))
    var rotaryDim: Int?

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Position of the first key; the last query stands at the last key.", valueName: "position"))
    var positionOffset = 0

    private static let usualBase = 10_000.0
    private static let longestHead = 1024

    mutating func validate() throws {
        if let rotaryDim, !rotaryDim.isMultiple(of: 2) || !(2...Self.longestHead).contains(rotaryDim) {
            throw ValidationError(
                "--rotary-dim: expected an even number from 2 to the head dimension, which is \(Self.longestHead) at most, "
                    + "got \(rotaryDim)")
        }
        // What can be said before there is a head dimension: with all channels, or the largest head there is.
        let isCollinear = positions == .cocaSlack || positions == .cocaStrict
        try check(headDimension: isCollinear ? rotaryDim ?? Self.longestHead : Self.longestHead)
        if positions == .none,
            ropeScaling.description != "none" || rotaryDim != nil || positionOffset != 0 || ropeBase != Self.usualBase
        {
            throw ValidationError(
                "--rope-base, --rope-scaling, --rotary-dim and --position-offset need --positions: nothing is rotated "
                    + "without it")
        }
    }

    /// Refuses what no sequence of such heads can have.
    func check(headDimension: Int) throws {
        _ = try usage {
            try Attention(
                AttentionShape(queryHeads: 0, queries: 0, keys: 0, headDimension: headDimension), sink: .softmax1,
                positions: library(keys: 0, lists: .placeholders(channels: rotaryDim ?? headDimension)),
                kernels: KernelSet.available.last)
        }
    }

    /// For sequences of so many keys.
    func library(keys: Int, lists: RopeLists = RopeLists()) throws -> AttentionPositions {
        let scaling = try ropeScaling.library(firstPosition: positionOffset, keys: keys, lists)
        let embedding = RotaryEmbedding(
            base: ropeBase, dimensions: rotaryDim, pairing: positions == .ropeInterleaved ? .interleaved : .halves,
            scaling: scaling)
        let encoding: AttentionPositions =
            switch positions {
            case .none: .none
            case .rope, .ropeInterleaved: .rotary(embedding)
            case .cocaSlack: .collinear(.slack, embedding)
            case .cocaStrict: .collinear(.strict, embedding)
            }
        return encoding.offset(by: positionOffset)
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
