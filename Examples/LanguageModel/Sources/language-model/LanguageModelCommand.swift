// SPDX-License-Identifier: Apache-2.0
// LanguageModelCommand.swift - the command line: its commands, and what they share.

import ArgumentParser
import LanguageModel
import TensorFiles

@main
struct LanguageModelCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "language-model",
        abstract: "Runs a language model from a GGUF file on QuietAttention.",
        discussion: """
            Models of the Llama architecture with Q4_1 and Q8_0 weights and a smollm tokenizer; the script fetch gets one.
            Results go to standard output, progress and errors to standard error.
            """,
        subcommands: [
            Generate.self, Chat.self, Tokenize.self, Perplexity.self, Capture.self, Measure.self, Bench.self,
        ])
}

/// A failure that is put in one line.
struct Failure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// Reads a text file.
func text(ofFile path: String) throws -> String {
    guard let text = String(validating: try bytes(ofFile: path), as: UTF8.self) else {
        throw Failure("\"\(path)\" is not UTF-8")
    }
    return text
}
