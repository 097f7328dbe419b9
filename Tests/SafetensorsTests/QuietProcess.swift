// SPDX-License-Identifier: Apache-2.0
// QuietProcess.swift - runs the command line that was built with the tests.

import Foundation
import Testing

/// What a run of `quiet` left behind.
struct QuietProcess {
    let status: Int32
    let output: String
    let diagnostics: String

    /// Where standard output leads.
    enum Output: Sendable {
        case captured, closed
        case file(String)
        /// Into a pipe that nobody reads.
        case brokenPipe
    }

    /// Runs `quiet` with these arguments, and these variables besides those of the test.
    init(_ arguments: String..., environment: [String: String] = [:]) throws {
        try self.init(arguments, environment: environment)
    }

    /// - Parameter limit: of `ulimit`, such as `-f 1`, under which it runs.
    init(
        _ arguments: [String], environment: [String: String] = [:], output destination: Output = .captured,
        limit: String? = nil
    ) throws {
        let folder = try TemporaryFolder()
        var variables = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        // Under AddressSanitizer the parser of arguments is found to leak when it refuses an option of a group.
        variables["ASAN_OPTIONS"] = [variables["ASAN_OPTIONS"], "detect_leaks=0"].compactMap(\.self).joined(
            separator: ":")

        var command = [try Self.executable().path] + arguments
        if let limit { command = ["/bin/sh", "-c", "ulimit \(limit) && exec \"$0\" \"$@\""] + command }
        let status = try Self.run(
            command[0], Array(command[1...]), variables: variables.map { "\($0)=\($1)" },
            output: destination, files: (folder("output"), folder("diagnostics")))
        // A signal is no status: a trap must not look like an orderly failure.
        try #require(status & 0x7f == 0, "quiet \(arguments) ended with signal \(status & 0x7f)")
        self.status = (status >> 8) & 0xff
        if case .captured = destination {
            output = String(decoding: try bytes(ofFile: folder("output")), as: UTF8.self)
        } else {
            output = ""
        }
        diagnostics = String(decoding: try bytes(ofFile: folder("diagnostics")), as: UTF8.self)
    }

    /// Returns what waitpid reports. Not Foundation's Process, in which LeakSanitizer finds leaks.
    private static func run(
        _ path: String, _ arguments: [String], variables: [String], output: Output,
        files: (output: String, diagnostics: String)
    ) throws -> Int32 {
        #if canImport(Darwin)
            var actions: posix_spawn_file_actions_t?
        #else
            var actions = posix_spawn_file_actions_t()
        #endif
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        var ends: [Int32] = [-1, -1]
        defer { if ends[1] >= 0 { close(ends[1]) } }
        switch output {
        case .captured: posix_spawn_file_actions_addopen(&actions, 1, files.output, O_WRONLY | O_CREAT, 0o600)
        case .file(let path): posix_spawn_file_actions_addopen(&actions, 1, path, O_WRONLY, 0)
        case .closed: posix_spawn_file_actions_addclose(&actions, 1)
        case .brokenPipe:
            try #require(pipe(&ends) == 0)
            close(ends[0])
            posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
        }
        posix_spawn_file_actions_addopen(&actions, 2, files.diagnostics, O_WRONLY | O_CREAT, 0o600)

        let words = ([path] + arguments).map { strdup($0) }
        let settings = variables.map { strdup($0) }
        defer { for text in words + settings { free(text) } }
        var process = pid_t()
        let error = posix_spawn(&process, path, &actions, nil, words + [nil], settings + [nil])
        try #require(error == 0, "\(path): \(String(cString: strerror(error)))")
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 { try #require(errno == EINTR) }
        return status
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
