// SPDX-License-Identifier: Apache-2.0
// CommandLineTests.swift - the commands on the tiny model: what they print, and what they refuse.

import Foundation
import LanguageModel
import Safetensors
import Testing

@Suite struct CommandLineTests {
    struct Run {
        let status: Int32
        let output, diagnostics: String

        /// - Parameter sink: what standard output goes to; nil: into ``output``.
        init(_ arguments: [String], input: String = "", sink: FileHandle? = nil) throws {
            let process = Process()
            process.executableURL = try Self.executable()
            process.arguments = arguments
            let (stdin, stdout, stderr) = (Pipe(), Pipe(), Pipe())
            (process.standardInput, process.standardOutput, process.standardError) = (stdin, sink ?? stdout, stderr)
            try process.run()
            try stdin.fileHandleForWriting.write(contentsOf: Data(input.utf8))
            try stdin.fileHandleForWriting.close()
            if sink != nil { try stdout.fileHandleForWriting.close() }
            output = String(decoding: stdout.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            diagnostics = String(decoding: stderr.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            try #require(process.terminationReason == .exit, "\(arguments) ended with a signal")
            status = process.terminationStatus
        }

        var json: [String: Any] {
            get throws {
                try #require(status == 0, "\(diagnostics)")
                return try #require(try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any])
            }
        }

        /// The executable lies beside the test bundle, in the folder of the build.
        private static func executable() throws -> URL {
            #if os(macOS)
                let bundle = try #require(Bundle.allBundles.first { $0.bundlePath.hasSuffix(".xctest") }).bundleURL
            #else
                let bundle = URL(fileURLWithPath: CommandLine.arguments[0])
            #endif
            let url = bundle.deletingLastPathComponent().appendingPathComponent("language-model")
            try #require(
                FileManager.default.isExecutableFile(atPath: url.path), "no language-model beside \(bundle.path)")
            return url
        }
    }

    let model = TinyModel.shared.path
    let answer = TinyModel.shared.answers[0]

    func file(_ text: String) throws -> TemporaryFile { try TemporaryFile.kept(Array(text.utf8)) }

    @Test func generate() throws {
        let arguments = ["generate", model, "--prompt", answer.text, "--tokens", "12", "--greedy"]
        for threads in ["1", "2"] {
            let json = try Run(arguments + ["--threads", threads, "--json"]).json
            #expect(json["prompt_tokens"] as? [Int] == answer.tokens && json["tokens"] as? [Int] == answer.greedy)
            #expect(try json["text"] as? String == TinyModel.tokenizer.decode(answer.greedy))
        }
        let text = try Run(arguments)
        #expect(try text.status == 0 && text.output == TinyModel.tokenizer.decode(answer.greedy) + "\n")
        #expect(try Run(arguments + ["--chunk", "3", "--json"]).json["tokens"] as? [Int] == answer.greedy)
    }

    @Test func severalConversations() throws {
        let arguments = ["generate", model, "--prompt", answer.text, "--tokens", "8", "--seed", "7", "--json"]
        let json = try Run(arguments + ["--conversations", "3", "--temperature", "2"]).json
        let texts = try #require(json["conversations"] as? [[String: Any]]).map { $0["tokens"] as? [Int] }
        #expect(texts.count == 3 && Set(texts).count == 3)
        #expect(try Run(arguments + ["--temperature", "2"]).json["tokens"] as? [Int] == texts[0])
    }

    @Test func chat() throws {
        let arguments = ["chat", model, "--greedy", "--tokens", "5", "--json"]
        let run = try Run(arguments, input: "hello\nthe cat\n/undo\nthe cat\n/undo\n/undo\nhello\n/quit\n")
        let lines = run.output.split(separator: "\n")
        #expect(run.status == 0 && lines.count == 4)
        #expect(lines[1] == lines[2] && lines[0] == lines[3] && lines[0] != lines[1])
        #expect(try Run(arguments + ["--message", "hello"]).output == lines[0] + "\n")
    }

    @Test func tokenize() throws {
        let text = try file(answer.text)
        #expect(try Run(["tokenize", model, text.path, "--json"]).json["tokens"] as? [Int] == answer.tokens)
        let lines = try Run(["tokenize", model, text.path]).output
        #expect(lines == answer.tokens.map { "\($0)\n" }.joined())
        let two = try file("hello\0the cat\0")
        let json = try Run(["tokenize", model, two.path, "--nul", "--json"]).json
        #expect(try json["texts"] as? [[Int]] == ["hello", "the cat"].map { try TinyModel.tokenizer.encode($0) })
    }

    @Test func perplexity() throws {
        let text = try file(answer.text)
        let arguments = ["perplexity", model, text.path, "--tokens", "\(answer.tokens.count)"]
        let mean = try Run(arguments + ["--json"]).json["mean_negative_log_likelihood"] as? Double
        #expect(abs(try #require(mean) - answer.meanNegativeLogLikelihood) < 1e-5)
        for options in [
            ["--window", "4"], ["--cache", "int8"], ["--sink", "softmax1"], ["--rope-scaling", "pi=2"],
            ["--rope-scaling", "yarn=2"], ["--scaling", "clipped-log=4"],
        ] {
            let other = try Run(arguments + options + ["--json"]).json["mean_negative_log_likelihood"] as? Double
            #expect(other != nil && other != mean, "\(options)")
        }
    }

    @Test func ropeScalingsHaveTwoNames() throws {
        let text = try file(answer.text)
        func mean(_ scaling: String) throws -> Double {
            let run = try Run(["perplexity", model, text.path, "--tokens", "8", "--rope-scaling", scaling, "--json"])
            return try #require(run.json["mean_negative_log_likelihood"] as? Double)
        }
        for (name, other) in [("linear=2", "pi=2"), ("dynamic=4", "dynamic-ntk=4"), ("default", "none")] {
            #expect(try mean(name) == mean(other))
        }
        #expect(try mean("linear=2") != mean("none"))
    }

    @Test func capture() throws {
        let text = try file(answer.text)
        let output = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).safetensors").path
        defer { try? FileManager.default.removeItem(atPath: output) }
        let run = try Run(["capture", model, text.path, "--layers", "0-1", "--output", output, "--json"])
        #expect(try run.json["tokens"] as? [Int] == answer.tokens)
        let file = try SafetensorsFile(path: output)
        let count = answer.tokens.count
        #expect(try file.tensor(named: "layer1.q").shape == [1, 2, count, 32] && file.tensors.count == 8)
        #expect(try file.floats(named: "layer0.residual").count == count * 64)
    }

    @Test func measureAndBench() throws {
        let text = try file(String(repeating: answer.text + " ", count: 8))
        let json = try Run(["measure", model, text.path, "--tokens", "80", "--sink", "softmax1"]).json
        #expect((json["layers"] as? [Any])?.count == 2)
        let bench = try Run(["bench", model, "--context", "20", "--tokens", "4", "--repeats", "2", "--json"]).json
        #expect((bench["share_of_bandwidth"] as? Double ?? 0) > 0)
    }

    /// Every command, and the question for help, fails where its result cannot be put out.
    @Test func outputThatIsLost() throws {
        let text = try file(String(repeating: answer.text + " ", count: 8))
        let commands = [
            ["generate", model, "--prompt", "x", "--tokens", "2"],
            ["generate", model, "--prompt", "x", "--tokens", "2", "--json"],
            ["generate", model, "--prompt", "x", "--tokens", "2", "--conversations", "2"],
            ["chat", model, "--message", "x", "--tokens", "2"], ["chat", model, "--message", "x", "--json"],
            ["tokenize", model, text.path], ["perplexity", model, text.path, "--tokens", "5"],
            ["measure", model, text.path, "--tokens", "70"],
            ["bench", model, "--context", "5", "--tokens", "1", "--repeats", "1"], ["--help"],
        ]
        for arguments in commands {
            let left = Pipe()
            try left.fileHandleForReading.close()
            var sinks = [left.fileHandleForWriting]
            #if os(Linux)
                sinks.append(try #require(FileHandle(forWritingAtPath: "/dev/full")))
            #endif
            for sink in sinks {
                let run = try Run(arguments, sink: sink)
                #expect(run.status == 1, "\(arguments)")
                #expect(run.diagnostics.contains("cannot write to standard output"), "\(run.diagnostics)")
            }
        }
    }

    /// The file of losses is opened before the work, and what stands there is written to.
    @Test func losses() throws {
        let text = try file(answer.text)
        let arguments = ["perplexity", model, text.path, "--tokens", "\(answer.tokens.count)", "--losses"]
        let (target, link) = (try file("before"), FileManager.default.temporaryDirectory.path + "/link-\(UUID())")
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: target.path)
        defer { try? FileManager.default.removeItem(atPath: link) }
        #expect(try Run(arguments + [link]).status == 0)
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: link) == target.path)
        let lines = try String(contentsOfFile: target.path, encoding: .utf8).split(separator: "\n").map { Double($0) }
        #expect(lines.count == answer.tokens.count - 1 && !lines.contains(nil))
        let missing = try Run(["perplexity", "missing.gguf", text.path, "--tokens", "2", "--losses", "/missing/x"])
        #expect(missing.status == 1 && missing.diagnostics.contains("cannot open \"/missing/x\""))
        #if os(Linux)
            let full = try Run(arguments + ["/dev/full"])
            #expect(full.status == 1 && full.diagnostics.contains("cannot write \"/dev/full\": No space left"))
        #endif
    }

    @Test func longerThanTrained() throws {
        let prompt = String(repeating: "the cat ", count: 200)
        let run = try Run(["generate", model, "--prompt", prompt, "--tokens", "1", "--json"])
        let count = try #require(try run.json["prompt_tokens"] as? [Int]).count
        let trained = try LlamaConfiguration(GGUFFile(path: model)).contextLength
        let note = "note: \(count) tokens, and the model was trained on \(trained): "
        #expect(run.diagnostics == note + "--rope-scaling yarn=2 stretches it\n")
        let scaled = try Run(["generate", model, "--prompt", prompt, "--tokens", "1", "--rope-scaling", "yarn=4"])
        #expect(scaled.status == 0 && scaled.diagnostics.isEmpty)
        #expect(try Run(["generate", model, "--prompt", "the cat", "--tokens", "1"]).diagnostics.isEmpty)
    }

    @Test func refused() throws {
        let text = try file("hello the cat")
        let empty = try file("")
        let broken = try TemporaryFile.kept(Array(try TinyModel.bytes.prefix(20_000)))
        for (arguments, status, words) in [
            (["generate", "missing.gguf", "--prompt", "x"], 1, "cannot open \"missing.gguf\""),
            (["generate", broken.path, "--prompt", "x"], 1, "takes"),
            (["generate", text.path, "--prompt", "x"], 1, "not a GGUF file"),
            (["generate", model, "--prompt", ""], 1, "--prompt"),
            (["generate", model, "--prompt", "x", "--temperature", "0"], 64, "--temperature"),
            (["generate", model, "--prompt", "x", "--threads", "0"], 64, "--threads"),
            (["generate", model, "--prompt", "x", "--threads", "99999999999"], 64, "--threads"),
            (["generate", model, "--prompt", "x", "--tokens", "\(Int.max)"], 64, "--tokens"),
            (["bench", model, "--context", "\(Int.max)"], 64, "--context"),
            (["bench", model, "--tokens", "\(Int.max)"], 64, "--tokens"),
            (["capture", model, empty.path, "--layers", "0", "--output", "x"], 1, "has no text"),
            (["generate", model, "--prompt", "x", "--kernels", "none"], 1, "kernels"),
            (["generate", model, "--prompt", "x", "--projection-kernels", "none"], 1, "projection kernels"),
            (["tokenize", model, "missing.txt"], 1, "cannot open \"missing.txt\""),
            (["perplexity", model, text.path, "--tokens", "50"], 1, "--tokens: expected at most"),
            (["perplexity", model, text.path, "--tokens", "1"], 64, "--tokens"),
            (["perplexity", model, text.path, "--tokens", "2", "--rope-scaling", "pi"], 64, "--rope-scaling"),
            (["perplexity", model, text.path, "--tokens", "2", "--rope-scaling", "pi=0.5"], 1, "factor"),
            (["perplexity", model, text.path, "--tokens", "2", "--sink-layers", "2"], 1, "layer 2"),
            (["capture", model, text.path, "--layers", "9", "--output", "x"], 1, "layer 9"),
            (["capture", model, text.path, "--layers", "0", "--output", "/"], 1, "regular file"),
        ] {
            let run = try Run(arguments)
            #expect(run.status == status && run.output.isEmpty, "\(arguments): \(run.status) \(run.output)")
            #expect(run.diagnostics.contains(words), "\(arguments): \(run.diagnostics)")
            if status == 1 { #expect(run.diagnostics.split(separator: "\n").count == 1, "\(run.diagnostics)") }
        }
    }
}
