// SPDX-License-Identifier: Apache-2.0
// QuietProcess.swift - runs the command line that was built with the tests.

import Foundation
import Testing

/// What a run of `quiet` left behind.
struct QuietProcess {
    let status: Int32
    let output: String
    let diagnostics: String

    /// Runs `quiet` with these arguments, and these variables besides those of the test.
    init(_ arguments: String..., environment: [String: String] = [:]) throws {
        try self.init(arguments, environment: environment)
    }

    init(_ arguments: [String], environment: [String: String] = [:]) throws {
        let process = Process()
        process.executableURL = try Self.executable()
        process.arguments = arguments
        var variables = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        // Under AddressSanitizer the parser of arguments is found to leak when it refuses an option of a group.
        variables["ASAN_OPTIONS"] = [variables["ASAN_OPTIONS"], "detect_leaks=0"].compactMap(\.self).joined(
            separator: ":")
        process.environment = variables
        let (output, diagnostics) = (Pipe(), Pipe())
        process.standardOutput = output
        process.standardError = diagnostics
        try process.run()
        // Neither fills its pipe before the other is read: both are short.
        self.output = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        self.diagnostics = String(decoding: diagnostics.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        // A signal is no status: a trap must not look like an orderly failure.
        try #require(
            process.terminationReason == .exit, "quiet \(arguments) ended with signal \(process.terminationStatus)")
        status = process.terminationStatus
    }

    /// The members of the JSON object that was printed.
    var json: [String: Any] {
        get throws {
            try #require(try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any])
        }
    }

    /// The executable lies beside the test bundle, in the folder of the build.
    private static func executable() throws -> URL {
        #if os(macOS)
            let bundle = try #require(Bundle.allBundles.first { $0.bundlePath.hasSuffix(".xctest") }).bundleURL
        #else
            let bundle = URL(fileURLWithPath: CommandLine.arguments[0])
        #endif
        let url = bundle.deletingLastPathComponent().appendingPathComponent("quiet")
        try #require(FileManager.default.isExecutableFile(atPath: url.path), "no quiet beside \(bundle.path)")
        return url
    }
}
