// SPDX-License-Identifier: Apache-2.0
// Output.swift - what a command prints, and files that it writes: where nothing more can be written, it fails and says so.

import Foundation

/// Puts out text at once: what is streamed must not wait for the end of the line.
func stream(_ text: String) throws {
    guard writeAll(text, to: STDOUT_FILENO) else {
        throw Failure("cannot write to standard output: \(String(cString: strerror(errno)))")
    }
}

/// Prints lines.
func emit(_ lines: String...) throws { try stream(lines.map { $0 + "\n" }.joined()) }

/// Prints one JSON object in one line.
func printJSON(_ value: some Encodable) throws {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    try emit(String(decoding: try encoder.encode(value), as: UTF8.self))
}

/// Text on standard error, which may be lost.
func report(_ text: String) { _ = writeAll(text, to: STDERR_FILENO) }

/// A file that is written at the end, and opened before the work that it is for. What stands at the path is written to, be
/// it a link or a device, not replaced.
final class OutputFile {
    private let path: String
    private let descriptor: Int32

    init(_ path: String) throws {
        self.path = path
        descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o666)
        guard descriptor >= 0 else { throw Self.failure("open", path) }
    }

    func write(_ text: String) throws {
        guard writeAll(text, to: descriptor) else { throw Self.failure("write", path) }
    }

    deinit { close(descriptor) }

    private static func failure(_ what: String, _ path: String) -> Failure {
        Failure("cannot \(what) \"\(path)\": \(String(cString: strerror(errno)))")
    }
}
