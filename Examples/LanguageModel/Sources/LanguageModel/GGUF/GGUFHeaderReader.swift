// SPDX-License-Identifier: Apache-2.0
// GGUFHeaderReader.swift - reads a header from a file piece by piece, each length checked against what the file still has.
//
//     file   = "GGUF" version:u32 tensors:u64 values:u64 value... tensor... padding data
//     value  = name type:u32 content          string = length:u64 bytes          array = type:u32 count:u64 content...
//     tensor = name dimensions:u32 extent:u64... type:u32 offset:u64
//
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes the format.

/// Bytes of a file from its beginning on, in pieces of 64 KiB.
struct GGUFHeaderReader {
    private let file: FileDescriptor
    let fileBytes: Int
    /// The next byte to be read.
    private(set) var offset = 0
    private var buffer: [UInt8] = []
    private var bufferStart = 0

    init(_ file: FileDescriptor, fileBytes: Int) {
        (self.file, self.fileBytes) = (file, fileBytes)
    }

    /// Bytes of the file that are left.
    var available: Int { fileBytes - offset }

    /// Checks that so many bytes are left.
    func require(_ count: UInt64, _ what: String) throws -> Int {
        guard count <= available else {
            throw GGUFError.truncated(offset: offset, needed: count, available: available, what: what)
        }
        return Int(count)
    }

    /// Checks that `count` elements of at least so many bytes can be left, before anything is made for them.
    func require(_ count: UInt64, elementsOf bytes: Int, _ what: String) throws -> Int {
        let (needed, overflow) = count.multipliedReportingOverflow(by: UInt64(bytes))
        _ = try require(overflow ? .max : needed, what)
        return Int(count)
    }

    private mutating func bytes(_ count: Int) throws -> ArraySlice<UInt8> {
        if offset < bufferStart || offset + count > bufferStart + buffer.count {
            bufferStart = offset
            buffer = [UInt8](repeating: 0, count: min(max(count, 1 << 16), available))
            try buffer.withUnsafeMutableBytes { try file.read(into: $0, from: bufferStart) }
        }
        defer { offset += count }
        return buffer[offset - bufferStart..<offset - bufferStart + count]
    }

    mutating func integer<Integer: FixedWidthInteger>(_ type: Integer.Type, _ what: String) throws -> Integer {
        let size = try require(UInt64(MemoryLayout<Integer>.size), what)
        return try bytes(size).reversed().reduce(0) { $0 << 8 | Integer(truncatingIfNeeded: $1) }
    }

    mutating func string(_ what: String) throws -> String {
        // One after the other: a call takes its own state before that of its arguments.
        let length = try integer(UInt64.self, what)
        let count = try require(length, what)
        let start = offset
        guard let text = String(validating: try bytes(count), as: UTF8.self) else {
            throw GGUFError.notUTF8(offset: start, what: what)
        }
        return text
    }

    // MARK: - Values

    mutating func value(_ key: String) throws -> GGUFValue {
        let type = try valueType(key)
        guard type == .array else { return try scalar(type, key) }
        let element = try valueType(key)
        guard element != .array else { throw GGUFError.nestedArray(key: key) }
        let elements = try integer(UInt64.self, key)
        let count = try require(elements, elementsOf: element.minimumBytes, key)
        switch element {
        case .string: return .strings(try array(count) { try $0.string(key) })
        case .bool: return .bools(try array(count) { try $0.boolean(key) })
        case .float32, .float64:
            return .floats(
                try array(count) {
                    guard case .float(let float) = try $0.scalar(element, key) else { return .nan }
                    return float
                })
        default:
            return .integers(
                try array(count) {
                    switch try $0.scalar(element, key) {
                    case .signed(let integer): integer
                    // Beyond Int64 there is no number of a token.
                    case .unsigned(let integer): Int64(clamping: integer)
                    default: 0
                    }
                })
        }
    }

    private mutating func array<Element>(
        _ count: Int, _ element: (inout Self) throws -> Element
    ) throws -> [Element] {
        var elements: [Element] = []
        elements.reserveCapacity(count)
        for _ in 0..<count { elements.append(try element(&self)) }
        return elements
    }

    private mutating func valueType(_ key: String) throws -> GGUFValueType {
        let number = try integer(UInt32.self, key)
        guard let type = GGUFValueType(rawValue: number) else {
            throw GGUFError.unknownValueType(key: key, type: number)
        }
        return type
    }

    private mutating func boolean(_ key: String) throws -> Bool {
        let byte = try integer(UInt8.self, key)
        guard byte <= 1 else { throw GGUFError.invalidBoolean(key: key, byte: byte) }
        return byte == 1
    }

    private mutating func scalar(_ type: GGUFValueType, _ key: String) throws -> GGUFValue {
        switch type {
        case .uint8: .unsigned(UInt64(try integer(UInt8.self, key)))
        case .uint16: .unsigned(UInt64(try integer(UInt16.self, key)))
        case .uint32: .unsigned(UInt64(try integer(UInt32.self, key)))
        case .uint64: .unsigned(try integer(UInt64.self, key))
        case .int8: .signed(Int64(try integer(Int8.self, key)))
        case .int16: .signed(Int64(try integer(Int16.self, key)))
        case .int32: .signed(Int64(try integer(Int32.self, key)))
        case .int64: .signed(try integer(Int64.self, key))
        case .float32: .float(Double(Float(bitPattern: try integer(UInt32.self, key))))
        case .float64: .float(Double(bitPattern: try integer(UInt64.self, key)))
        case .bool: .bool(try boolean(key))
        case .string: .string(try string(key))
        case .array: throw GGUFError.nestedArray(key: key)
        }
    }

    // MARK: - Tensors

    /// A tensor whose data begin so far behind the beginning of all data.
    struct Entry {
        let name: String
        let type: GGUFTensorType
        let shape: [Int]
        let byteCount: Int
        let offset: UInt64
    }

    mutating func tensor() throws -> Entry {
        let name = try string("a tensor's name")
        let dimensions = try integer(UInt32.self, name)
        guard (1...4).contains(dimensions) else {
            throw GGUFError.invalidShape(tensor: name, reason: "has \(dimensions) dimensions, not 1 to 4")
        }
        var shape: [Int] = []
        for _ in 0..<dimensions {
            let extent = try integer(UInt64.self, name)
            guard extent <= Int.max else {
                throw GGUFError.invalidShape(tensor: name, reason: "has an extent of \(extent)")
            }
            shape.insert(Int(extent), at: 0)
        }
        let number = try integer(UInt32.self, name)
        guard let type = GGUFTensorType(rawValue: number) else {
            throw GGUFError.unknownTensorType(tensor: name, type: number)
        }
        let byteCount = try Self.byteCount(shape, type, name)
        return Entry(
            name: name, type: type, shape: shape, byteCount: byteCount, offset: try integer(UInt64.self, name))
    }

    private static func byteCount(_ shape: [Int], _ type: GGUFTensorType, _ name: String) throws -> Int {
        let columns = shape[shape.count - 1]
        guard columns % type.blockElements == 0 else {
            throw GGUFError.invalidShape(
                tensor: name, reason: "has rows of \(columns) elements, no multiple of \(type.blockElements)")
        }
        // Rows first: of no columns there may be too many to be counted, too.
        var (count, overflow) = (1, false)
        for factor in shape.dropLast() + [columns / type.blockElements, type.blockBytes] where !overflow {
            (count, overflow) = count.multipliedReportingOverflow(by: factor)
        }
        guard !overflow else {
            throw GGUFError.invalidShape(tensor: name, reason: "of the shape \(shape) is too large")
        }
        return count
    }
}
