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

    /// All bytes of a regular file.
    static func bytes(_ path: String) throws(AttentionError) -> [UInt8] {
        try during("read", path) {
            let file = try FileDescriptor.reading(path)
            let size = try file.status().byteCount
            try CheckedMemory.check("path", count: size, of: UInt8.self)
            return try [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
                try file.read(into: UnsafeMutableRawBufferPointer(buffer), from: 0)
                count = size
            }
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
