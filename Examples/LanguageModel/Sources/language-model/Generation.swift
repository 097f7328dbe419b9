// SPDX-License-Identifier: Apache-2.0
// Generation.swift - several conversations that go on from one prompt, a token each per step.

import LanguageModel

/// Conversations that share what was read so far, each with a sampler of its own.
struct Generation {
    private let model: LlamaModel
    private let tokenizer: Tokenizer
    private var conversations: [Conversation]
    private var samplers: [Sampler]
    private var logits: [[Float]]
    /// Those that have not come to their end.
    private var open: [Int]
    /// What each has generated, without the token that ended it.
    private(set) var tokens: [[Int]]

    /// - Parameters:
    ///   - prefix: the prompt, read.
    ///   - logits: of its last token.
    init(
        _ model: LlamaModel, _ tokenizer: Tokenizer, prefix: Conversation, logits: [Float], count: Int,
        sampler: (Int) -> Sampler
    ) {
        (self.model, self.tokenizer) = (model, tokenizer)
        conversations = Array(repeating: prefix, count: count)
        samplers = (0..<count).map(sampler)
        self.logits = Array(repeating: logits, count: count)
        tokens = Array(repeating: [], count: count)
        open = Array(0..<count)
    }

    /// The first conversation: prompt and answer.
    var first: Conversation { conversations[0] }

    /// Goes on until all conversations have ended or have so many tokens.
    ///
    /// - Parameter body: called after each step with its number, from 1, and what each conversation has chosen; nil where it
    ///   has ended.
    mutating func run(steps: Int, _ body: (Int, [Int?]) throws -> Void) throws {
        for step in 0..<steps {
            var chosen = [Int?](repeating: nil, count: conversations.count)
            for index in open {
                let token = samplers[index].next(logits[index])
                if token != tokenizer.endToken { chosen[index] = token }
            }
            open.removeAll { chosen[$0] == nil }
            for index in open { tokens[index].append(chosen[index]!) }
            try body(step + 1, chosen)
            // The last tokens need no logits.
            if open.isEmpty || step == steps - 1 { return }
            try advance(chosen)
        }
    }

    private mutating func advance(_ chosen: [Int?]) throws {
        var batch = open.map { conversations[$0] }
        // One owner of each page: appending to a shared one would copy it.
        let empty = try model.conversation()
        for index in open { conversations[index] = empty }
        let result = try model.evaluate(open.map { [chosen[$0]!] }, &batch)
        let count = result.count / open.count
        for (row, index) in open.enumerated() {
            conversations[index] = batch[row]
            logits[index] = Array(result[row * count..<(row + 1) * count])
        }
    }
}
