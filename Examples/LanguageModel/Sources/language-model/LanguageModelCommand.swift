// SPDX-License-Identifier: Apache-2.0
// LanguageModelCommand.swift - the command line: its commands, and what they share.

import ArgumentParser
import COpenBLAS
import LanguageModel
import Safetensors

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

    static func main() {
        restart_with_openblas_kernels(CommandLine.unsafeArgv)
        prepareStandardStreams()
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch {
            end(error)
        }
    }

    /// Says what is wrong, or answers a question for help, which may not fit either.
    private static func end(_ error: any Error) -> Never {
        guard exitCode(for: error) == .success else { exit(withError: error) }
        do { try emit(fullMessage(for: error)) } catch { exit(withError: error) }
        exit()
    }
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
