// SPDX-License-Identifier: Apache-2.0
// RotaryScaling.swift - how the angles of rotary embeddings are changed for sequences longer than those of training.

extension RotaryEmbedding {
    /// How angles are changed for sequences longer than those of training.
    ///
    /// Cases and arguments are called what a checkpoint's `config.json` calls them in `rope_parameters` or `rope_scaling`:
    /// the case is its `rope_type`, `trainedLength` is `original_max_position_embeddings`, the rest is spelled out in
    /// Documentation/Systems.md. Factors are from 1 to 1e9.
    public enum Scaling: Sendable, Hashable {
        /// `default`: `theta[j] = base^(-2j / r)`
        case none

        /// Position interpolation: `theta[j] / factor`.
        ///
        /// *Source*: Chen et al., arXiv 2306.15595, 2023.
        case linear(factor: Double)

        /// NTK-aware: `base factor^(r / (r - 2))` in place of the base. The slowest pair is interpolated by the factor, the
        /// fastest not at all.
        ///
        /// *Source*: bloc97, 2023; Su, kexue.fm/archives/9948.
        case ntk(factor: Double)

        /// Dynamic NTK: `base (factor L / trainedLength - (factor - 1))^(r / (r - 2))` in place of the base where L is above
        /// the trained length.
        ///
        /// L is the largest position of the sequence + 1, offsets and identifiers included, padding behind a key length
        /// not. It is `length`, if that is given, and positions must stay below it. A cache needs the length: its old keys
        /// keep the angles they were appended with.
        ///
        /// *Source*: the code of Zhu et al., CoCA, arXiv 2309.08646, 2023; transformers.
        case dynamic(factor: Double, trainedLength: Int, length: Int? = nil)

        /// YaRN: interpolates slow pairs, leaves fast ones, mixes between them.
        ///
        ///     theta[j] (1 - ramp[j]) + theta[j] / factor ramp[j],    ramp[j] = (j - low) / (high - low) within 0...1
        ///     low, high = r/2 ln(trainedLength / (2 pi beta)) / ln(base)    with betaFast, betaSlow
        ///
        /// `truncate`: low is rounded down and high up, as the authors, DeepSeek, Qwen, ggml and transformers have it;
        /// gpt-oss is the exception. Then low is at least 0, high at most r - 1, and high - low at least 0.001.
        ///
        /// Queries and keys are multiplied by the attention factor; nil: `m(mscale) / m(mscaleAllDim)` if both are given
        /// and not 0, otherwise `m(1)`, with `m(x) = 0.1 x ln(factor) + 1`.
        ///
        /// *Source*: Peng et al., arXiv 2309.00071, 2023; DeepSeek-V2, arXiv 2405.04434, 2024; OpenAI, gpt-oss, 2025.
        case yarn(
            factor: Double, trainedLength: Int, betaFast: Double = 32, betaSlow: Double = 1,
            attentionFactor: Double? = nil, mscale: Double? = nil, mscaleAllDim: Double? = nil, truncate: Bool = true)

        /// LongRoPE: `theta[j] / shortFactor[j]` where L is at most the trained length, otherwise `theta[j] / longFactor[j]`,
        /// with L as for ``dynamic(factor:trainedLength:length:)``.
        ///
        /// Queries and keys are multiplied by the attention factor; nil: `sqrt(1 + ln(factor) / ln(trainedLength))`. Where a
        /// checkpoint has no `factor`, it is `max_position_embeddings / original_max_position_embeddings`. Lists have r/2
        /// elements from 1e-6 to 1e9; with two equal lists this divides angles by factors of one's own at any length.
        ///
        /// *Source*: Ding et al., arXiv 2402.13753, 2024; Phi-3, 2024.
        case longrope(
            shortFactor: [Double], longFactor: [Double], factor: Double, trainedLength: Int,
            attentionFactor: Double? = nil, length: Int? = nil)

        /// Llama 3: pairs that turn fewer than `lowFreqFactor` times within the trained length are interpolated, those that
        /// turn more often than `highFreqFactor` times stay, and there is a mixture between.
        ///
        ///     theta[j] / factor ramp[j] + theta[j] (1 - ramp[j]),    n[j] = trainedLength theta[j] / (2 pi)
        ///     ramp[j] = (highFreqFactor - n[j]) / (highFreqFactor - lowFreqFactor) within 0...1
        ///
        /// *Source*: Meta, Llama 3.1, 2024.
        case llama3(factor: Double, lowFreqFactor: Double, highFreqFactor: Double, trainedLength: Int)

        /// Angles of one's own (inverse frequencies), r/2 of them within 1e6 of 0; the base is not used. Queries and keys are
        /// multiplied by the attention factor. Positions times the largest angle must stay below 2^41.
        case thetas([Double], attentionFactor: Double = 1)

        /// xPos: queries are multiplied by `zeta[j]^((p - centre) / scaleBase)`, keys divided by it, so that products
        /// carry `zeta[j]^((m - n) / scaleBase)`, `zeta[j] = (2j + 0.4 r) / (1.4 r)`.
        ///
        /// The centre cancels: it only keeps the factors small. Positions within 35 scaleBase of it are valid.
        ///
        /// *Source*: Sun et al., "A Length-Extrapolatable Transformer", arXiv 2212.10554, 2022; torchscale.
        case xPos(scaleBase: Double = 512, centre: Int = 0)
    }
}

extension RotaryEmbedding.Scaling {
    /// Whether angles differ between sequences that end at different positions, unless ``length`` is given.
    var countsPositions: Bool {
        switch self {
        case .dynamic, .longrope: true
        default: false
        }
    }

    /// The length that angles are fixed for.
    var length: Int? {
        switch self {
        case .dynamic(_, _, let length), .longrope(_, _, _, _, _, let length): length
        default: nil
        }
    }

    /// Whether angles depend on the positions of each sequence.
    var dependsOnLength: Bool { countsPositions && length == nil }

    /// r, where the scaling itself says it.
    var dimensions: Int? { if case .thetas(let thetas, _) = self { 2 * thetas.count } else { nil } }

    func check(dimensions: Int) throws(AttentionError) {
        switch self {
        case .none: break
        case .linear(let factor): try Self.check(factor: factor)
        case .ntk(let factor), .dynamic(let factor, _, _):
            try Self.check(factor: factor)
            guard dimensions >= 4 else {
                throw RotaryEmbedding.refusal(
                    "dimensions", expected: "4 or more for NTK scaling, whose exponent is r / (r - 2)",
                    found: "\(dimensions)")
            }
        case .yarn: try checkYaRN()
        case .longrope(let short, let long, let factor, _, let attentionFactor, _):
            try Self.check(factor: factor)
            try Self.check(attentionFactor: attentionFactor)
            try Self.check("shortFactor", short, dimensions, within: 1e-6...1e9)
            try Self.check("longFactor", long, dimensions, within: 1e-6...1e9)
        case .llama3(let factor, let low, let high, _):
            try Self.check(factor: factor)
            guard low >= 1e-9, low < high, high <= 1e9 else {
                throw Self.refusal(
                    "highFreqFactor", expected: "highFreqFactor > lowFreqFactor, both from 1e-9 to 1e9",
                    found: "\(high) and \(low)")
            }
        case .thetas(let thetas, let attentionFactor):
            try Self.check("thetas", thetas, dimensions, within: -1e6...1e6)
            try Self.check(attentionFactor: attentionFactor)
        case .xPos(let scaleBase, let centre):
            guard scaleBase >= 1, scaleBase <= 1e12 else {
                throw Self.refusal("scaleBase", expected: "1 to 1e12", found: "\(scaleBase)")
            }
            guard abs(Double(centre)) <= Double(AttentionShape.longestSequence) else {
                throw Self.refusal("centre", expected: "at most 2^40 from 0", found: "\(centre)")
            }
        }
        try checkLengths()
    }

    private func checkYaRN() throws(AttentionError) {
        guard case .yarn(let factor, _, let betaFast, let betaSlow, let given, let mscale, let mscaleAllDim, _) = self
        else { return }
        try Self.check(factor: factor)
        guard betaSlow > 0, betaSlow < betaFast, betaFast <= 1e9, betaSlow >= 1e-9 else {
            throw Self.refusal(
                "betaFast", expected: "betaFast > betaSlow, both from 1e-9 to 1e9",
                found: "\(betaFast) and \(betaSlow)")
        }
        try Self.check(attentionFactor: given)
        for (name, value) in [("mscale", mscale), ("mscaleAllDim", mscaleAllDim)] {
            guard let value, !(value >= 0 && value <= 1e6) else { continue }
            throw Self.refusal(name, expected: "0 to 1e6", found: "\(value)")
        }
    }

    private func checkLengths() throws(AttentionError) {
        switch self {
        case .dynamic(_, let trainedLength, _), .yarn(_, let trainedLength, _, _, _, _, _, _),
            .llama3(_, _, _, let trainedLength):
            try Self.check("trainedLength", trainedLength, least: 1)
        // Its logarithm is divided by.
        case .longrope(_, _, _, let trainedLength, _, _): try Self.check("trainedLength", trainedLength, least: 2)
        case .none, .linear, .ntk, .thetas, .xPos: break
        }
        if let length { try Self.check("length", length, least: 1) }
    }

    private static func check(factor: Double) throws(AttentionError) {
        guard factor >= 1, factor <= 1e9 else {
            throw refusal("factor", expected: "1 to 1e9", found: "\(factor)")
        }
    }

    private static func check(attentionFactor factor: Double?) throws(AttentionError) {
        guard let factor, !(factor > 0 && factor <= 1e9) else { return }
        throw refusal("attentionFactor", expected: "more than 0, at most 1e9", found: "\(factor)")
    }

    private static func check(
        _ name: String, _ list: [Double], _ dimensions: Int, within range: ClosedRange<Double>
    ) throws(AttentionError) {
        guard list.count == dimensions / 2 else {
            throw refusal(
                name, expected: "\(dimensions / 2) elements, one for each pair of \(dimensions) channels",
                found: "\(list.count)")
        }
        if let index = list.firstIndex(where: { !range.contains($0) }) {
            throw refusal(
                "\(name)[\(index)]", expected: "\(range.lowerBound) to \(range.upperBound)", found: "\(list[index])")
        }
    }

    private static func check(_ name: String, _ length: Int, least: Int) throws(AttentionError) {
        guard length >= least, length <= AttentionShape.longestSequence else {
            throw refusal(name, expected: "\(least) to 2^40 positions", found: "\(length)")
        }
    }

    private static func refusal(_ argument: String, expected: String, found: String) -> AttentionError {
        RotaryEmbedding.refusal("scaling.\(argument)", expected: expected, found: found)
    }
}
