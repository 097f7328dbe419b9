// SPDX-License-Identifier: Apache-2.0
// HeaderContents.swift - the members of a header's object: the metadata, and one description for each tensor.

/// What a header says, member by member.
struct HeaderContents {
    private(set) var tensors: [TensorDescription] = []
    private(set) var metadata: [String: String]?
    private var hasMetadata = false
    /// The first fault that is none of the JSON. The text behind it is still read, for one of those goes before.
    private(set) var fault: SafetensorsError?

    /// Reads the value of the member `name`.
    mutating func read(_ name: String, from reader: inout JSONReader) throws(SafetensorsError) {
        guard fault == nil else { return try reader.skipValue() }
        let start = reader
        do {
            if name == Header.metadataName {
                try readMetadata(&reader)
            } else {
                var fields = TensorFields(of: name)
                try fields.read(&reader)
                tensors.append(try fields.description())
            }
        } catch {
            if case .headerNotJSON = error { throw error }
            fault = error
            reader = start
            try reader.skipValue()
        }
    }

    /// None, that is null, is what MLX writes.
    private mutating func readMetadata(_ reader: inout JSONReader) throws(SafetensorsError) {
        guard !hasMetadata else { throw .duplicateName(Header.metadataName) }
        hasMetadata = true
        if reader.accept("null") { return }
        guard reader.next == Byte.openBrace else { throw .invalidMetadata(key: nil) }
        var entries: [String: String] = [:]
        var names: Set<[UInt8]> = []
        try reader.object { (reader, key) throws(SafetensorsError) in
            guard reader.next == Byte.quote else { throw .invalidMetadata(key: key) }
            guard names.insert(Array(key.utf8)).inserted else { throw .duplicateName(key) }
            entries[key] = try reader.string()
        }
        metadata = entries
    }
}

/// The fields of a tensor's description that have a meaning. There may be others.
private struct TensorFields {
    private let name: String
    private var elementType: ElementType?
    private var shape, offsets: [Int]?

    init(of name: String) {
        self.name = name
    }

    mutating func read(_ reader: inout JSONReader) throws(SafetensorsError) {
        guard reader.next == Byte.openBrace else {
            throw .invalidField(tensor: name, reason: "its description is not an object")
        }
        try reader.object { (reader, field) throws(SafetensorsError) in try read(field, &reader) }
    }

    private mutating func read(_ field: String, _ reader: inout JSONReader) throws(SafetensorsError) {
        switch field {
        case "dtype":
            guard elementType == nil else { throw .duplicateName(field) }
            guard reader.next == Byte.quote else {
                throw .invalidField(tensor: name, reason: "dtype is not a string")
            }
            let written = try reader.string()
            guard let type = ElementType(rawValue: written) else {
                throw .unknownElementType(tensor: name, name: written)
            }
            elementType = type
        case "shape":
            guard shape == nil else { throw .duplicateName(field) }
            shape = try integers(field, &reader)
        case "data_offsets":
            guard offsets == nil else { throw .duplicateName(field) }
            offsets = try integers(field, &reader)
        default: try reader.skipValue()
        }
    }

    private func integers(_ field: String, _ reader: inout JSONReader) throws(SafetensorsError) -> [Int] {
        guard reader.next == Byte.openBracket else {
            throw .invalidField(tensor: name, reason: "\(field) is not an array")
        }
        var integers: [Int] = []
        try reader.array { (reader) throws(SafetensorsError) in
            let isNumber = reader.next.map { UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 } ?? true
            guard isNumber, let value = try reader.number() else {
                let reason = "\(field) holds something else than integers from 0 to \(Int.max)"
                throw .invalidField(tensor: name, reason: reason)
            }
            integers.append(value)
        }
        return integers
    }

    /// What the fields say together.
    func description() throws(SafetensorsError) -> TensorDescription {
        func missing(_ field: String) -> SafetensorsError {
            .invalidField(tensor: name, reason: "\(field) is missing")
        }
        guard let elementType else { throw missing("dtype") }
        guard let shape else { throw missing("shape") }
        guard let offsets else { throw missing("data_offsets") }
        guard offsets.count == 2 else {
            throw .invalidField(tensor: name, reason: "data_offsets has \(offsets.count) elements, not 2")
        }
        guard offsets[0] <= offsets[1] else {
            throw .invalidField(
                tensor: name, reason: "its data begin at byte \(offsets[0]) and end at byte \(offsets[1])")
        }
        guard let bits = Header.bitCount(shape, elementType) else { throw .sizeOverflow(tensor: name, shape: shape) }
        let dataRange = offsets[0]..<offsets[1]
        guard bits % 8 == 0, bits / 8 == dataRange.count else {
            throw .lengthMismatch(tensor: name, dataBytes: dataRange.count, shape: shape, elementType: elementType)
        }
        return TensorDescription(name: name, elementType: elementType, shape: shape, dataRange: dataRange)
    }
}
