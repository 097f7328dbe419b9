// SPDX-License-Identifier: Apache-2.0
// SafetensorsFile.swift - reading: open, check the header, then fetch tensors one at a time.

import CheckedFiles

#if !_endian(little)
    #error("safetensors data are little endian and are read and written as they lie in memory")
#endif

/// A safetensors file open for reading.
///
/// Opening reads and checks the header alone; each tensor is read from the file when asked for. The checks are those of
/// the format: see ``SafetensorsError``. A file that passes them can be read without another look at its sizes. Opening
/// takes time and memory in proportion to the header, which is at most 100 MB; finding a tensor by its name takes the
/// same time in all files.
///
///     let file = try SafetensorsFile(path: "model.safetensors")
///     for tensor in file.tensors { print(tensor.name, tensor.elementType, tensor.shape) }
///     let weights = try file.floats(named: "layers.0.weight")
///
/// What the format's own reader (the Rust and Python package `safetensors`, 0.8) opens is opened here, and what it refuses
/// is refused, but for these, which are refused here alone:
///
/// - a name that occurs twice: two tensors, or two entries of the metadata. The format forbids it; its reader takes the last;
/// - a tensor described by an array of its three fields in place of an object, and a dtype written as `{"F32": null}`;
/// - an extent or an offset above `Int.max`, which makes sense for tensors without elements at most.
public struct SafetensorsFile: Sendable {
    /// The tensors, in the order of their data.
    public let tensors: [TensorDescription]
    /// The file's `__metadata__`; empty where there is none, or null. Of keys that are the same text in other scalars of
    /// Unicode, and so equal as `String`, the last stays.
    public let metadata: [String: String]

    private let index: NameIndex
    let path: String
    let file: FileDescriptor
    /// Where the data begin: after the length and the header.
    let dataStart: Int

    /// Opens the file at `path` and checks its header.
    ///
    /// - Throws: ``SafetensorsError``: the file cannot be opened or read, is of another format, or its header breaks a rule.
    public init(path: String) throws(SafetensorsError) {
        let file = try during(.open, path) {
            try FileDescriptor.reading(path)
        }
        let (header, dataStart) = try during(.read, path) {
            let fileBytes = try file.status().byteCount
            do {
                let text = try Self.headerText(file, fileBytes: fileBytes)
                let dataStart = 8 + text.count
                return (try Header(text, dataLength: fileBytes - dataStart), dataStart)
            } catch let error as SafetensorsError {
                throw try Self.foreign(file, fileBytes: fileBytes, error)
            }
        }
        self.path = path
        self.file = file
        self.dataStart = dataStart
        tensors = header.tensors
        index = header.index
        metadata = header.metadata
    }

    /// The file seems to be of another format, or else it is refused for `error`.
    private static func foreign(
        _ file: FileDescriptor, fileBytes: Int, _ error: SafetensorsError
    ) throws -> SafetensorsError {
        switch error {
        case .fileTooShort, .headerTooLong, .headerPastEndOfFile, .headerNotUTF8, .headerNotJSON, .headerNotObject:
            var start = [UInt8](repeating: 0, count: min(fileBytes, foreignFormatBytes))
            try start.withUnsafeMutableBytes { try file.read(into: $0, from: 0) }
            return foreignFormat(start).map(SafetensorsError.otherFormat) ?? error
        default: return error
        }
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

    /// Whether there is a tensor of that name.
    public func contains(_ name: String) -> Bool { index.place(of: name, in: tensors) != nil }

    /// Returns the tensor of that name, all of whose bytes are those of `name`.
    ///
    /// - Throws: ``SafetensorsError/noSuchTensor(_:available:)``.
    public func tensor(named name: String) throws(SafetensorsError) -> TensorDescription {
        guard let place = index.place(of: name, in: tensors) else {
            throw .noSuchTensor(name, available: tensors.map(\.name).sorted())
        }
        return tensors[place]
    }

    /// Returns the elements of a tensor, the last dimension fastest. F16 and BF16 are widened, which is exact;
    /// F64 is rounded once, to nearest, ties to even, and refused where a finite number would become infinite.
    public func floats(named name: String) throws(SafetensorsError) -> [Float] {
        let tensor = try tensor(named: name, ElementType.readable)
        return try during(.read, path) {
            switch tensor.elementType {
            case .float16: return try elements(tensor, widenedFloat16)
            case .bfloat16: return try elements(tensor, widenedBFloat16)
            case .float64: return try elements(tensor) { (bits: UInt64) in try tensor.narrowed(bits) }
            default: return try elements(tensor)
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
        try checkMemory(tensor, MemoryLayout<Element>.stride)
        var part = [Stored](repeating: 0, count: min(tensor.count, 1 << 16))
        return try [Element](unsafeUninitializedCapacity: tensor.count) { elements, done in
            while done < tensor.count {
                let count = min(part.count, tensor.count - done)
                let start = tensor.dataRange.lowerBound + done * MemoryLayout<Stored>.size
                try part.withUnsafeMutableBytes {
                    let bytes = UnsafeMutableRawBufferPointer(rebasing: $0[..<(count * MemoryLayout<Stored>.size)])
                    try file.read(into: bytes, from: dataStart + start)
                }
                for index in 0..<count { elements.initializeElement(at: done + index, to: try convert(part[index])) }
                done += count
            }
        }
    }

    /// Reads elements as they lie in the file.
    private func elements<Element: BitwiseCopyable>(_ tensor: TensorDescription) throws -> [Element] {
        try checkMemory(tensor, MemoryLayout<Element>.stride)
        return try [Element](unsafeUninitializedCapacity: tensor.count) { elements, count in
            try file.read(
                into: UnsafeMutableRawBufferPointer(elements), from: dataStart + tensor.dataRange.lowerBound)
            count = tensor.count
        }
    }

    /// A sparse file takes no room and may speak of any number of elements: an array of them would end the process.
    private func checkMemory(_ tensor: TensorDescription, _ stride: Int) throws(SafetensorsError) {
        let (bytes, overflow) = tensor.count.multipliedReportingOverflow(by: stride)
        guard !overflow, memoryIsAvailable(bytes) else {
            throw .noMemory(tensor: tensor.name, bytes: overflow ? .max : bytes)
        }
    }
}
