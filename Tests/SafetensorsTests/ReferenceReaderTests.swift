// SPDX-License-Identifier: Apache-2.0
// ReferenceReaderTests.swift - what the format's own reader opens is opened, large headers in linear time, and other formats are named.

import Foundation
import Testing

@testable import Safetensors

@Suite struct ReferenceReaderTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    func open(_ bytes: [UInt8]) throws -> SafetensorsFile {
        try SafetensorsFile(path: folder.file(bytes))
    }

    // MARK: - As lenient as it is

    private static let tensor = #""t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#

    @Test(arguments: [
        #"{"__metadata__":null,TENSOR}"#, #"{TENSOR,"__metadata__": null }"#, "{\"__metadata__\":{},TENSOR}",
        " {TENSOR}",
        "\n\t{TENSOR}\r\n ", #"{"t":{"x":1,"dtype":"F32","shape":[1],"x":[2],"data_offsets":[0,4]}}"#,
        #"{"t":{"x":1e-400,"y":1e308,"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        #"{"t":{"x":"\u0000\ud83d\ude00","dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]}}"#,
        #"{"\u0074":{"\u0064type":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        #"{"u":{"dtype":"F64","shape":[0,4294967296,4294967296],"data_offsets":[4,4]},TENSOR}"#,
        #"{"u":{"dtype":"F64","shape":[4611686018427387904,2,0],"data_offsets":[0,0]},TENSOR}"#,
    ])
    func opened(header: String) throws {
        let text = header.replacingOccurrences(of: "TENSOR", with: Self.tensor)
        let file = try open(safetensors(text, dataBytes: 4))
        #expect(file.metadata.isEmpty && file.contains("t") && !file.contains("x"))
        #expect(try file.floats(named: "t") == [Float(bitPattern: 0x0302_0100)])
        if file.contains("u") { #expect(try file.tensor(named: "u").count == 0) }
    }

    /// 127 levels, the header's own and the tensor's among them.
    @Test func nesting() throws {
        func header(_ depth: Int) -> [UInt8] {
            let value = String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
            return safetensors(
                #"{"t":{"x":\#(value),"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, dataBytes: 4)
        }
        #expect(try open(header(125)).contains("t"))
        #expect(throws: SafetensorsError.self) { try open(header(126)) }
    }

    // MARK: - Stricter than it

    @Test(
        arguments: [
            (#"{"t":["F32",[1],[0,4]]}"#, .invalidField(tensor: "t", reason: "its description is not an object")),
            (
                #"{"t":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}"#,
                .invalidField(tensor: "t", reason: "dtype is not a string")
            ),
            ("{TENSOR,TENSOR}", .duplicateName("t")),
            (#"{"__metadata__":{"a":"","\u0061":"b"},TENSOR}"#, .duplicateName("a")),
            (
                #"{"u":{"dtype":"F32","shape":[9223372036854775808,0],"data_offsets":[0,0]},TENSOR}"#,
                .invalidField(tensor: "u", reason: "shape holds something else than integers from 0 to \(Int.max)")
            ),
        ] as [(String, SafetensorsError)])
    func refusedOnPurpose(header: String, error: SafetensorsError) throws {
        let text = header.replacingOccurrences(of: "TENSOR", with: Self.tensor)
        #expect(throws: error) { try open(safetensors(text, dataBytes: 4)) }
    }

    // MARK: - Size

    /// Characters of two to four bytes lie across the ends of the parts that are checked.
    @Test(arguments: ["é", "語", "😀", "xé語😀"], 65_480..<65_540)
    func charactersAcrossParts(character: String, length: Int) throws {
        guard length.isMultiple(of: 7) || length > 65_500 else { return }
        let value = String(repeating: " ", count: length) + String(repeating: character, count: 50)
        let file = try open(safetensors(#"{"__metadata__":{"a":"\#(value)"}}"#, dataBytes: 0))
        #expect(file.metadata["a"]?.utf8.count == value.utf8.count)
    }

    @Test func charactersCutOffAreNoUTF8() throws {
        for count in [1, 70_000, 200_000] {
            let text = Array(#"{"a":""#.utf8) + [UInt8](repeating: 0xbf, count: count)
            #expect(throws: SafetensorsError.headerNotUTF8) { try open(littleEndian(UInt64(text.count)) + text) }
        }
    }

    /// Every tensor is found by its name, in a time that does not grow with their number; data in falling order.
    @Test func manyTensors() throws {
        let count = 20_000
        let members = (0..<count).map {
            #""t\#($0)":{"dtype":"U8","shape":[1],"data_offsets":[\#(count - 1 - $0),\#(count - $0)]}"#
        }
        let file = try open(safetensors("{" + members.joined(separator: ",") + "}", dataBytes: count))
        #expect(file.tensors.count == count && file.tensors[0].name == "t\(count - 1)")
        for index in 0..<count {
            #expect(try file.tensor(named: "t\(index)").dataRange.lowerBound == count - 1 - index)
        }
        #expect(!file.contains("t\(count)"))
    }

    /// A sparse file takes no room, and says that it holds 8 TiB.
    @Test func moreThanThereIsMemory() throws {
        let extent = 1 << 41
        let header = #"{"u":{"dtype":"F32","shape":[\#(extent)],"data_offsets":[0,\#(4 * extent)]}}"#
        let path = try folder.file(safetensors(header, dataBytes: 0))
        try #require(truncate(path, off_t(8 + header.utf8.count + 4 * extent)) == 0)
        let file = try SafetensorsFile(path: path)
        let error = #expect(throws: SafetensorsError.noMemory(tensor: "u", bytes: 4 * extent)) {
            try file.floats(named: "u")
        }
        #expect(error?.description.contains("8796093022208 bytes, more than there is memory") == true)
    }

    // MARK: - What the file really is

    @Test(
        arguments: [
            (
                Array("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n".utf8),
                "git lfs pull"
            ),
            (Array("<!DOCTYPE html>\n<html><body>Not found</body></html>".utf8), "HTML"),
            (Array("\n  <html lang=\"en\">".utf8), "HTML"), (Array("<?xml version=\"1.0\"?><Error/>".utf8), "XML"),
            ([0x50, 0x4b, 3, 4, 0, 0, 8, 8, 0, 0], "zip archive"),
            ([0x80, 2, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46], "pickle"),
            (Array("GGUF".utf8) + [3, 0, 0, 0, 1, 0, 0, 0], "GGUF"),
            (
                Array(#"{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#.utf8),
                "JSON index"
            ),
            (Array(#"{"error":"Invalid username or password."}"#.utf8), "JSON text"), (Array("{}".utf8), "JSON text"),
            ([0x93] + Array("NUMPY\u{1}\0".utf8), "NumPy"), ([0x89] + Array("HDF\r\n\u{1a}\n".utf8), "HDF5"),
            ([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0], "gzip"), ([0x28, 0xb5, 0x2f, 0xfd, 4, 0, 0, 0, 0], "zstd"),
            ([0xfd] + Array("7zXZ\0\0".utf8), "xz"),
        ] as [([UInt8], String)])
    func otherFormats(bytes: [UInt8], words: String) throws {
        let error = try #require(throws: SafetensorsError.self) { try open(bytes) }
        guard case .otherFormat = error else {
            Issue.record("\(error)")
            return
        }
        #expect(error.description.hasPrefix("not a safetensors file: it seems to be "))
        #expect(error.description.contains(words), "\(error)")
    }

    /// The length of a header may have the bytes of a magic number: 0x0280 is 640, cut off here.
    @Test func lengthsAreNoPickles() throws {
        #expect(throws: SafetensorsError.headerPastEndOfFile(headerBytes: 640, fileBytes: 10)) {
            try open([0x80, 2, 0, 0, 0, 0, 0, 0, 0x7b, 0x7d])
        }
        let length = 0x0008_8b1f
        let header = "{}" + String(repeating: " ", count: length - 2)
        #expect(try open(safetensors(header, dataBytes: 0)).tensors.isEmpty)
    }
}
