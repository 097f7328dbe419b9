// SPDX-License-Identifier: Apache-2.0
// FileProblem.swift - the options that attend and inspect share: which tensors of a file, with which sink and scale.

import ArgumentParser
import QuietAttention
import Safetensors

/// Queries, keys and values of a file by name, and what is between their products and the weights.
struct FileProblem: ParsableArguments {
    @Option(help: ArgumentHelp("Name of the queries.", valueName: "name"))
    var queries = "q"

    @Option(help: ArgumentHelp("Name of the keys.", valueName: "name"))
    var keys = "k"

    @Option(help: ArgumentHelp("Name of the values.", valueName: "name"))
    var values = "v"

    @Option(
        help: ArgumentHelp(
            "softmax, softmax1, n=<real> for softmax_n, or tensor=<name>: one sink logit per query head, from the file. "
                + "Default: softmax1, or none where the normaliser has none.",
            valueName: "sink"),
        transform: SinkOption.inFile)
    var sink: SinkOption?

    @Option(
        // Unconditional: a negative number looks like an option.
        parsing: .unconditional,
        help: "What the products of queries and keys are multiplied by. Default: 1 / sqrt(head dimension).")
    var scale: Double?

    @OptionGroup var options: AttentionOptions

    func validate() throws {
        if let scale, !scale.isFinite { throw ValidationError("--scale: expected a finite number, got \(scale)") }
    }

    func inputs(_ file: SafetensorsFile) throws -> AttendInputs {
        try AttendInputs(file, queries: queries, keys: keys, values: values)
    }

    func attention(_ file: SafetensorsFile, _ shape: AttentionShape) throws -> Attention {
        let scores = options.scores
        return try Attention(
            shape, sink: try SinkOption.sink(sink) { try file.floats(named: $0) }, mask: options.mask.mask,
            scale: scale, scaling: scores.scaling.library(queryHeads: shape.queryHeads), softcap: scores.softcap,
            alibi: scores.alibi ? .standard : nil, normaliser: scores.normaliser.library,
            positions: options.position.library(keys: shape.keys), queryKeyNorm: options.position.norm,
            threads: options.threads, kernels: try options.kernelSet)
    }

    // MARK: - Reports

    private func sinkDescription(_ attention: Attention) -> String {
        SinkOption.description(sink, attention.normaliser)
    }

    /// Shape and options, as members of a JSON object.
    func members(_ attention: Attention) -> [(name: String, value: JSONValue)] {
        let shape = attention.shape
        return [
            ("batch", .integer(shape.batch)),
            ("query_heads", .integer(shape.queryHeads)),
            ("kv_heads", .integer(shape.keyValueHeads)),
            ("queries", .integer(shape.queries)),
            ("keys", .integer(shape.keys)),
            ("head_dim", .integer(shape.headDimension)),
            ("value_dim", .integer(shape.valueDimension)),
            ("sink", .string(sinkDescription(attention))),
            ("mask", .string("\(options.mask)")),
            ("scale", .number(attention.scale)),
            ("scaling", .string("\(options.scores.scaling)")),
            ("softcap", attention.softcap.map(JSONValue.number) ?? .string("none")),
            ("alibi", .string(attention.alibi == nil ? "none" : "standard")),
            ("normaliser", .string("\(options.scores.normaliser)")),
            ("positions", .string(options.position.summary)),
            ("qk_norm", .string(options.position.qkNorm.rawValue)),
        ]
    }

    /// The same as lines.
    func lines(_ attention: Attention, _ inputs: AttendInputs) -> String {
        let scale = decimal(attention.scale, digits: 6, format: "g")
        let softcap = attention.softcap.map { "\($0)" } ?? "none"
        return """
            queries     \(inputs.descriptions[0])
            keys        \(inputs.descriptions[1])
            values      \(inputs.descriptions[2])
            weights     \(options.scores.normaliser), sink \(sinkDescription(attention)), mask \(options.mask), scale \(scale)
            scores      scaling \(options.scores.scaling), softcap \(softcap), \(attention.alibi == nil ? "no ALiBi" : "ALiBi")
            positions   \(options.position.summary), norm of queries and keys \(options.position.qkNorm.rawValue)
            """
    }
}
