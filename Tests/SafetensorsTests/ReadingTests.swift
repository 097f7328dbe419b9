// SPDX-License-Identifier: Apache-2.0
// ReadingTests.swift - files that are right are read, files that are wrong are refused, each for its own reason.

import Foundation
import Testing

@testable import Safetensors

@Suite struct ReadingTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    func open(_ bytes: [UInt8]) throws -> SafetensorsFile {
        try SafetensorsFile(path: folder.file(bytes))
    }

    // MARK: - Files that are right

    /// Python's `safetensors.numpy.save_file({"b": int64 [2], "a": float32 [2, 2], "h": float16 [2]}, metadata={"by": "hand"})`:
    /// compact JSON, the metadata first, then the tensors by falling width of their type, spaces up to a multiple of 8.
    @Test func fileAsPythonWritesIt() throws {
        let header =
            #"{"__metadata__":{"by":"hand"},"b":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"#
            + #""a":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]},"#
            + #""h":{"dtype":"F16","shape":[2],"data_offsets":[32,36]}}   "#
        let floats: [Float] = [1, -0.5, .infinity, 0x1p-149]
        var file = littleEndian(UInt64(header.utf8.count)) + header.utf8
        file += [3, -4].flatMap { littleEndian(Int64($0)) }
        file += floats.flatMap { littleEndian($0.bitPattern) }
        file += [0x3c00, 0xfbff].flatMap { littleEndian(UInt16($0)) }

        let read = try open(file)
        #expect(read.metadata == ["by": "hand"])
        #expect(read.tensors.map(\.name) == ["b", "a", "h"])
        #expect(try read.tensor(named: "b").elementType == .int64)
        #expect(try read.tensor(named: "a").shape == [2, 2])
        #expect(try read.floats(named: "a") == floats)
        #expect(try read.floats(named: "h") == [1, -65504])
    }

    @Test func bfloat16IsWidened() throws {
        let header = #"{"w":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}"#
        let data: [UInt16] = [0x3f80, 0xc040, 0x7f80]
        let file = safetensors(header, dataBytes: 0) + data.flatMap(littleEndian)
        #expect(try open(file).floats(named: "w") == [1, -3, .infinity])
    }

    @Test func manyHalfPrecisionValuesAreReadInParts() throws {
        let count = 3 * 65536 + 5
        let header = #"{"w":{"dtype":"BF16","shape":[\#(count)],"data_offsets":[0,\#(2 * count)]}}"#
        let file = safetensors(header, dataBytes: 0) + (0..<count).flatMap { littleEndian(UInt16($0 % 0x7f00)) }
        let values = try open(file).floats(named: "w")
        #expect(values.count == count)
        #expect(values.indices.allSatisfy { values[$0].bitPattern == UInt32($0 % 0x7f00) << 16 })
    }

    @Test func integers() throws {
        let file = try open(
            safetensors([
                StoredTensor("long", .int64, [2, 2], [Int64.max, Int64.min, -1, 5]),
                StoredTensor("short", .int32, [3], [Int32.max, Int32.min, -1]),
                StoredTensor("none", .int64, [0], [Int64]()), StoredTensor("bytes", .uint8, [2], [3, 255] as [UInt8]),
                StoredTensor("small", .int8, [1], [-3 as Int8]), StoredTensor("half", .int16, [1], [-30_000 as Int16]),
                StoredTensor("words", .uint16, [1], [60_000 as UInt16]),
                StoredTensor("unsigned", .uint32, [1], [UInt32.max]),
                StoredTensor("large", .uint64, [2], [9, UInt64.max]), StoredTensor("truth", .bool, [1], [1 as UInt8]),
            ]))
        #expect(try file.integers(named: "long") == [Int.max, Int.min, -1, 5])
        #expect(try file.integers(named: "short") == [2_147_483_647, -2_147_483_648, -1])
        #expect(try file.integers(named: "none") == [])
        #expect(try file.integers(named: "bytes") == [3, 255])
        #expect(try file.integers(named: "small") == [-3])
        #expect(try file.integers(named: "half") == [-30_000])
        #expect(try file.integers(named: "words") == [60_000])
        #expect(try file.integers(named: "unsigned") == [4_294_967_295])
        #expect(try file.integers(named: "large") == [9, Int.max])
        let error = #expect(throws: SafetensorsError.self) { try file.integers(named: "truth") }
        #expect(error?.description.hasSuffix("U64, I64 can be read as integers") == true)
        #expect(throws: SafetensorsError.self) { try file.floats(named: "short") }
    }

    @Test func booleans() throws {
        // Longer than one part of a reading.
        let bytes = (0..<65_600).map { (index: Int) -> UInt8 in index % 7 == 0 ? 0 : UInt8(index % 3 + 1) }
        let file = try open(
            safetensors([
                StoredTensor("mask", .bool, [2], [0, 1] as [UInt8]), StoredTensor("bytes", .uint8, [65_600], bytes),
                StoredTensor("words", .int32, [3], [1, 0, 1 << 16] as [Int32]),
                StoredTensor("long", .uint64, [2], [0, 1 << 32] as [UInt64]),
                StoredTensor("number", .float32, [1], [1 as UInt32]),
            ]))
        #expect(try file.booleans(named: "mask") == [false, true])
        #expect(try file.booleans(named: "bytes") == bytes.indices.map { $0 % 7 != 0 })
        #expect(try file.booleans(named: "words") == [true, false, true])
        #expect(try file.booleans(named: "long") == [false, true])
        let error = #expect(throws: SafetensorsError.self) { try file.booleans(named: "number") }
        #expect(error?.description.hasSuffix("U64, I64 can be read as true and false") == true)
    }

    /// Rounded once to Float, to nearest, ties to even; exact as Double.
    @Test func doublePrecision() throws {
        let numbers = [1 + 0x1p-24, 1 + 0x3p-24, 0.1, -0x1.fffffep127, 0x1p-149, .infinity, .leastNonzeroMagnitude]
        let file = try open(
            safetensors([
                StoredTensor("d", .float64, [7], numbers.map(\.bitPattern)),
                StoredTensor("f", .float32, [1], [(0.5 as Float).bitPattern]),
                StoredTensor("far", .float64, [2], [1, 1e39].map(\.bitPattern)),
            ]))
        #expect(try file.floats(named: "d") == [1, 1 + 0x1p-22, 0.1, -0x1.fffffep127, 0x1p-149, .infinity, 0])
        #expect(try file.doubles(named: "d") == numbers)
        #expect(try file.doubles(named: "f") == [0.5])
        let error = #expect(throws: SafetensorsError.self) { try file.floats(named: "far") }
        #expect(error?.description == "tensor \"far\" holds 1e+39, which is beyond the range of F32")
    }

    @Test func emptyTensorsAndScalars() throws {
        let header =
            #"{"none":{"dtype":"F32","shape":[2,0,3],"data_offsets":[0,0]},"#
            + #""scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#
        let file = try open(safetensors(header, dataBytes: 0) + littleEndian(Float(2.5).bitPattern))
        #expect(try file.floats(named: "none") == [])
        #expect(try file.floats(named: "scalar") == [2.5])
        #expect(try open(safetensors("{}", dataBytes: 0)).tensors.isEmpty)
    }

    @Test func namesAreBytesAndFieldsMayBeMore() throws {
        let header =
            #"{"\u00e9":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#
            + #""e\u0301":{"dtype":"F4","shape":[2],"data_offsets":[1,2],"more":[{"x":null},-1.5e3,true,false]},"#
            + #""\ud83d\ude00\n\/":{"shape":[1],"data_offsets":[2,3],"dtype":"BOOL"}}"#
        let file = try open(safetensors(header, dataBytes: 3))
        #expect(file.tensors.map { Array($0.name.utf8).count } == [2, 3, 6])
        #expect(try file.tensor(named: "\u{e9}").elementType == .uint8)
        #expect(try file.tensor(named: "e\u{301}").elementType == .float4)
        #expect(try file.tensor(named: "😀\n/").elementType == .bool)
    }

    @Test(arguments: ElementType.allCases.filter { !ElementType.readable.contains($0) })
    func otherTypesDoNotHinderTheRest(type: ElementType) throws {
        let header =
            #"{"x":{"dtype":"\#(type.rawValue)","shape":[8],"data_offsets":[0,\#(type.bitWidth)]},"#
            + #""y":{"dtype":"F32","shape":[1],"data_offsets":[\#(type.bitWidth),\#(type.bitWidth + 4)]}}"#
        let file = try open(safetensors(header, dataBytes: type.bitWidth + 4))
        #expect(try file.floats(named: "y").count == 1)
        let error = #expect(throws: SafetensorsError.unsupportedElementType(tensor: "x", elementType: type)) {
            try file.floats(named: "x")
        }
        #expect(error.map(String.init(describing:))?.contains(type.rawValue) == true)
    }

    @Test func unknownNames() throws {
        let file = try open(safetensors(#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, dataBytes: 1))
        #expect(throws: SafetensorsError.noSuchTensor("q", available: ["x"])) { try file.floats(named: "q") }
    }

    // MARK: - Files that are wrong

    @Test(arguments: [0, 1, 7])
    func filesShorterThanTheLength(count: Int) throws {
        #expect(throws: SafetensorsError.fileTooShort(fileBytes: count)) {
            try open([UInt8](repeating: 0, count: count))
        }
    }

    @Test(arguments: [100_000_001, UInt64(Int.max), UInt64.max - 7, UInt64.max])
    func headersOverTheLimit(length: UInt64) throws {
        #expect(throws: SafetensorsError.headerTooLong(headerBytes: length)) {
            try open(safetensors("{}", dataBytes: 0, headerLength: length))
        }
    }

    @Test func headersLongerThanTheFile() throws {
        #expect(throws: SafetensorsError.headerPastEndOfFile(headerBytes: 3, fileBytes: 10)) {
            try open(safetensors("{}", dataBytes: 0, headerLength: 3))
        }
        #expect(throws: SafetensorsError.headerPastEndOfFile(headerBytes: 100_000_000, fileBytes: 10)) {
            try open(safetensors("{}", dataBytes: 0, headerLength: 100_000_000))
        }
    }

    @Test(
        arguments: [[0x7b, 0x22, 0xff, 0x22, 0x7d], [0x7b, 0xc0, 0x80, 0x7d], [0x7b, 0xed, 0xa0, 0x80]] as [[UInt8]])
    func headersThatAreNotUTF8(text: [UInt8]) throws {
        #expect(throws: SafetensorsError.headerNotUTF8) { try open(littleEndian(UInt64(text.count)) + text) }
    }

    @Test(arguments: ["", " ", " []", "[]", "null", "\u{feff}{}"])
    func headersThatAreNotObjects(text: String) throws {
        #expect(throws: SafetensorsError.headerNotObject) { try open(safetensors(text, dataBytes: 0)) }
    }

    @Test(arguments: [
        "{", "{]", "{}}", "{} x", #"{"a"}"#, #"{"a":}"#, #"{"a":1,}"#, #"{,}"#, #"{a:1}"#, #"{'a':1}"#,
        #"{"a":1 "b":2}"#,
        #"{"a":[1,]}"#, #"{"a":[1"#, #"{"a":01}"#, #"{"a":+1}"#, #"{"a":1.}"#, #"{"a":.5}"#, #"{"a":1e}"#, #"{"a":-}"#,
        #"{"a":tru}"#, #"{"a":NaN}"#, #"{"a":"b}"#, "{\"a\":\"\n\"}", #"{"a":"\x"}"#, #"{"a":"\u12g4"}"#,
        #"{"a":"\ud800"}"#,
        #"{"a":"\ud800\u0041"}"#, #"{"a":"\udc00"}"#, #"{"a":"\"#, "{\"a\":1}\0", "{/**/}",
        #"{"a":"# + String(repeating: "[", count: 100_000), #"{"a":1e400}"#, #"{"a":[null,"x",true,-1e999]}"#,
        // The fault of the JSON goes before that of the tensor, wherever it stands.
        #"{"a":1,"b":2"#, #"{"a":{"dtype":"F99"},"b":{"dtype":1},}"#,
    ])
    func headersThatAreNotJSON(text: String) throws {
        let error = try #require(throws: SafetensorsError.self) { try open(safetensors(text, dataBytes: 0)) }
        guard case .headerNotJSON = error else {
            Issue.record("\(error)")
            return
        }
    }

    struct Fault: CustomTestStringConvertible, Sendable {
        let testDescription: String
        let header: String
        var dataBytes = 8
        let error: SafetensorsError

        /// A tensor t whose description is `fields`.
        init(_ description: String, _ fields: String, _ error: SafetensorsError) {
            self.init(description, header: #"{"t":\#(fields)}"#, error)
        }

        init(_ description: String, header: String, dataBytes: Int = 8, _ error: SafetensorsError) {
            testDescription = description
            self.header = header
            self.dataBytes = dataBytes
            self.error = error
        }
    }

    static func field(_ reason: String) -> SafetensorsError { .invalidField(tensor: "t", reason: reason) }

    static let fieldFaults: [Fault] = [
        Fault("not an object", "[]", field("its description is not an object")),
        Fault("no dtype", #"{"shape":[2],"data_offsets":[0,8]}"#, field("dtype is missing")),
        Fault("no shape", #"{"dtype":"F32","data_offsets":[0,8]}"#, field("shape is missing")),
        Fault("no data_offsets", #"{"dtype":"F32","shape":[2]}"#, field("data_offsets is missing")),
        Fault("dtype a number", #"{"dtype":32,"shape":[2],"data_offsets":[0,8]}"#, field("dtype is not a string")),
        Fault("shape a number", #"{"dtype":"F32","shape":2,"data_offsets":[0,8]}"#, field("shape is not an array")),
        Fault(
            "data_offsets an object", #"{"dtype":"F32","shape":[2],"data_offsets":{}}"#,
            field("data_offsets is not an array")),
        Fault(
            "one offset", #"{"dtype":"F32","shape":[2],"data_offsets":[0]}"#,
            field("data_offsets has 1 elements, not 2")),
        Fault(
            "three offsets", #"{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}"#,
            field("data_offsets has 3 elements, not 2")),
        Fault(
            "end before begin", #"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#,
            field("its data begin at byte 8 and end at byte 0")),
        Fault(
            "unknown dtype", #"{"dtype":"f32","shape":[2],"data_offsets":[0,8]}"#,
            .unknownElementType(tensor: "t", name: "f32")),
        Fault(
            "a field twice", #"{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}"#, .duplicateName("shape")),
    ]

    static let integerFaults: [Fault] = [
        "-2", "2.0", "2e0", "-0", "\"2\"", "null", "[2]", "9223372036854775808", "1e300",
    ].flatMap {
        let message = "holds something else than integers from 0 to \(Int.max)"
        return [
            Fault(
                "shape [\($0)]", #"{"dtype":"F32","shape":[\#($0)],"data_offsets":[0,8]}"#, field("shape \(message)")),
            Fault(
                "offset \($0)", #"{"dtype":"F32","shape":[2],"data_offsets":[0,\#($0)]}"#,
                field("data_offsets \(message)")),
        ]
    }

    static let sizeFaults: [Fault] = [
        Fault(
            "product overflows", #"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#,
            .sizeOverflow(tensor: "t", shape: [4_294_967_296, 4_294_967_296])),
        Fault(
            "bytes overflow", #"{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}"#,
            .sizeOverflow(tensor: "t", shape: [4_611_686_018_427_387_904])),
        Fault(
            "shape and length differ", #"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#,
            .lengthMismatch(tensor: "t", dataBytes: 8, shape: [3], elementType: .float32)),
        Fault(
            "half a byte", #"{"dtype":"F4","shape":[15],"data_offsets":[0,8]}"#,
            .lengthMismatch(tensor: "t", dataBytes: 8, shape: [15], elementType: .float4)),
        Fault(
            "end past the file", #"{"dtype":"F32","shape":[3],"data_offsets":[0,12]}"#,
            .dataPastEndOfFile(tensor: "t", end: 12, dataBytes: 8)),
        Fault(
            "far past the file",
            #"{"dtype":"U8","shape":[1],"data_offsets":[9223372036854775806,9223372036854775807]}"#,
            .dataPastEndOfFile(tensor: "t", end: Int.max, dataBytes: 8)),
        Fault(
            "hole before", #"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
            .hole(tensor: "t", begin: 4, previousEnd: 0)),
        Fault(
            "hole after", #"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#,
            .hole(tensor: nil, begin: 8, previousEnd: 4)),
        Fault("data without a tensor", header: "{}", .hole(tensor: nil, begin: 8, previousEnd: 0)),
    ]

    static func two(_ first: (Int, Int), _ second: (Int, Int)) -> String {
        #"{"u":{"dtype":"U8","shape":[\#(second.1 - second.0)],"data_offsets":[\#(second.0),\#(second.1)]},"#
            + #""t":{"dtype":"U8","shape":[\#(first.1 - first.0)],"data_offsets":[\#(first.0),\#(first.1)]}}"#
    }

    static let pairFaults: [Fault] = [
        Fault("overlap", header: two((0, 5), (4, 8)), .overlap(tensor: "u", begin: 4, previousEnd: 5)),
        Fault("same place", header: two((0, 8), (0, 8)), .overlap(tensor: "t", begin: 0, previousEnd: 8)),
        Fault("one inside", header: two((0, 8), (2, 4)), .overlap(tensor: "u", begin: 2, previousEnd: 8)),
        Fault("empty inside", header: two((0, 8), (4, 4)), .overlap(tensor: "u", begin: 4, previousEnd: 8)),
        Fault("hole between", header: two((0, 3), (4, 8)), .hole(tensor: "u", begin: 4, previousEnd: 3)),
        Fault(
            "a name twice",
            header:
                #"{"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#,
            .duplicateName("t")),
        Fault(
            "a name twice, escaped once",
            header:
                #"{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"\u0074":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
            .duplicateName("t")),
    ]

    static let metadataFaults: [Fault] = [
        Fault("metadata an array", header: #"{"__metadata__":[]}"#, dataBytes: 0, .invalidMetadata(key: nil)),
        Fault("metadata a string", header: #"{"__metadata__":"null"}"#, dataBytes: 0, .invalidMetadata(key: nil)),
        Fault("metadata of a number", header: #"{"__metadata__":{"a":1}}"#, dataBytes: 0, .invalidMetadata(key: "a")),
        Fault("metadata key twice", header: #"{"__metadata__":{"a":"","a":""}}"#, dataBytes: 0, .duplicateName("a")),
        Fault(
            "metadata twice", header: #"{"__metadata__":null,"__metadata__":{}}"#, dataBytes: 0,
            .duplicateName("__metadata__")),
    ]

    @Test(arguments: fieldFaults + integerFaults + sizeFaults + pairFaults + metadataFaults)
    func faultyHeaders(fault: Fault) throws {
        let error = #expect(throws: fault.error) { try open(safetensors(fault.header, dataBytes: fault.dataBytes)) }
        let description = error.map(String.init(describing:)) ?? ""
        #expect(!description.isEmpty && !description.contains("\n"))
    }

    @Test func errorsStayOnOneLineWhateverTheName() throws {
        let name = #"a\nb\u001b[31m"# + String(repeating: "x", count: 10_000)
        let error = try #require(throws: SafetensorsError.self) {
            try open(safetensors(#"{"\#(name)":1}"#, dataBytes: 0))
        }
        let description = String(describing: error)
        #expect(description.count < 300)
        #expect(!description.unicodeScalars.contains { $0.value < 0x20 })
        // C1 controls, the override that turns text round, a line separator, a byte order mark, a tag of plane 14.
        let misleading = #"\u009b31m\u202egnp\u2028\ufeff\udb40\udc41"#
        let other = try #require(throws: SafetensorsError.self) {
            try open(safetensors(#"{"\#(misleading)":1}"#, dataBytes: 0))
        }
        let escaped = #"\u{9b}31m\u{202e}gnp\u{2028}\u{feff}\u{e0041}"#
        #expect(String(describing: other).contains(escaped), "\(other)")
    }

    // MARK: - What is no file

    @Test func missingFilesAndFolders() throws {
        #expect(throws: SafetensorsError.self) { try SafetensorsFile(path: folder("missing")) }
        #expect(throws: SafetensorsError.cannotOpen(path: folder.path, reason: "not a regular file")) {
            try SafetensorsFile(path: folder.path)
        }
        let pipe = folder("pipe")
        #expect(mkfifo(pipe, 0o600) == 0)
        #expect(throws: SafetensorsError.cannotOpen(path: pipe, reason: "not a regular file")) {
            try SafetensorsFile(path: pipe)
        }
    }

    @Test func fileCutOffAfterItWasOpened() throws {
        let header = #"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#
        let path = try folder.file(safetensors(header, dataBytes: 8))
        let file = try SafetensorsFile(path: path)
        #expect(truncate(path, off_t(8 + header.utf8.count + 4)) == 0)
        #expect(throws: SafetensorsError.cannotRead(path: path, reason: "the file ends too early")) {
            try file.floats(named: "w")
        }
    }
}
