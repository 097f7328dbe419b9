// SPDX-License-Identifier: Apache-2.0
// Measure.swift - language-model measure: what heads do with a text, and where outliers are, layer by layer.

import ArgumentParser
import LanguageModel

struct Measure: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract:
            "Prints, as JSON, how the heads of layers spread their weight over a text, and the outliers of the stream.",
        discussion: """
            The text is read as the model was trained; --sink and --scaling change the attention that is measured, of the queries \
            and keys that come out. Means over rows leave out the first 64. Classes of tokens: first, blank, punctuation, word.
            """)

    @OptionGroup var model: ModelArguments

    @Argument(help: "The text, UTF-8.")
    var file: String

    @Option(help: "The first so many tokens of the text, 65 and up.")
    var tokens: Int

    @Option(help: "The layers, such as 0,12,28; without it, all.")
    var layers: LayerList?

    func validate() throws {
        guard tokens > LayerMeasurement.firstRow else {
            throw ValidationError("--tokens: expected \(LayerMeasurement.firstRow + 1) or more, got \(tokens)")
        }
    }

    struct Result: Encodable {
        let tokens: Int
        let tokensByClass: [Int]
        let layers: [LayerMeasurement]
    }

    func run() throws {
        let file = try GGUFFile(path: model.model)
        let tokenizer = try Tokenizer(file)
        let measured = try model.options(LlamaConfiguration(file), longest: tokens)
        let trained = ModelOptions(threads: measured.threads, projections: measured.projections)
        let model = try LlamaModel(file, options: trained)
        let all = tokenizer.encode(try text(ofFile: self.file))
        guard all.count >= tokens else {
            throw Failure("--tokens: expected at most \(all.count), all of \"\(self.file)\", got \(tokens)")
        }
        let text = Array(all[..<tokens])
        let layers = try layers?.checked(model.configuration.layers) ?? Set(0..<model.configuration.layers)
        var captured = CapturedLayers(model.configuration, layers: layers)
        let progress = Progress("reading")
        try captured.run(model, text) { progress.update($0, of: $1) }
        progress.finish()
        let classes = TokenClass.classes(text, tokenizer)
        let steps = Progress("layers")
        let measurements = try layers.sorted().enumerated().map { index, layer in
            steps.update(index, of: layers.count)
            return try LayerMeasurement(
                captured, layer: layer, model.configuration, tokens: text, classes: classes, options: measured)
        }
        steps.finish()
        try printJSON(
            Result(
                tokens: tokens, tokensByClass: TokenClass.allCases.map { kind in classes.count { $0 == kind } },
                layers: measurements))
    }
}
