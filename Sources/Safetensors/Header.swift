// SPDX-License-Identifier: Apache-2.0
// Header.swift - the header of a safetensors file: what it says, and every rule it has to keep.
//
//     file   = length of the header (8 bytes, unsigned, little endian), header (JSON), data
//     header = {"__metadata__": {string: string, ...}, name: {"dtype": string, "shape": [...], "data_offsets": [begin, end]}, ...}
//
// The data of the tensors lie one after the other, without a hole and without an overlap, from byte 0 of the data to
// their end. https://github.com/huggingface/safetensors describes the format. Its reader is the measure of this one: see
// ``SafetensorsFile`` for the differences.

/// One tensor of a file: its name, its type, its shape, and where its data lie.
public struct TensorDescription: Sendable, Equatable {
    public let name: String
    public let elementType: ElementType
    /// The extent of each dimension, the slowest first. Empty for a scalar.
    public let shape: [Int]
    /// The bytes of the data, counted from the beginning of the data of all tensors.
    public let dataRange: Range<Int>

    /// The number of elements: the product of the shape.
    public var count: Int { shape.contains(0) ? 0 : shape.reduce(1, *) }

    /// Returns the `Float` nearest to an element of F64, ties to even.
    ///
    /// - Throws: `beyondFloat` where a finite number would become infinite.
    public func narrowed(_ bits: UInt64) throws(SafetensorsError) -> Float {
        let value = Double(bitPattern: bits)
        guard Float(value).isFinite || !value.isFinite else { throw .beyondFloat(tensor: name, value: value) }
        return Float(value)
    }
}

/// A header that keeps every rule of the format. Reading one takes time in proportion to its length.
struct Header {
    /// The limit of the format, against headers made to exhaust memory.
    static let maximumLength = 100_000_000
    static let metadataName = "__metadata__"

    /// In the order of their data.
    let tensors: [TensorDescription]
    let index: NameIndex
    let metadata: [String: String]

    /// Reads a header, of a file in which `dataLength` bytes of data follow it.
    init(_ text: [UInt8], dataLength: Int) throws(SafetensorsError) {
        guard isUTF8(text) else { throw .headerNotUTF8 }
        var reader = JSONReader(text)
        guard reader.next == Byte.openBrace else { throw .headerNotObject }
        var contents = HeaderContents()
        try reader.object { (reader, name) throws(SafetensorsError) in try contents.read(name, from: &reader) }
        try reader.expectEnd()
        if let fault = contents.fault { throw fault }

        tensors = Self.inOrderOfData(contents.tensors)
        index = try NameIndex(tensors)
        metadata = contents.metadata ?? [:]
        try Self.checkData(of: tensors, dataLength: dataLength)
    }

    /// Tensors of the same range stay in the order in which they came.
    private static func inOrderOfData(_ tensors: [TensorDescription]) -> [TensorDescription] {
        struct Place {
            let range: Range<Int>
            let index: Int
        }
        func precedes(_ a: Range<Int>, _ b: Range<Int>) -> Bool {
            (a.lowerBound, a.upperBound) < (b.lowerBound, b.upperBound)
        }
        let isInOrder = !zip(tensors, tensors.dropFirst()).contains { precedes($1.dataRange, $0.dataRange) }
        if isInOrder { return tensors }
        let places = tensors.indices.map { Place(range: tensors[$0].dataRange, index: $0) }
        return places.sorted { precedes($0.range, $1.range) || $0.range == $1.range && $0.index < $1.index }
            .map { tensors[$0.index] }
    }

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

    /// Returns the bits that `shape` takes, or nil where that, or the product of some first extents, is 2^64 or more.
    static func bitCount(_ shape: [Int], _ elementType: ElementType) -> Int? {
        var count: UInt64 = 1
        for extent in shape {
            let (product, overflow) = count.multipliedReportingOverflow(by: UInt64(extent))
            if overflow { return nil }
            count = product
        }
        let (bits, overflow) = count.multipliedReportingOverflow(by: UInt64(elementType.bitWidth))
        return overflow ? nil : Int(exactly: bits)
    }
}

/// Whether these bytes are valid UTF-8. They are looked at in parts: a copy of all of them would take as much memory again.
private func isUTF8(_ text: [UInt8]) -> Bool {
    var start = 0
    while start < text.count {
        var end = min(start + 1 << 16, text.count)
        // A part ends before the first byte of a character, or the character would be cut.
        while end < text.count, end > start, text[end] & 0xc0 == 0x80 { end -= 1 }
        // So many bytes that continue a character are none.
        if end == start { return false }
        guard String(validating: text[start..<end], as: UTF8.self) != nil else { return false }
        start = end
    }
    return true
}
