// SPDX-License-Identifier: Apache-2.0
// Chat.swift - language-model chat: turn by turn.

import ArgumentParser
import LanguageModel

struct Chat: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Answers the lines of standard input, turn by turn.",
        discussion: """
            Turns are written as the file's chat template has them: <|im_start|>role, text, <|im_end|>. The cache keeps all \
            turns before; /undo takes the last one back, /quit ends.
            """)

    @OptionGroup var model: ModelArguments
    @OptionGroup var sampling: SamplingArguments

    @Option(help: "What the model is told first; without it, what the template says.")
    var system: String?

    @Option(help: "Most tokens of an answer.")
    var tokens = 500

    @Option(help: "Ask this, print the answer and end.")
    var message: String?

    @Flag(help: "Print one JSON object per turn: prompt_tokens, tokens, text.")
    var json = false

    func validate() throws {
        guard tokens >= 1 else { throw ValidationError("--tokens: expected 1 or more, got \(tokens)") }
    }

    struct Turn: Encodable {
        let promptTokens, tokens: [Int]
        let text: String
    }

    func run() throws {
        // Of dynamic NTK, the angles for this length hold for all turns.
        let (tokenizer, model) = try model.load { _ in 1 << 16 }
        let template = try ChatTemplate(tokenizer)
        var session = Session(conversation: try model.conversation(), unread: template.opening(system: system))
        var earlier: [Session] = []
        while let line = try message ?? nextLine() {
            if line == "/quit" { return }
            if line == "/undo" {
                session = earlier.popLast() ?? session
                continue
            }
            earlier.append(session)
            session.unread += template.question(line)
            try answer(&session, model, tokenizer, sampling.sampler(stream: earlier.count))
            session.unread += template.close
            if message != nil { return }
        }
    }

    /// What was said. A copy is a fork: it shares the pages of the cache.
    private struct Session {
        var conversation: Conversation
        /// Said, and not read by the model yet.
        var unread: [Int]
    }

    private func nextLine() throws -> String? {
        if !json { try stream("> ") }
        return readLine()
    }

    private func answer(
        _ session: inout Session, _ model: LlamaModel, _ tokenizer: Tokenizer, _ sampler: Sampler
    ) throws {
        let prompt = session.unread
        let progress = Progress("reading")
        let logits = try model.prefill(prompt, &session.conversation) { progress.update($0, of: $1) }
        progress.finish()
        var generation = Generation(
            model, tokenizer, prefix: session.conversation, logits: logits, count: 1
        ) { _ in sampler }
        var streamed = StreamedText()
        try generation.run(steps: tokens) { _, chosen in
            guard !json, let token = chosen[0], !tokenizer.isSpecial(token) else { return }
            try stream(streamed.append(tokenizer.bytes(of: token)))
        }
        if session.conversation.count <= model.configuration.contextLength {
            self.model.noteLength(generation.first.count, of: model)
        }
        let tokens = generation.tokens[0]
        let read = generation.first.count - session.conversation.count
        session = Session(conversation: generation.first, unread: Array(tokens.dropFirst(read)))
        if json {
            try printJSON(Turn(promptTokens: prompt, tokens: tokens, text: tokenizer.decode(tokens)))
        } else {
            try emit(streamed.finish())
        }
    }
}
