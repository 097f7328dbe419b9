// SPDX-License-Identifier: Apache-2.0
// SafetensorsFile.swift - reading: open, check the header, then fetch tensors one at a time.

#if !_endian(little)
    #error("safetensors data are little endian and are read and written as they lie in memory")
#endif

/// A safetensors file open for reading.
///
/// Opening reads and checks the header alone; each tensor is read from the file when asked for. The checks are those of
/// the format: see ``SafetensorsError``. A file that passes them can be read without another look at its sizes.
public struct SafetensorsFile: Sendable {
    /// The tensors, in the order of their data.
    public let tensors: [TensorDescription]
    /// The file's `__metadata__`.
    public let metadata: [String: String]

    private let path: String
    private let file: FileDescriptor
    /// Where the data begin: after the length and the header.
    private let dataStart: Int

    /// Opens the file at `path` and checks its header.
    public init(path: String) throws(SafetensorsError) {
        let file = try during(.open, path) {
            try FileDescriptor.reading(path)
        }
        let (header, dataStart) = try during(.read, path) {
            let fileBytes = try file.status().byteCount
            let text = try Self.headerText(file, fileBytes: fileBytes)
            let dataStart = 8 + text.count
            return (try Header(text, dataLength: fileBytes - dataStart), dataStart)
        }
        self.path = path
        self.file = file
        self.dataStart = dataStart
        tensors = header.tensors
        metadata = header.metadata
    }

    private static func headerText(_ file: FileDescriptor, fileBytes: Int) throws -> [UInt8] {
        guard fileBytes >= 8 else { throw SafetensorsError.fileTooShort(fileBytes: fileBytes) }
        var length: UInt64 = 0
        try withUnsafeMutableBytes(of: &length) { try file.read(into: $0, from: 0) }
        guard length <= Header.maximumLength else { throw SafetensorsError.headerTooLong(headerBytes: length) }
        guard length <= fileBytes - 8 else {
            throw SafetensorsError.headerPastEndOfFile(headerBytes: length, fileBytes: fileBytes)
        }
        var text = [UInt8](repeating: 0, count: Int(length))
        try text.withUnsafeMutableBytes { try file.read(into: $0, from: 8) }
        return text
    }

    /// Returns the tensor of that name.
    public func tensor(named name: String) throws(SafetensorsError) -> TensorDescription {
        guard let tensor = tensors.first(where: { $0.name.utf8.elementsEqual(name.utf8) }) else {
            throw .noSuchTensor(name, available: tensors.map(\.name).sorted())
        }
        return tensor
    }

    /// Returns the elements of a tensor, the last dimension fastest. F16 and BF16 are widened, which is exact;
    /// F64 is rounded once, to nearest, ties to even, and refused where a finite number would become infinite.
    public func floats(named name: String) throws(SafetensorsError) -> [Float] {
        let tensor = try tensor(named: name, ElementType.readable)
        return try during(.read, path) {
            switch tensor.elementType {
            case .float16: return try elements(tensor, widenedFloat16)
            case .bfloat16: return try elements(tensor, widenedBFloat16)
            case .float64:
                return try elements(tensor) { (bits: UInt64) in
                    let value = Double(bitPattern: bits)
                    if value.isFinite, !Float(value).isFinite {
                        throw SafetensorsError.beyondFloat(tensor: name, value: value)
                    }
                    return Float(value)
                }
            default:
                var values = [Float](repeating: 0, count: tensor.count)
                try read(into: &values, from: dataStart + tensor.dataRange.lowerBound)
                return values
            }
        }
    }

    /// Returns the elements of a tensor of numbers with a fraction, the last dimension fastest. All are exact.
    public func doubles(named name: String) throws(SafetensorsError) -> [Double] {
        let tensor = try tensor(named: name, ElementType.readable)
        guard tensor.elementType == .float64 else { return try floats(named: name).map(Double.init) }
        return try during(.read, path) { try elements(tensor) { (bits: UInt64) in Double(bitPattern: bits) } }
    }

    /// Returns the elements of a tensor of integers, the last dimension fastest. Those of U64 are at most `Int.max`.
    public func integers(named name: String) throws(SafetensorsError) -> [Int] {
        let tensor = try tensor(named: name, ElementType.integers)
        return try during(.read, path) { try elements(tensor, converting: { $0 }) }
    }

    /// Returns the elements of a tensor of BOOL or integers, the last dimension fastest: 0 is false, everything else true.
    public func booleans(named name: String) throws(SafetensorsError) -> [Bool] {
        let tensor = try tensor(named: name, ElementType.booleans)
        return try during(.read, path) { try elements(tensor, converting: { $0 != 0 }) }
    }

    /// Elements of BOOL or integers.
    private func elements<Element>(
        _ tensor: TensorDescription, converting convert: (Int) -> Element
    ) throws -> [Element] {
        switch tensor.elementType {
        case .int8: try elements(tensor) { (element: Int8) in convert(Int(element)) }
        case .uint16: try elements(tensor) { (element: UInt16) in convert(Int(element)) }
        case .int16: try elements(tensor) { (element: Int16) in convert(Int(element)) }
        case .uint32: try elements(tensor) { (element: UInt32) in convert(Int(element)) }
        case .int32: try elements(tensor) { (element: Int32) in convert(Int(element)) }
        case .uint64: try elements(tensor) { (element: UInt64) in convert(Int(clamping: element)) }
        case .int64: try elements(tensor) { (element: Int64) in convert(Int(element)) }
        default: try elements(tensor) { (element: UInt8) in convert(Int(element)) }
        }
    }

    private func tensor(
        named name: String, _ types: [ElementType]
    ) throws(SafetensorsError) -> TensorDescription {
        let tensor = try tensor(named: name)
        guard types.contains(tensor.elementType) else {
            throw .unsupportedElementType(tensor: name, elementType: tensor.elementType, expected: types)
        }
        return tensor
    }

    /// Reads elements, converts them one by one, and holds no more than a part of what was read.
    private func elements<Stored: FixedWidthInteger & BitwiseCopyable, Element>(
        _ tensor: TensorDescription, _ convert: (Stored) throws -> Element
    ) throws -> [Element] {
        var elements: [Element] = []
        elements.reserveCapacity(tensor.count)
        var part = [Stored](repeating: 0, count: min(tensor.count, 1 << 16))
        while elements.count < tensor.count {
            part.removeLast(max(0, part.count - (tensor.count - elements.count)))
            let start = tensor.dataRange.lowerBound + elements.count * MemoryLayout<Stored>.size
            try read(into: &part, from: dataStart + start)
            for element in part { elements.append(try convert(element)) }
        }
        return elements
    }

    private func read<Element: BitwiseCopyable>(
        into elements: inout [Element], from offset: Int
    ) throws {
        try elements.withUnsafeMutableBytes { try file.read(into: $0, from: offset) }
    }
}
