// SPDX-License-Identifier: Apache-2.0
// FileProblem.swift - the options that attend and inspect share: which tensors of a file, and what is done with them.

import ArgumentParser
import QuietAttention
import Safetensors

/// Queries, keys and values of a file by name, and what is between their products and the weights.
struct FileProblem: ParsableArguments {
    @OptionGroup(title: "Tensors of the file") var tensors: TensorNames

    @OptionGroup(title: "Norms") var norms: NormOptions

    @OptionGroup(title: "Norms") var normTensors: NormTensors

    @OptionGroup(title: "Positions") var position: PositionOptions

    @OptionGroup(title: "Positions") var positionTensors: PositionTensors

    @OptionGroup(title: "Scores and weights") var scores: ScoreOptions

    @OptionGroup(title: "Scores and weights") var scoreTensors: ScoreTensors

    @OptionGroup var machine: MachineOptions

    var options: AttentionOptions {
        AttentionOptions(norms: norms, position: position, scores: scores, machine: machine)
    }

    /// Refuses what would be refused whatever the file holds.
    func check() throws {
        try scores.check(sink: scoreTensors.sink)
        try normTensors.check(norms.qkNorm)
        try positionTensors.check(position)
        try scoreTensors.check(scores)
    }

    func inputs(_ file: SafetensorsFile) throws -> AttendInputs {
        try AttendInputs(file, tensors)
    }

    func attention(
        _ file: SafetensorsFile, _ inputs: AttendInputs, products: AttentionProducts = .float32
    ) throws -> Attention {
        try inputs.checking { try attention(file, inputs.shape, products) }
    }

    private func attention(
        _ file: SafetensorsFile, _ shape: AttentionShape, _ products: AttentionProducts
    ) throws -> Attention {
        let vectors = try normTensors.vectors(file, shape)
        return try options.attention(
            shape, sink: try scoreTensors.sink?.sink { try file.floats(named: $0) },
            tensors: AttentionTensors(file, scoreTensors, positionTensors, shape),
            queryKeyNorm: norms.queryKeyNorm(vectors), products: products)
    }

    // MARK: - Reports

    /// The tensors beside queries, keys and values, as members of a JSON object.
    var tensorMembers: [(name: String, value: JSONValue)] {
        namedOptions.compactMap { option in option.tensor.map { (option.member, .string($0)) } }
    }

    private var namedOptions: [NamedOption] { normTensors.named + positionTensors.named + scoreTensors.named }

    /// Shape and options, as members of a JSON object.
    func members(_ attention: Attention) -> [(name: String, value: JSONValue)] {
        options.members(attention, sink: scoreTensors.sink) + tensorMembers
    }

    /// The same as lines.
    func lines(_ attention: Attention, _ inputs: AttendInputs) -> String {
        let sink = SinkOption.description(scoreTensors.sink, attention.normaliser)
        let scale = decimal(attention.scale, digits: 6, format: "g")
        let softcap = attention.softcap.map { "\($0)" } ?? "none"
        return """
            \(inputs.lines)
            weights     \(scores.normaliser), sink \(sink), mask \(scores.mask), scale \(scale)
            scores      scaling \(options.scaling(attention)), softcap \(softcap), \(attention.alibi == nil ? "no ALiBi" : "ALiBi")
            positions   \(position.summary), norm of queries and keys \(norms.qkNorm.rawValue), products \(attention.products.rawValue)
            """ + tensorLine
    }

    private var tensorLine: String {
        let given = namedOptions.compactMap { option in option.tensor.map { "\(option.name) \(printable($0))" } }
        return given.isEmpty ? "" : "\nwith        \(given.joined(separator: " "))"
    }
}

/// What the tensors are called.
struct TensorNames: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Order of the dimensions of queries, keys, values, output and gate.",
            discussion: """
                bhsd              [batch, heads, sequence, dimension], the default
                bshd              [batch, sequence, heads, dimension]
                                  Has to be given for it: where both fit, the
                                  report says which was assumed.
                """,
            valueName: "layout"))
    var layout: Layout?

    @Option(help: ArgumentHelp("The queries [batch, H, L, D].", valueName: "name"))
    var queries = "q"

    @Option(help: ArgumentHelp("The keys [batch, G, S, D].", valueName: "name"))
    var keys = "k"

    @Option(help: ArgumentHelp("The values [batch, G, S, E].", valueName: "name"))
    var values = "v"

    @Option(
        help: ArgumentHelp(
            "Stands with a point before the three names: layer12 for layer12.q, layer12.k and layer12.v.",
            valueName: "prefix"))
    var prefix: String?

    /// The names of queries, keys and values.
    var all: [String] {
        guard let prefix, !prefix.isEmpty else { return [queries, keys, values] }
        let start = prefix.hasSuffix(".") ? prefix : prefix + "."
        return [queries, keys, values].map { start + $0 }
    }

    /// Whether none of the options was given.
    var areUsual: Bool { all == ["q", "k", "v"] }
}
