// SPDX-License-Identifier: Apache-2.0
// Perplexity.swift - language-model perplexity: how well a model foresees a text.

import ArgumentParser
import Foundation
import LanguageModel

struct Perplexity: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Prints the mean negative log-likelihood of a text's first tokens, in nats.",
        discussion: """
            Of every token but the first, given all before it in its window. Without --window there is one window; with it, \
            windows begin half a window after each other, and in each the tokens count that none before had.
            """)

    @OptionGroup var model: ModelArguments

    @Argument(help: "The text, UTF-8.")
    var file: String

    @Option(help: "The first so many tokens of the text, 2 and up.")
    var tokens: Int

    @Option(help: "Tokens of a window, 2 and up.")
    var window: Int?

    @Option(help: "Write the negative log-likelihood of each token but the first to this file, one a line.")
    var losses: String?

    @Flag(help: "Print one JSON object: mean_negative_log_likelihood, perplexity, tokens, seconds and attention_share.")
    var json = false

    func validate() throws {
        guard tokens >= 2 else { throw ValidationError("--tokens: expected 2 or more, got \(tokens)") }
        if let window, window < 2 { throw ValidationError("--window: expected 2 or more, got \(window)") }
    }

    struct Result: Encodable {
        let meanNegativeLogLikelihood, perplexity: Double
        let tokens: Int
        let seconds, attentionShare: Double
    }

    func run() throws {
        // Before the work, which may take minutes.
        let losses = try losses.map(OutputFile.init)
        let (tokenizer, model) = try model.load { _ in min(window ?? tokens, tokens) }
        let all = tokenizer.encode(try text(ofFile: file))
        guard all.count >= tokens else {
            throw Failure("--tokens: expected at most \(all.count), all of \"\(file)\", got \(tokens)")
        }
        let progress = Progress("tokens")
        let found = try model.negativeLogLikelihoods(Array(all[..<tokens]), window: window) {
            progress.update($0, of: $1)
        }
        progress.finish()
        let mean = found.reduce(0, +) / Double(found.count)
        try losses?.write(found.map { String(format: "%.6f\n", $0) }.joined())
        let timings = model.timings
        let result = Result(
            meanNegativeLogLikelihood: mean, perplexity: exp(mean), tokens: tokens,
            seconds: timings.total / .seconds(1), attentionShare: timings.attentionShare)
        if json { return try printJSON(result) }
        try emit(
            String(
                format: "mean negative log-likelihood %.6f nats, perplexity %.4f, over %d tokens", mean, exp(mean),
                tokens),
            String(format: "%.1f s, %.0f %% of it attention", result.seconds, 100 * result.attentionShare))
    }
}
