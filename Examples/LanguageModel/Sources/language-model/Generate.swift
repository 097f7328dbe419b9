// SPDX-License-Identifier: Apache-2.0
// Generate.swift - language-model generate: goes on with a prompt.

import ArgumentParser
import LanguageModel

struct Generate: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Goes on with a prompt, and prints the text as it comes.",
        discussion: """
            Special tokens such as <|im_start|> may stand in the prompt. With --conversations several texts go on from one prompt: \
            it is read once, and each forks its cache.
            """)

    @OptionGroup var model: ModelArguments
    @OptionGroup var sampling: SamplingArguments

    @Option(help: "The text to go on with.")
    var prompt: String

    @Option(help: "Most tokens to generate.")
    var tokens: Int = 100

    @Option(help: "Go on in so many ways, in one call per step.")
    var conversations = 1

    @Option(help: "Tokens of the prompt that are read at once.")
    var chunk = LlamaModel.chunk

    @Flag(help: "Print one JSON object: prompt_tokens, tokens, text; and with several conversations those of each.")
    var json = false

    func validate() throws {
        guard (0...1 << 30).contains(tokens) else {
            throw ValidationError("--tokens: expected 0 to \(1 << 30), got \(tokens)")
        }
        guard (1...1024).contains(conversations) else {
            throw ValidationError("--conversations: expected 1 to 1024, got \(conversations)")
        }
        guard chunk >= 1 else { throw ValidationError("--chunk: expected 1 or more, got \(chunk)") }
    }

    struct Continuation: Encodable {
        let tokens: [Int]
        let text: String
    }

    struct Result: Encodable {
        let promptTokens: [Int]
        let tokens: [Int]
        let text: String
        let conversations: [Continuation]?
        let topLogits: [TopLogit]
        let attentionShare: Double
    }

    struct TopLogit: Encodable {
        let token: Int
        let logit: Float
    }

    func run() throws {
        let (tokenizer, model) = try model.load { $0.encode(prompt).count + tokens }
        let promptTokens = tokenizer.encode(prompt)
        guard !promptTokens.isEmpty else { throw Failure("--prompt: expected a text of a token or more") }
        self.model.noteLength(promptTokens.count, of: model)
        var prefix = try model.conversation()
        let progress = Progress("reading the prompt")
        let logits = try model.prefill(promptTokens, &prefix, chunk: chunk) { progress.update($0, of: $1) }
        progress.finish()
        var generation = Generation(model, tokenizer, prefix: prefix, logits: logits, count: conversations) {
            sampling.sampler(stream: $0)
        }
        var streamed = StreamedText()
        let steps = Progress("generating")
        try generation.run(steps: tokens) { step, chosen in
            if json || conversations > 1 {
                steps.update(step, of: tokens)
            } else if let token = chosen[0], !tokenizer.isSpecial(token) {
                try stream(streamed.append(tokenizer.bytes(of: token)))
            }
        }
        steps.finish()
        let continuations = generation.tokens.map { Continuation(tokens: $0, text: tokenizer.decode($0)) }
        if json {
            let top = logits.indices.sorted { (logits[$0], $1) > (logits[$1], $0) }.prefix(5)
            try printJSON(
                Result(
                    promptTokens: promptTokens, tokens: continuations[0].tokens, text: continuations[0].text,
                    conversations: conversations > 1 ? continuations : nil,
                    topLogits: top.map { TopLogit(token: $0, logit: logits[$0]) },
                    attentionShare: model.timings.attentionShare))
        } else if conversations == 1 {
            try emit(streamed.finish())
        } else {
            for (index, continuation) in continuations.enumerated() {
                try emit("[\(index + 1)] \(continuation.text)")
            }
        }
    }
}
