// SPDX-License-Identifier: Apache-2.0
// Capture.swift - language-model capture: queries, keys, values and the residual stream of layers, as a safetensors file.

import ArgumentParser
import LanguageModel
import Safetensors

struct Capture: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Writes what attention sees in some layers, for quiet attend and quiet inspect.",
        discussion: """
            For each layer n: layer<n>.q [1, heads, tokens, d], layer<n>.k and layer<n>.v [1, kv heads, tokens, d], float32, \
            queries and keys turned by their positions in halves (with --unrotated as projected), and layer<n>.residual \
            [tokens, width], the stream that enters the layer.
            """)

    @OptionGroup var model: ModelArguments

    @Argument(help: "The text, UTF-8.")
    var file: String

    @Option(help: "The layers, such as 0,12,28.")
    var layers: LayerList

    @Option(help: "The file to write.")
    var output: String

    @Option(help: "The first so many tokens of the text; without it, all.")
    var tokens: Int?

    @Flag(help: "Queries and keys before the rotation.")
    var unrotated = false

    @Flag(help: "Print one JSON object: tokens and the names of the tensors.")
    var json = false

    func validate() throws {
        if let tokens, tokens < 1 { throw ValidationError("--tokens: expected 1 or more, got \(tokens)") }
    }

    struct Result: Encodable {
        let tokens: [Int]
        let tensors: [String]
    }

    func run() throws {
        if !unrotated, case .none = model.ropeScaling {
        } else if !unrotated {
            throw ValidationError("--rope-scaling: only the model's own rotation is captured; --unrotated goes without")
        }
        let (tokenizer, model) = try model.load { _ in 1 << 16 }
        let layers = try layers.checked(model.configuration.layers)
        let all = tokenizer.encode(try text(ofFile: file))
        guard !all.isEmpty else { throw Failure("\"\(file)\" has no text") }
        let count = tokens ?? all.count
        guard count <= all.count else {
            throw Failure("--tokens: expected 1 to \(all.count), all of \"\(file)\", got \(count)")
        }
        var record = CapturedLayers(model.configuration, layers: layers)
        let progress = Progress("tokens")
        try record.run(model, Array(all[..<count])) { progress.update($0, of: $1) }
        progress.finish()
        var tensors: [NamedTensor] = []
        for layer in layers.sorted() {
            for tensor in record.tensors(layer, rotated: !unrotated) {
                tensors.append(
                    NamedTensor(name: "layer\(layer).\(tensor.name)", shape: tensor.shape, values: tensor.values))
            }
        }
        try SafetensorsFile.write(tensors, metadata: ["model": self.model.model, "tokens": "\(count)"], to: output)
        let names = tensors.map(\.name)
        if json { return try printJSON(Result(tokens: Array(all[..<count]), tensors: names)) }
        try emit("\(output): \(names.joined(separator: ", ")), \(count) tokens")
    }
}
