// SPDX-License-Identifier: Apache-2.0
// Header.swift - the header of a safetensors file: what it says, and every rule it has to keep.
//
//     file   = length of the header (8 bytes, unsigned, little endian), header (JSON), data
//     header = {"__metadata__": {string: string, ...}, name: {"dtype": string, "shape": [...], "data_offsets": [begin, end]}, ...}
//
// The data of the tensors lie one after the other, without a hole and without an overlap, from byte 0 of the data to
// their end. https://github.com/huggingface/safetensors describes the format; its reader applies the same rules.

/// One tensor of a file: its name, its type, its shape, and where its data lie.
public struct TensorDescription: Sendable, Equatable {
    public let name: String
    public let elementType: ElementType
    /// The extent of each dimension, the slowest first. Empty for a scalar.
    public let shape: [Int]
    /// The bytes of the data, counted from the beginning of the data of all tensors.
    public let dataRange: Range<Int>

    /// The number of elements: the product of the shape.
    public var count: Int { shape.reduce(1, *) }
}

/// A header that keeps every rule of the format.
struct Header: Equatable {
    /// The limit of the format, against headers made to exhaust memory.
    static let maximumLength = 100_000_000
    static let metadataName = "__metadata__"

    /// In the order of their data.
    let tensors: [TensorDescription]
    let metadata: [String: String]

    /// Reads a header, of a file in which `dataLength` bytes of data follow it.
    init(_ text: [UInt8], dataLength: Int) throws(SafetensorsError) {
        let members = try Self.members(of: text)
        try Self.checkUnique(members)

        var tensors: [TensorDescription] = []
        var metadata: [String: String] = [:]
        for member in members {
            if member.name == Self.metadataName {
                metadata = try Self.metadata(member.value)
            } else {
                tensors.append(try Self.tensor(member))
            }
        }
        tensors.sort {
            ($0.dataRange.lowerBound, $0.dataRange.upperBound) < ($1.dataRange.lowerBound, $1.dataRange.upperBound)
        }
        try Self.checkData(of: tensors, dataLength: dataLength)
        self.tensors = tensors
        self.metadata = metadata
    }

    private static func members(of text: [UInt8]) throws(SafetensorsError) -> [JSON.Member] {
        guard String(validating: text, as: UTF8.self) != nil else { throw .headerNotUTF8 }
        guard text.first == UInt8(ascii: "{") else { throw .headerNotObject }
        let value: JSON
        do {
            value = try JSONReader.read(text)
        } catch {
            throw .headerNotJSON(byte: error.byte, reason: error.reason)
        }
        guard case .object(let members) = value else { throw .headerNotObject }
        return members
    }

    /// Names are compared by their bytes: `String` would take é in one scalar and in two for the same name.
    private static func checkUnique(_ members: [JSON.Member]) throws(SafetensorsError) {
        var seen: Set<[UInt8]> = []
        for member in members where !seen.insert(Array(member.name.utf8)).inserted {
            throw .duplicateName(member.name)
        }
    }

    private static func metadata(_ value: JSON) throws(SafetensorsError) -> [String: String] {
        guard case .object(let entries) = value else { throw .invalidMetadata(key: nil) }
        try checkUnique(entries)
        var metadata: [String: String] = [:]
        for entry in entries {
            guard case .string(let text) = entry.value else { throw .invalidMetadata(key: entry.name) }
            metadata[entry.name] = text
        }
        return metadata
    }

    // MARK: - One tensor

    private static func tensor(_ member: JSON.Member) throws(SafetensorsError) -> TensorDescription {
        guard case .object(let fields) = member.value else {
            throw .invalidField(tensor: member.name, reason: "its description is not an object")
        }
        try checkUnique(fields)
        let name = member.name
        let elementType = try elementType(fields, of: name)
        let shape = try integers(fields, "shape", of: name)
        let offsets = try integers(fields, "data_offsets", of: name)
        guard offsets.count == 2 else {
            throw .invalidField(tensor: name, reason: "data_offsets has \(offsets.count) elements, not 2")
        }
        guard offsets[0] <= offsets[1] else {
            throw .invalidField(
                tensor: name, reason: "its data begin at byte \(offsets[0]) and end at byte \(offsets[1])")
        }
        guard let bits = bitCount(shape, elementType) else { throw .sizeOverflow(tensor: name, shape: shape) }
        let dataRange = offsets[0]..<offsets[1]
        guard bits % 8 == 0, bits / 8 == dataRange.count else {
            throw .lengthMismatch(tensor: name, dataBytes: dataRange.count, shape: shape, elementType: elementType)
        }
        return TensorDescription(name: name, elementType: elementType, shape: shape, dataRange: dataRange)
    }

    private static func field(_ name: String, _ fields: [JSON.Member], of tensor: String) throws(SafetensorsError)
        -> JSON
    {
        guard let field = fields.first(where: { $0.name == name }) else {
            throw .invalidField(tensor: tensor, reason: "\(name) is missing")
        }
        return field.value
    }

    private static func elementType(_ fields: [JSON.Member], of tensor: String) throws(SafetensorsError) -> ElementType
    {
        guard case .string(let name) = try field("dtype", fields, of: tensor) else {
            throw .invalidField(tensor: tensor, reason: "dtype is not a string")
        }
        guard let elementType = ElementType(rawValue: name) else {
            throw .unknownElementType(tensor: tensor, name: name)
        }
        return elementType
    }

    private static func integers(
        _ fields: [JSON.Member], _ name: String, of tensor: String
    ) throws(SafetensorsError) -> [Int] {
        guard case .array(let elements) = try field(name, fields, of: tensor) else {
            throw .invalidField(tensor: tensor, reason: "\(name) is not an array")
        }
        var integers: [Int] = []
        for element in elements {
            guard case .integer(let value) = element, value >= 0 else {
                let reason = "\(name) holds something else than integers from 0 to \(Int.max)"
                throw .invalidField(tensor: tensor, reason: reason)
            }
            integers.append(value)
        }
        return integers
    }

    /// Returns the bits that `shape` takes, or nil where that overflows.
    static func bitCount(_ shape: [Int], _ elementType: ElementType) -> Int? {
        var bits = elementType.bitWidth
        for extent in shape {
            let (product, overflow) = bits.multipliedReportingOverflow(by: extent)
            if overflow { return nil }
            bits = product
        }
        return bits
    }

    // MARK: - All tensors

    /// Checks that the data of `tensors`, which come in order, cover all `dataLength` bytes once.
    private static func checkData(of tensors: [TensorDescription], dataLength: Int) throws(SafetensorsError) {
        for tensor in tensors where tensor.dataRange.upperBound > dataLength {
            throw .dataPastEndOfFile(tensor: tensor.name, end: tensor.dataRange.upperBound, dataBytes: dataLength)
        }
        var end = 0
        for tensor in tensors {
            let begin = tensor.dataRange.lowerBound
            if begin < end { throw .overlap(tensor: tensor.name, begin: begin, previousEnd: end) }
            if begin > end { throw .hole(tensor: tensor.name, begin: begin, previousEnd: end) }
            end = tensor.dataRange.upperBound
        }
        if end < dataLength { throw .hole(tensor: nil, begin: dataLength, previousEnd: end) }
    }
}
