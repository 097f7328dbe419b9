// SPDX-License-Identifier: Apache-2.0
// ScoreOptions.swift - the options for what becomes of scores: their scale by row, softcap, ALiBi, and the normaliser.

import ArgumentParser
import QuietAttention

/// From products of queries and keys to weights.
struct ScoreOptions: ParsableArguments {
    @Option(
        // Unconditional: a negative number looks like an option.
        parsing: .unconditional,
        help: "Scores are x[i][j] = scale q[i].k[j]. Default: 1 / sqrt(D).")
    var scale: Double?

    @Option(
        help: ArgumentHelp(
            "A factor of the scale of each row, which sees n keys.",
            discussion: """
                none              1, the default
                log=<b>           log n / log b
                clipped-log=<b>   max(1, log n / log b)
                kappa-log=<k>     k log n / sqrt(D)
                ssmax=<s>         s log n, scalable softmax
                """,
            valueName: "scaling"),
        transform: ScalingOption.init(parsing:))
    var scaling = ScalingOption.none

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp(
            "x becomes c tanh(x / c), before ALiBi.", valueName: "c"))
    var softcap: Double?

    @Flag(
        help: ArgumentHelp(
            "ALiBi: from x goes m[h] |i + S - L - j|, with the published slopes m for H heads."))
    var alibi = false

    @Option(
        help: ArgumentHelp(
            "The keys j that row i sees: the last row stands at the last key.",
            discussion: """
                none              all, the default
                causal            j <= i + S - L
                window=<w>        of those the last w
                window=<b>,<a>    b before i + S - L, itself, and a behind
                """,
            valueName: "mask"),
        transform: MaskOption.init(parsing:))
    var mask = MaskOption.none

    @Option(
        help: ArgumentHelp(
            "Weights p[j] of the n keys that a row sees, and what numbers in [] are when left out.",
            discussion: """
                softmax           e^x[j] / (e^s + sum e^x), the default
                clipped=<g>[,<z>] clip((z - g) softmax + g, 0, 1), g <= 0, z = 1
                clipped-over-n=<a>[,<z>]
                                  the same, g = -a / n
                sigmoid[=<b>]     1 / (1 + e^-(x[j] + b)), b = -log n
                softpick          max(e^x[j] - 1, 0) / sum |e^x - 1|
                relu2[=<m>]       max(x[j], 0)^2 / m, m = n
                relu2-normalised[=<m>]
                                  max(x[j], 0)^2 / (m + sum max(x, 0)^2), m = 0
                """,
            valueName: "normaliser"),
        transform: NormaliserOption.init(parsing:))
    var normaliser = NormaliserOption.softmax

    /// Refuses what would be refused whatever the shape, before a file is read.
    ///
    /// - Parameter sink: nil: what suits the normaliser.
    func check(sink: SinkOption?) throws {
        _ = try usage {
            try Attention(
                AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1),
                rules: rules(queryHeads: 1, sink: sink?.sink { _ in [0] }), threads: 1,
                kernels: KernelSet.available.first)
        }
    }

    /// How scores become weights.
    ///
    /// - Parameter sink: nil: what suits the normaliser.
    func rules(queryHeads: Int, sink: AttentionSink?) -> ScoreRules {
        ScoreRules(
            sink: sink ?? normaliser.library.defaultSink, scale: scale,
            scaling: scaling.library(queryHeads: queryHeads), softcap: softcap, alibi: alibi ? .standard : nil,
            normaliser: normaliser.library)
    }
}

/// `none`, or a formula and its number.
struct ScalingOption: CustomStringConvertible {
    /// As it was written.
    let description: String
    private let make: @Sendable (_ queryHeads: Int) -> ScoreScaling

    static let none = ScalingOption(description: "none") { _ in .constant }

    private init(description: String, make: @escaping @Sendable (Int) -> ScoreScaling) {
        (self.description, self.make) = (description, make)
    }

    init(parsing text: String) throws {
        if text == "none" {
            self = .none
            return
        }
        let formulas: [(name: String, make: @Sendable (Double, Int) -> ScoreScaling)] = [
            ("log", { base, _ in .logKeys(base: base) }), ("clipped-log", { base, _ in .clippedLogKeys(base: base) }),
            ("kappa-log", { kappa, _ in .logKeysPerDimension(kappa: kappa) }),
            ("ssmax", { s, heads in .scalableSoftmax([Double](repeating: s, count: heads)) }),
        ]
        for formula in formulas {
            guard let number = text.numbers(of: formula.name, count: 1)?.first else { continue }
            self.init(description: text) { formula.make(number, $0) }
            return
        }
        throw ValidationError("expected none, log=<b>, clipped-log=<b>, kappa-log=<k> or ssmax=<s>")
    }

    func library(queryHeads: Int) -> ScoreScaling { make(queryHeads) }
}

/// A normaliser and its constants.
struct NormaliserOption: CustomStringConvertible {
    /// As it was written.
    let description: String
    let library: AttentionNormaliser

    static let softmax = NormaliserOption(description: "softmax", library: .softmax)

    private init(description: String, library: AttentionNormaliser) {
        (self.description, self.library) = (description, library)
    }

    init(parsing text: String) throws {
        let library: AttentionNormaliser? =
            switch text {
            case "softmax": .softmax
            case "sigmoid": .sigmoid()
            case "softpick": .softpick()
            case "relu2": .reluSquared()
            case "relu2-normalised": .normalisedReluSquared()
            default: Self.normaliser(text)
            }
        guard let library else {
            throw ValidationError(
                "expected softmax, clipped=<g>[,<z>], clipped-over-n=<a>[,<z>], sigmoid[=<b>], softpick, relu2[=<m>] or "
                    + "relu2-normalised[=<m>]")
        }
        self.init(description: text, library: library)
    }

    private static func normaliser(_ text: String) -> AttentionNormaliser? {
        if let n = text.numbers(of: "clipped", count: 1) { return .clippedSoftmax(gamma: .fixed(n[0])) }
        if let n = text.numbers(of: "clipped", count: 2) { return .clippedSoftmax(gamma: .fixed(n[0]), zeta: n[1]) }
        if let n = text.numbers(of: "clipped-over-n", count: 1) {
            return .clippedSoftmax(gamma: .overKeys(alpha: n[0], .visible))
        }
        if let n = text.numbers(of: "clipped-over-n", count: 2) {
            return .clippedSoftmax(gamma: .overKeys(alpha: n[0], .visible), zeta: n[1])
        }
        if let n = text.numbers(of: "sigmoid", count: 1) { return .sigmoid(bias: .fixed(n[0])) }
        if let n = text.numbers(of: "relu2", count: 1) { return .reluSquared(divisor: .fixed(n[0])) }
        if let n = text.numbers(of: "relu2-normalised", count: 1) { return .normalisedReluSquared(sink: n[0]) }
        return nil
    }
}

extension String {
    /// The numbers of "name=1,2", if there are so many.
    func numbers(of name: String, count: Int) -> [Double]? {
        guard let list = value(of: name) else { return nil }
        let numbers = list.split(separator: ",", omittingEmptySubsequences: false).map { Double($0) }
        return numbers.count == count && !numbers.contains(nil) ? numbers.compactMap(\.self) : nil
    }
}
