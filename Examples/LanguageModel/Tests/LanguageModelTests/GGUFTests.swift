// SPDX-License-Identifier: Apache-2.0
// GGUFTests.swift - files as they should be, files that lie, are cut off or change: errors, never signals.

import Foundation
import LanguageModel
import Testing

@Suite struct GGUFTests {
    /// Puts a header together.
    struct Header {
        var version: UInt32 = 3
        var tensorCount: UInt64?
        var valueCount: UInt64?
        var values: [(key: String, content: [UInt8])] = []
        var tensors: [[UInt8]] = []
        var dataBytes = 64

        static func word(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
        static func word(_ value: UInt64) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
        static func string(_ text: String) -> [UInt8] { word(UInt64(text.utf8.count)) + Array(text.utf8) }

        static func tensor(_ name: String, _ extents: [UInt64], type: UInt32, offset: UInt64) -> [UInt8] {
            string(name) + word(UInt32(extents.count)) + extents.flatMap { word($0) } + word(type) + word(offset)
        }

        var bytes: [UInt8] {
            var bytes = Array("GGUF".utf8) + Self.word(version)
            bytes += Self.word(tensorCount ?? UInt64(tensors.count)) + Self.word(valueCount ?? UInt64(values.count))
            for value in values { bytes += Self.string(value.key) + value.content }
            for tensor in tensors { bytes += tensor }
            bytes += [UInt8](repeating: 0, count: (32 - bytes.count % 32) % 32)
            return bytes + (0..<dataBytes).map { UInt8(truncatingIfNeeded: $0) }
        }
    }

    func open(_ bytes: [UInt8]) throws -> GGUFFile { try TemporaryFile.with(bytes) { try GGUFFile(path: $0) } }

    // MARK: - What can be read

    @Test func everyTypeOfValue() throws {
        func value(_ type: UInt32, _ content: [UInt8]) -> [UInt8] { Header.word(type) + content }
        func array(_ type: UInt32, _ count: UInt64, _ content: [UInt8]) -> [UInt8] {
            value(9, Header.word(type) + Header.word(count) + content)
        }
        let file = try open(
            Header(values: [
                ("u8", value(0, [200])), ("i8", value(1, [200])), ("u16", value(2, [1, 2])),
                ("i16", value(3, [0xff, 0xff])), ("u32", value(4, [1, 0, 0, 0x80])),
                ("i32", value(5, [1, 0, 0, 0x80])),
                ("f32", value(6, Header.word(Float(1.5).bitPattern))), ("bool", value(7, [1])),
                ("string", value(8, Header.string("é"))), ("u64", value(10, Header.word(UInt64.max))),
                ("i64", value(11, Header.word(UInt64.max))), ("f64", value(12, Header.word(0.1.bitPattern))),
                ("strings", array(8, 2, Header.string("a") + Header.string(""))), ("bools", array(7, 2, [0, 1])),
                ("integers", array(3, 2, [1, 0, 0xff, 0xff])),
                ("floats", array(6, 1, Header.word(Float(2).bitPattern))),
                ("empty", array(5, 0, [])),
            ]).bytes)
        let expected: [String: GGUFValue] = [
            "u8": .unsigned(200), "i8": .signed(-56), "u16": .unsigned(513), "i16": .signed(-1),
            "u32": .unsigned(0x8000_0001), "i32": .signed(-0x7fff_ffff), "f32": .float(1.5), "bool": .bool(true),
            "string": .string("é"), "u64": .unsigned(.max), "i64": .signed(-1), "f64": .float(0.1),
            "strings": .strings(["a", ""]), "bools": .bools([false, true]), "integers": .integers([1, -1]),
            "floats": .floats([2]), "empty": .integers([]),
        ]
        #expect(file.metadata == expected)
    }

    @Test func tensorsWhereTheyAre() throws {
        var header = Header(dataBytes: 96)
        header.tensors = [
            Header.tensor("b", [4, 2], type: 0, offset: 64), Header.tensor("a", [32, 1, 1], type: 8, offset: 0),
        ]
        let bytes = header.bytes
        let file = try open(bytes)
        let b = try #require(file.tensor(named: "b"))
        #expect(b.shape == [2, 4] && b.rows == 2 && b.rowBytes == 16 && b.byteRange.count == 32)
        #expect(file.tensor(named: "a")?.shape == [1, 1, 32] && file.tensor(named: "c") == nil)
        var row = [UInt8](repeating: 0, count: 16)
        try row.withUnsafeMutableBytes { try file.read(b, rows: 1..<2, into: $0) }
        #expect(row == (80..<96).map { UInt8($0) })
    }

    // MARK: - What cannot

    static let faults: [(String, Header, GGUFError)] = {
        func tensors(_ tensors: [UInt8]...) -> Header { Header(tensors: tensors) }
        let f32 = { Header.tensor("t", $0, type: 0, offset: $1) }
        let large: UInt64 = 1 << 32
        return [
            ("version 1", Header(version: 1), .unsupportedVersion(1)),
            ("big endian", Header(version: 0x0300_0000), .unsupportedVersion(0x0300_0000)),
            ("no dimension", tensors(f32([], 0)), .invalidShape(tensor: "t", reason: "has 0 dimensions, not 1 to 4")),
            (
                "five", tensors(f32([1, 1, 1, 1, 1], 0)),
                .invalidShape(tensor: "t", reason: "has 5 dimensions, not 1 to 4")
            ),
            (
                "overflow", tensors(f32([large, large], 0)),
                .invalidShape(tensor: "t", reason: "of the shape [4294967296, 4294967296] is too large")
            ),
            (
                "rows without columns", tensors(f32([0, 1 << 62, 1 << 62], 0)),
                .invalidShape(
                    tensor: "t", reason: "of the shape [4611686018427387904, 4611686018427387904, 0] is too large")
            ),
            (
                "extent", tensors(f32([.max], 0)), .invalidShape(tensor: "t", reason: "has an extent of \(UInt64.max)")
            ),
            (
                "part of a block", tensors(Header.tensor("t", [31], type: 8, offset: 0)),
                .invalidShape(tensor: "t", reason: "has rows of 31 elements, no multiple of 32")
            ),
            ("type", tensors(Header.tensor("t", [1], type: 99, offset: 0)), .unknownTensorType(tensor: "t", type: 99)),
            ("alignment", tensors(f32([1], 4)), .misaligned(tensor: "t", offset: 4, alignment: 32)),
            (
                "end", tensors(f32([17], 0)),
                .dataPastEndOfFile(tensor: "t", offset: 0, byteCount: 68, dataBytes: 64)
            ),
            (
                "far", tensors(f32([1], 1 << 63)),
                .dataPastEndOfFile(tensor: "t", offset: 1 << 63, byteCount: 4, dataBytes: 64)
            ),
            (
                "overlap", tensors(f32([9], 0), Header.tensor("u", [1], type: 0, offset: 32)),
                .overlap(tensor: "u", other: "t")
            ),
            ("twice", tensors(f32([1], 0), f32([1], 32)), .duplicateName("t")),
            ("key twice", Header(values: [("k", [0, 0, 0, 0, 1]), ("k", [0, 0, 0, 0, 1])]), .duplicateName("k")),
            ("value type", Header(values: [("k", [13, 0, 0, 0, 1])]), .unknownValueType(key: "k", type: 13)),
            ("truth", Header(values: [("k", [7, 0, 0, 0, 2])]), .invalidBoolean(key: "k", byte: 2)),
            (
                "nested", Header(values: [("k", Header.word(UInt32(9)) + Header.word(UInt32(9)) + Header.word(large))]),
                .nestedArray(key: "k")
            ),
            (
                "padding", Header(values: [("general.alignment", Header.word(UInt32(4)) + Header.word(UInt32(24)))]),
                .invalidAlignment("unsigned(24)")
            ),
        ]
    }()

    @Test(arguments: faults.indices)
    func faultyHeaders(index: Int) throws {
        let (name, header, expected) = Self.faults[index]
        let error = #expect(throws: expected, "\(name)") { try open(header.bytes) }
        let text = error.map { "\($0)" } ?? ""
        #expect(!text.isEmpty && !text.contains("\n"))
    }

    /// Counts that promise more than the file has are refused before anything is made for them.
    @Test func countsThatLie() throws {
        for count in [UInt64.max, 1 << 40, 1000] {
            #expect(throws: GGUFError.self) { try open(Header(tensorCount: count).bytes) }
            #expect(throws: GGUFError.self) { try open(Header(valueCount: count).bytes) }
            for type in [0, 8, 12] as [UInt32] {
                let content = Header.word(UInt32(9)) + Header.word(type) + Header.word(count)
                let error = #expect(throws: GGUFError.self) { try open(Header(values: [("k", content)]).bytes) }
                #expect("\(String(describing: error))".contains("truncated"))
            }
        }
        #expect(throws: GGUFError.self) {
            try open(Header(values: [("k", Header.word(UInt32(8)) + Header.word(UInt64.max))]).bytes)
        }
    }

    @Test func textThatIsNone() throws {
        let content = Header.word(UInt32(8)) + Header.word(UInt64(2)) + [0xc3, 0x28]
        #expect(throws: GGUFError.notUTF8(offset: 45, what: "k")) { try open(Header(values: [("k", content)]).bytes) }
        #expect(throws: GGUFError.notGGUF) { try open(Array("GGML and more".utf8)) }
        #expect(throws: GGUFError.notGGUF) { try open([]) }
    }

    @Test func noFile() throws {
        #expect(throws: GGUFError.cannotOpen(path: "missing.gguf", reason: "No such file or directory")) {
            try GGUFFile(path: "missing.gguf")
        }
        #expect(throws: GGUFError.self) { try GGUFFile(path: "/") }
    }

    /// Every beginning of a model file is an error, with one line.
    @Test func truncatedFiles() throws {
        let bytes = try TinyModel.bytes
        for count in Array(0..<200) + stride(from: 200, to: bytes.count, by: 397) {
            let error = #expect(throws: GGUFError.self) { try open(Array(bytes[..<count])) }
            #expect(!"\(String(describing: error))".contains("\n"))
        }
    }

    @Test func fileThatChangesAfterItWasOpened() throws {
        let bytes = try TinyModel.bytes
        let temporary = try TemporaryFile.kept(bytes)
        let file = try GGUFFile(path: temporary.path)
        #expect(truncate(temporary.path, off_t(bytes.count / 2)) == 0)
        #expect(throws: GGUFError.self) { try LlamaModel(file) }
        try Data(bytes).write(to: URL(fileURLWithPath: temporary.path), options: [])
        let again = try GGUFFile(path: temporary.path)
        let handle = try #require(FileHandle(forWritingAtPath: temporary.path))
        try handle.seekToEnd()
        try handle.write(contentsOf: [0])
        try handle.close()
        #expect(throws: GGUFError.changed(path: temporary.path)) { try LlamaModel(again) }
    }

    // MARK: - Fuzzing

    /// No mutation of a model file crashes anything; where it still opens, a model is made, or refused, and it answers.
    @Test(arguments: 0..<6 as Range<UInt64>)
    func mutationsNeverCrash(seed: UInt64) throws {
        let bytes = try TinyModel.bytes
        var state = seed &* 77 &+ 5
        func next(below bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int((state >> 33) % UInt64(bound))
        }
        var (opened, made) = (0, 0)
        for _ in 0..<60 {
            var changed = bytes
            // The header is the first 10,000 bytes; most of it is vocabulary.
            for _ in 0...next(below: 2) {
                let place = next(below: next(below: 2) == 0 ? 700 : 13_000)
                switch next(below: 9) {
                case 0...2: changed[place] ^= 1 << next(below: 8)
                case 3...4: changed[place] = UInt8(next(below: 256))
                case 5...6: changed[place] = [0, 1, 0x7f, 0x80, 0xff][next(below: 5)]
                case 7: changed.removeSubrange(place..<place + 1 + next(below: 8))
                default: changed.insert(contentsOf: changed[place..<place + 1 + next(below: 8)], at: place)
                }
            }
            guard let file = try? open(changed) else { continue }
            opened += 1
            guard let tokenizer = try? Tokenizer(file), let model = try? LlamaModel(file) else { continue }
            made += 1
            var conversation = try model.conversation()
            let tokens = tokenizer.encode("the cat") + [0]
            #expect(try model.evaluate(tokens, &conversation).count == tokenizer.count)
        }
        #expect(opened > 5 && made > 0, "the mutations are too coarse to test anything")
    }
}
