// SPDX-License-Identifier: Apache-2.0
// CacheFile.swift - reading a file whole, and replacing one whole, with the system's failures as errors of this module.

import CheckedFiles

enum CacheFile {
    typealias Write = (UnsafeRawBufferPointer) throws(AttentionError) -> Void

    /// Writes the parts of a file, then puts it in the place of the one at `path`.
    static func replace(
        _ path: String, _ parts: (Write) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        try during("written", path) {
            let file = try ReplacementFile(path) { file in
                try parts { part throws(AttentionError) in try during("written", path) { try file.write(part) } }
                try file.synchronise()
            }
            try file.commit()
        }
    }

    /// All bytes of a regular file, once `check` has seen the first `count` of them, or what there is, and how many there are.
    static func bytes(
        _ path: String, after count: Int, _ check: ([UInt8], Int) throws(AttentionError) -> Void
    ) throws(AttentionError) -> [UInt8] {
        try during("read", path) {
            let file = try FileDescriptor.reading(path)
            let size = try file.status().byteCount
            func bytes(_ count: Int) throws -> [UInt8] {
                try CheckedMemory.check("path", count: count, of: UInt8.self)
                return try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
                    try file.read(into: UnsafeMutableRawBufferPointer(buffer), from: 0)
                    filled = count
                }
            }
            try check(bytes(min(count, size)), size)
            return try bytes(size)
        }
    }

    private static func during<Result>(
        _ action: String, _ path: String, _ body: () throws -> Result
    ) throws(AttentionError) -> Result {
        do {
            return try body()
        } catch let error as AttentionError {
            throw error
        } catch {
            throw AttentionError(
                .file, "path", expected: "\(path.debugDescription) to be \(action)",
                found: (error as? SystemError)?.reason ?? "\(error)")
        }
    }
}
