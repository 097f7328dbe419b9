// SPDX-License-Identifier: Apache-2.0
// Attend.swift - quiet attend: attention over the tensors of a file.

import ArgumentParser
import QuietAttention
import Safetensors

struct Attend: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Compute attention over the queries, keys and values of a safetensors file.",
        discussion: """
              out[i] = sum_j p[i][j] v[j]       p[i][j] = e^x[i][j] / (e^s + sum e^x[i])
                                                x[i][j] = q[i].k[j] / sqrt(D)

            with H query heads, L queries and S keys of D channels, values of E channels. H is a multiple of G, the heads of \
            the keys and values. The sink logit s takes the weight that fits no key. Tensors are float32, float16 or \
            bfloat16, or float64, rounded to float32; `out` [batch, H, L, E] is written in float32.

            The options below change the formula, step by step in their order. Prints shapes, kernel set, time, speed, and \
            for each head the mean share of weight that went to the sink.
            """)

    @Argument(help: ArgumentHelp("The safetensors file with queries, keys and values.", valueName: "in.safetensors"))
    var input: String

    @OptionGroup var problem: FileProblem

    @OptionGroup(title: "Scores and weights") var products: ProductsOption

    @OptionGroup(title: "Instead of scores and weights") var recurrence: RecurrenceOptions

    @OptionGroup(title: "Values and output") var outputs: OutputOptions

    @OptionGroup(title: "Gradients") var gradients: GradientOptions

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        try problem.check()
        try problem.norms.check(others: outputs.valueNorm, outputs.outputNorm)
        if let kind = recurrence.recurrent { try recurrence.check(kind, problem, lse: outputs.lse) }
        let normaliser = problem.scores.normaliser
        try gradients.check(normaliser, outputs, isRecurrent: recurrence.recurrent != nil)
        guard products.products == .f32 || recurrence.recurrent == nil else {
            throw ValidationError("--products: expected f32 with --recurrent")
        }
        guard !outputs.lse || normaliser.library.hasSink else {
            throw ValidationError("--lse: the normaliser \(normaliser) has no log-sum-exp")
        }
    }

    func run() throws {
        let file = try SafetensorsFile(path: input)
        try outputs.checkIsNot(input)
        var inputs = try problem.inputs(file)
        let shape = inputs.shape
        let kernels = try problem.machine.kernelSet
        let gate = try outputs.gate.map { name in
            try inputs.checking { try GateTensor(file, name, inputs, kernels: kernels) }
        }
        let norms = problem.norms
        try norms.apply(outputs.valueNorm, to: &inputs.values, dimension: shape.valueDimension, kernels: kernels)
        let method = try AttendMethod(recurrence.recurrent, problem, products: products.library, file, &inputs)

        var computed = try AttendResult(method, inputs, records: gradients.gradients)
        try norms.apply(
            outputs.outputNorm, to: &computed.result.output, dimension: shape.valueDimension, kernels: kernels)
        try gate?.apply(to: &computed.result.output)
        var further: [NamedTensor] = []
        if case .scores(let attention) = method, let record = computed.record {
            further = try gradients.tensors(
                file, attention, inputs, output: computed.result.output, record, problem.scoreTensors,
                problem.normTensors)
        }

        // The report goes first: where it cannot be printed, the run has failed, and a failed run leaves no output behind.
        let tensors = outputTensors(computed.result, inputs) + further
        let prepared = try SafetensorsFile.prepare(tensors, for: outputs.output)
        let report = AttendReport(
            command: self, method: method, inputs: inputs, gate: gate, computed: computed, written: tensors.map(\.name))
        try emit(json ? report.json : report.lines)
        try prepared.commit()
    }

    private func outputTensors(_ result: AttentionResult, _ inputs: AttendInputs) -> [NamedTensor] {
        let shape = inputs.shape
        let output = inputs.arranged(result.output, dimension: shape.valueDimension)
        let rows = inputs.layout.rows(shape)
        var tensors = [NamedTensor(name: "out", shape: rows + [shape.valueDimension], values: output)]
        if outputs.lse {
            // The same in every layout, as FlashAttention has it.
            tensors.append(NamedTensor(name: "lse", shape: Layout.bhsd.rows(shape), values: result.logSumExp))
        }
        return tensors
    }
}
