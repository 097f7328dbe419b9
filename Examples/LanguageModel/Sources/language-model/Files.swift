// SPDX-License-Identifier: Apache-2.0
// Files.swift - whole files, and JSON.

import Foundation

/// All bytes of a file.
func bytes(ofFile path: String) throws -> [UInt8] {
    guard let file = fopen(path, "r") else {
        throw Failure("cannot open \"\(path)\": \(String(cString: strerror(errno)))")
    }
    defer { fclose(file) }
    var (bytes, part) = ([UInt8](), [UInt8](repeating: 0, count: 1 << 16))
    while true {
        let count = fread(&part, 1, part.count, file)
        if count == 0 { break }
        bytes += part[..<count]
    }
    guard ferror(file) == 0 else { throw Failure("cannot read \"\(path)\"") }
    return bytes
}

/// Prints one JSON object in one line.
func printJSON(_ value: some Encodable) throws {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    print(String(decoding: try encoder.encode(value), as: UTF8.self))
}

/// Puts out text at once: what is streamed must not wait for the end of the line.
func stream(_ text: String) {
    print(text, terminator: "")
    fflush(nil)
}

/// Text on standard error.
func report(_ text: String) { FileHandle.standardError.write(Data(text.utf8)) }
