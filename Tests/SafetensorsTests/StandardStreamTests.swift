// SPDX-License-Identifier: Apache-2.0
// StandardStreamTests.swift - quiet whose standard output is closed, full or a pipe without a reader: status 1, and no output file.

import Foundation
import Testing

@testable import Safetensors

extension CommandLineTests {
    static let lostOutputs: [QuietProcess.Output] = {
        var outputs: [QuietProcess.Output] = [.closed, .brokenPipe]
        // Where every write finds the disk full; Linux has it.
        if FileManager.default.fileExists(atPath: "/dev/full") { outputs.append(.file("/dev/full")) }
        return outputs
    }()

    @Test(arguments: lostOutputs)
    func reportsThatCannotBePrinted(output: QuietProcess.Output) throws {
        let input = try inputs()
        let kept = try folder.file([1, 2, 3], name: "kept")
        for name in ["kept", "new"] {
            let run = try QuietProcess(["attend", input, "--output", folder(name)], output: output)
            #expect(run.status == 1 && run.diagnostics.hasPrefix("quiet: cannot write to standard output: "))
            #expect(run.diagnostics.filter { $0 == "\n" }.count == 1)
        }
        #expect(try bytes(ofFile: kept) == [1, 2, 3])
        // The input, and nothing half done.
        #expect(try folder.names == ["in.safetensors", "kept"])
    }

    @Test(
        arguments: lostOutputs,
        [["inspect", CommandLineTests.example], ["info"], ["--help"], ["--version"], ["attend", "--help"]])
    func otherOutputs(output: QuietProcess.Output, arguments: [String]) throws {
        let run = try QuietProcess(arguments, output: output)
        #expect(run.status == 1 && run.diagnostics.hasPrefix("quiet: cannot write to standard output: "))
    }

    /// Beyond the size that the system allows a file, a write fails: no signal, and nothing half done.
    @Test func filesThatMayNotGrow() throws {
        let run = try QuietProcess(
            ["attend", CommandLineTests.example, "--output", folder("out")], limit: "-f 1")
        #expect(run.status == 1 && run.diagnostics.filter { $0 == "\n" }.count == 1, "\(run.diagnostics)")
        #expect(try folder.names.isEmpty)
    }

    /// Names that would steer a terminal, or turn what stands behind them, arrive escaped; JSON means the same name.
    @Test func misleadingNames() throws {
        let name = "a\u{9b}31m\u{202e}gnp.\u{2066}\u{7f}\u{a0}é\u{e0041}"
        let path = folder("in.safetensors")
        try SafetensorsFile.write([NamedTensor(name: name, shape: [1], values: [1])], to: path)
        let text = try QuietProcess("inspect", path)
        let escaped = "\"a\\u{9b}31m\\u{202e}gnp.\\u{2066}\\u{7f}\u{a0}é\\u{e0041}\""
        #expect(text.output.contains(escaped), "\(text.output)")
        let json = try QuietProcess("inspect", path, "--json")
        let found = try #require(try json.json["tensors"] as? [[String: Any]])
        #expect((found.first?["name"] as? String).map { Array($0.utf8) } == Array(name.utf8))
        let failure = try QuietProcess("inspect", path, "--tensor", "x")
        let wrongOutput = try QuietProcess(["attend", path, "--output", folder("\u{202e}/x")])
        for shown in [text.output, json.output, failure.diagnostics, wrongOutput.diagnostics] {
            #expect(!shown.unicodeScalars.contains { $0 != "\n" && $0.misleadsWhenShown }, "\(shown)")
        }
        #expect(failure.diagnostics.contains(escaped))
    }
}
