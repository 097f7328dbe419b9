// SPDX-License-Identifier: Apache-2.0
// Tokenize.swift - language-model tokenize: the tokens of a file.

import ArgumentParser
import LanguageModel

struct Tokenize: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Prints the tokens of a text file.",
        discussion: "The file is UTF-8; special tokens such as <|im_start|> may stand in it.")

    @Argument(help: "The model, a GGUF file.")
    var model: String

    @Argument(help: "The text.")
    var file: String

    @Flag(name: .customLong("nul"), help: "The file holds several texts, each ended by a byte of zero.")
    var separatedByNul = false

    @Flag(help: "Print one JSON object: tokens, of all texts together; with --nul also texts, the tokens of each.")
    var json = false

    struct Result: Encodable {
        let tokens: [Int]
        let texts: [[Int]]?
    }

    func run() throws {
        let tokenizer = try Tokenizer(GGUFFile(path: model))
        let text = try text(ofFile: file)
        let texts =
            separatedByNul ? text.split(separator: "\0", omittingEmptySubsequences: false).dropLast() : [text[...]]
        let tokens = texts.map { tokenizer.encode(String($0)) }
        if json {
            try printJSON(Result(tokens: tokens.flatMap(\.self), texts: separatedByNul ? tokens : nil))
        } else {
            let separator = separatedByNul ? " " : "\n"
            try stream(tokens.map { $0.map(String.init).joined(separator: separator) + "\n" }.joined())
        }
    }
}
