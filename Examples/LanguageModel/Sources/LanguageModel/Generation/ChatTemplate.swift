// SPDX-License-Identifier: Apache-2.0
// ChatTemplate.swift - turns of a conversation as a model was trained to see them.

/// The ChatML form of turns: `<|im_start|>role`, a new line, the text, `<|im_end|>`, a new line.
///
/// Templates are programs in the language Jinja, which this does not run: it recognises the form by its two special tokens.
public struct ChatTemplate {
    private let tokenizer: Tokenizer
    private let begin, end: Int
    /// What the template says where no system message is given; nil if nothing.
    public let defaultSystem: String?

    /// What ends a turn after its text.
    public let close: [Int]

    /// - Throws: ``GGUFError`` where the file has no template of this form.
    public init(_ tokenizer: Tokenizer) throws(GGUFError) {
        let template = tokenizer.chatTemplate ?? ""
        let (begin, end) = (tokenizer.encode("<|im_start|>"), tokenizer.encode("<|im_end|>"))
        guard template.contains("<|im_start|>"), template.contains("<|im_end|>"), begin.count == 1, end.count == 1
        else {
            throw .invalidValue(
                key: "tokenizer.chat_template", found: template, expected: "turns of <|im_start|> and <|im_end|>")
        }
        (self.tokenizer, self.begin, self.end) = (tokenizer, begin[0], end[0])
        close = end + tokenizer.encode("\n", parsesSpecials: false)
        defaultSystem = Self.between(template, "<|im_start|>system\n", "<|im_end|>")
    }

    private static func between(_ text: String, _ start: String, _ end: String) -> String? {
        guard let from = text.firstRange(of: start), let to = text[from.upperBound...].firstRange(of: end) else {
            return nil
        }
        let found = String(text[from.upperBound..<to.lowerBound])
        // An expression of the template stands for what a caller gives, not for a text.
        return found.contains("{") || found.contains("'") ? nil : found
    }

    /// What stands before the first question.
    public func opening(system: String?) -> [Int] {
        (system ?? defaultSystem).map { turn("system", $0) + close } ?? []
    }

    /// A question, and the beginning of its answer. Special tokens in the text are characters.
    public func question(_ text: String) -> [Int] {
        turn("user", text) + close + turn("assistant", "")
    }

    private func turn(_ role: String, _ text: String) -> [Int] {
        // In one piece: where a line ends and the text begins, bytes may be merged.
        [begin] + tokenizer.encode("\(role)\n\(text)", parsesSpecials: false)
    }
}
