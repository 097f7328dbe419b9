// SPDX-License-Identifier: Apache-2.0
// TemporaryFolder.swift - files that last as long as a test.

import CheckedFiles
import Foundation
import Testing

@testable import Safetensors

/// A folder of its own for one test, removed with everything in it when the last reference goes.
final class TemporaryFolder {
    let path: String

    init() throws {
        path = FileManager.default.temporaryDirectory.appendingPathComponent("safetensors-\(UUID())").path
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path)
    }

    func callAsFunction(_ name: String) -> String { "\(path)/\(name)" }

    var names: [String] {
        get throws { try FileManager.default.contentsOfDirectory(atPath: path).sorted() }
    }

    /// Writes `bytes` to a file and returns its path.
    func file(_ bytes: [UInt8], name: String = "file.safetensors") throws -> String {
        try Data(bytes).write(to: URL(fileURLWithPath: self(name)))
        return self(name)
    }

    /// Writes a sparse file of two tensors, `w` of 2 elements and `huge` of 2^41, and returns its path.
    func fileBeyondMemory() throws -> String {
        let extent = 1 << 41
        let header =
            #"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#
            + #""huge":{"dtype":"F32","shape":[\#(extent)],"data_offsets":[8,\#(8 + 4 * extent)]}}"#
        let path = try file(safetensors(header, dataBytes: 8))
        try #require(truncate(path, off_t(16 + header.utf8.count + 4 * extent)) == 0)
        return path
    }
}

func bytes(ofFile path: String) throws -> [UInt8] {
    // Not Foundation's Data, in which LeakSanitizer finds leaks for empty files.
    let file = try FileDescriptor.reading(path)
    var bytes = [UInt8](repeating: 0, count: try file.status().byteCount)
    try bytes.withUnsafeMutableBytes { try file.read(into: $0, from: 0) }
    return bytes
}

/// Returns a file with this header and `dataBytes` bytes of data, 0, 1, 2 and so on.
func safetensors(_ header: String, dataBytes: Int, headerLength: UInt64? = nil) -> [UInt8] {
    let text = Array(header.utf8)
    return littleEndian(headerLength ?? UInt64(text.count)) + text
        + (0..<dataBytes).map { UInt8(truncatingIfNeeded: $0) }
}

/// A tensor as it lies in a file, of any type.
struct StoredTensor {
    let name: String
    let type: ElementType
    let shape: [Int]
    let data: [UInt8]

    init(_ name: String, _ type: ElementType, _ shape: [Int], _ elements: [some FixedWidthInteger]) {
        (self.name, self.type, self.shape) = (name, type, shape)
        data = elements.flatMap(littleEndian)
    }
}

/// Returns a file with these tensors.
func safetensors(_ tensors: [StoredTensor]) -> [UInt8] {
    var members: [String] = []
    var data: [UInt8] = []
    for tensor in tensors {
        let start = data.count
        data += tensor.data
        members.append(
            #""\#(tensor.name)":{"dtype":"\#(tensor.type.rawValue)","shape":\#(tensor.shape),"#
                + #""data_offsets":[\#(start),\#(data.count)]}"#)
    }
    return safetensors("{\(members.joined(separator: ","))}", dataBytes: 0) + data
}

func littleEndian<Word: FixedWidthInteger>(_ word: Word) -> [UInt8] {
    withUnsafeBytes(of: word.littleEndian) { [UInt8]($0) }
}
