// SPDX-License-Identifier: Apache-2.0
// AttendGradients.swift - the gradients that attend also computes: which gradients come in, and what goes out.

import ArgumentParser
import QuietAttention
import Safetensors

/// Whether gradients are wanted, and of what loss.
struct GradientOptions: ParsableArguments {
    @Flag(
        help: ArgumentHelp(
            "Also write the gradients of a loss in what the scores are made of. Not with a gate, or norms of values or output.",
            discussion: """
                dq, dk, dv        as q, k, v
                dsink [H]         by the sink logit of each head, where there is a sink
                dbias             as the tensor of --bias, where there is one
                dslope, dssmax    [H], of --alibi-slopes and --ssmax
                dquery_gain       as the tensor of --query-gain; likewise
                                  dquery_bias, dkey_gain and dkey_bias
                """))
    var gradients = false

    @Option(
        help: ArgumentHelp(
            "The loss's gradient in `out`, a tensor [batch, H, L, E] of the file. Default: dout.", valueName: "name"))
    var outputGradient: String?

    @Option(
        help: ArgumentHelp(
            "The loss's gradient in `lse`, a tensor [batch, H, L] of the file. Default: the loss has none of it.",
            valueName: "name"))
    var lseGradient: String?

    func check(_ normaliser: NormaliserOption, _ outputs: OutputOptions, isRecurrent: Bool) throws {
        for (option, name) in [("--output-gradient", outputGradient), ("--lse-gradient", lseGradient)]
        where name != nil && !gradients {
            throw ValidationError("\(option): expected --gradients beside it")
        }
        guard !gradients || !isRecurrent else {
            throw ValidationError("--gradients: is for attention by scores, not for --recurrent")
        }
        // These stand outside of attention, and the gradients given are those of what attention itself puts out.
        for (option, isGiven) in [
            ("--value-norm", outputs.valueNorm != .none), ("--output-norm", outputs.outputNorm != .none),
            ("--gate", outputs.gate != nil),
        ] where gradients && isGiven {
            throw ValidationError("\(option): expected none with --gradients, which are those of attention itself")
        }
        guard lseGradient == nil || normaliser.library.hasSink else {
            throw ValidationError("--lse-gradient: the normaliser \(normaliser) has no log-sum-exp")
        }
    }

    var named: [NamedOption] {
        gradients
            ? [NamedOption("--output-gradient", outputGradient ?? "dout"), NamedOption("--lse-gradient", lseGradient)]
            : []
    }

    /// The gradients of a file's problem, as tensors to write, from what its forward pass put out and kept.
    func tensors(
        _ file: SafetensorsFile, _ attention: Attention, _ inputs: AttendInputs, output: [Float],
        _ record: ForwardRecord, _ scores: ScoreTensors, _ norms: NormTensors
    ) throws -> [NamedTensor] {
        let shape = inputs.shape
        let rows = inputs.layout.rows(shape)
        let given = try file.floats(
            named: outputGradient ?? "dout", shape: rows + [shape.valueDimension], "the gradient of each output")
        let dout =
            inputs.layout == .bhsd
            ? given : exchanged(given, shape.queries, shape.queryHeads, dimension: shape.valueDimension)
        let dlse = try lseGradient.map {
            try file.floats(named: $0, shape: Layout.bhsd.rows(shape), "the gradient of each log-sum-exp")
        }
        let gradients = try attention.backward(
            outputGradient: dout, logSumExpGradient: dlse, queries: inputs.queries, keys: inputs.keys,
            values: inputs.values, output: output, record: record)
        let keys = inputs.layout.keyRows(shape)
        let (width, valueWidth) = (shape.headDimension, shape.valueDimension)
        var tensors = [
            NamedTensor(
                name: "dq", shape: rows + [width], values: inputs.arranged(gradients.queries, dimension: width)),
            NamedTensor(
                name: "dk", shape: keys + [width], values: inputs.arrangedKeys(gradients.keys, dimension: width)),
            NamedTensor(
                name: "dv", shape: keys + [valueWidth],
                values: inputs.arrangedKeys(gradients.values, dimension: valueWidth)),
        ]
        if attention.normaliser.hasSink, attention.sink != .softmax {
            tensors.append(NamedTensor(name: "dsink", shape: [shape.queryHeads], values: gradients.sinks))
        }
        if let bias = scores.bias {
            tensors.append(
                NamedTensor(name: "dbias", shape: try file.tensor(named: bias).shape, values: gradients.bias))
        }
        for (name, values) in [("dslope", gradients.slopes), ("dssmax", gradients.scalableSoftmax)]
        where !values.isEmpty {
            tensors.append(NamedTensor(name: name, shape: [shape.queryHeads], values: values))
        }
        let vectors = [gradients.queryGain, gradients.queryBias, gradients.keyGain, gradients.keyBias]
        for (option, values) in zip(norms.named, vectors) {
            guard let tensor = option.tensor else { continue }
            tensors.append(
                NamedTensor(name: option.gradient, shape: try file.tensor(named: tensor).shape, values: values))
        }
        return tensors
    }
}
