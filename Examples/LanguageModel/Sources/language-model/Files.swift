// SPDX-License-Identifier: Apache-2.0
// Files.swift - whole files.

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
