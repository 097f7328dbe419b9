// SPDX-License-Identifier: Apache-2.0
// OutputOptions.swift - the options for what becomes of values and of the output, and where it goes.

import ArgumentParser
import QuietAttention
import Safetensors

/// Norms, gate, file.
struct OutputOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Of each value: none, rms or layer as above, without gain and bias. Default: none.", valueName: "norm"),
        transform: Norm.init(parsing:))
    var valueNorm = Norm.none

    @Option(
        help: ArgumentHelp(
            "Of each row of the output, likewise. RetNet has rms behind retention. Default: none.", valueName: "norm"),
        transform: Norm.init(parsing:))
    var outputNorm = Norm.none

    @Option(
        help: ArgumentHelp(
            "Then out becomes out sigmoid(z), with logits z of the file.",
            discussion: """
                [H]               one for each head
                [batch, H, L]     one for each row of each head
                [batch, H, L, E]  one for each element
                """,
            valueName: "name"))
    var gate: String?

    @Option(help: ArgumentHelp("The safetensors file to write.", valueName: "out.safetensors"))
    var output: String

    @Flag(help: "Also write `lse` [batch, H, L], in every layout: log(e^s + sum e^x) of each row.")
    var lse = false

    func checkIsNot(_ input: String) throws {
        guard !namesSameFile(input, output) else {
            throw Failure("the output \(printable(output)) is the input: it would replace the queries, keys and values")
        }
    }
}

/// An output gate and its logits.
struct GateTensor {
    private let gate: OutputGate
    private let logits: [Float]
    /// What has a logit of its own, for reports.
    let granularity: String

    /// - Parameter name: of a tensor `[H]`, `[batch, H, L]` or `[batch, H, L, E]`, the last two in the inputs' layout.
    init(_ file: SafetensorsFile, _ name: String, _ inputs: AttendInputs, kernels: KernelSet?) throws {
        let shape = inputs.shape
        let heads = [shape.queryHeads]
        let rows = inputs.layout.rows(shape)
        let elements = rows + [shape.valueDimension]
        let found = try file.checkShape(
            of: name, heads, rows, elements, meaning: "a gate for each head, row or element of the output")
        gate = try OutputGate(
            found == elements ? .element : .head, valueDimension: shape.valueDimension, kernels: kernels)
        let values = try file.floats(named: name)
        if found == heads {
            granularity = "head"
            logits = (0..<shape.rowCount).map { values[$0 / shape.queries % shape.queryHeads] }
        } else {
            granularity = found == rows ? "row" : "element"
            logits =
                inputs.layout == .bhsd
                ? values
                : exchanged(
                    values, shape.queries, shape.queryHeads, dimension: found == rows ? 1 : shape.valueDimension)
        }
    }

    func apply(to output: inout [Float]) throws { try gate.apply(logits: logits, to: &output) }
}
