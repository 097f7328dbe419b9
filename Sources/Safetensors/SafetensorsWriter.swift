// SPDX-License-Identifier: Apache-2.0
// SafetensorsWriter.swift - writing: the whole file or none of it.

import CheckedFiles

/// A tensor to be written.
public struct NamedTensor: Sendable {
    public var name: String
    /// The extent of each dimension, the slowest first. Empty for a scalar.
    public var shape: [Int]
    /// The elements, the last dimension fastest.
    public var values: [Float]
    /// One of ``ElementType/writable``. Values are rounded to it, to nearest, ties to even.
    public var elementType: ElementType

    public init(name: String, shape: [Int], values: [Float], elementType: ElementType = .float32) {
        self.name = name
        self.shape = shape
        self.values = values
        self.elementType = elementType
    }
}

extension SafetensorsFile {
    /// Writes `tensors`, in the order of their names, to the file at `path`.
    ///
    /// They are written to another file of the same folder, which takes the place of `path` when it is complete:
    /// a failure leaves behind what was at `path` before. What the user had set on that stays: see ``PreparedFile``. The data
    /// begin at a multiple of 8 bytes.
    ///
    ///     try SafetensorsFile.write(
    ///         [NamedTensor(name: "weight", shape: [2, 3], values: [1, 2, 3, 4, 5, 6], elementType: .bfloat16)],
    ///         metadata: ["made by": "hand"], to: "weights.safetensors")
    ///
    /// - Throws: ``SafetensorsError`` of the cases `duplicateName`, `reservedName`, `wrongValueCount`,
    ///   `unsupportedElementType`, `headerTooLong` or `cannotWrite`.
    public static func write(
        _ tensors: [NamedTensor], metadata: [String: String] = [:], to path: String
    ) throws(SafetensorsError) {
        try prepare(tensors, metadata: metadata, for: path).commit()
    }

    /// Writes `tensors` as ``write(_:metadata:to:)`` does, up to the last step, which ``PreparedFile/commit()`` takes.
    public static func prepare(
        _ tensors: [NamedTensor], metadata: [String: String] = [:], for path: String
    ) throws(SafetensorsError) -> PreparedFile {
        let tensors = tensors.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
        for tensor in tensors { try check(tensor) }
        let header = try headerText(
            tensors.map { TensorPlan(name: $0.name, shape: $0.shape, elementType: $0.elementType) }, metadata: metadata)
        return try PreparedFile(path) { file in
            try write(header: header, to: file)
            for tensor in tensors { try write(tensor, to: file) }
        }
    }

    // MARK: - The header

    /// - Parameter tensors: in the order of their names.
    static func headerText(
        _ tensors: [TensorPlan], metadata: [String: String]
    ) throws(SafetensorsError) -> [UInt8] {
        var members: [String] = []
        if !metadata.isEmpty {
            let entries = metadata.sorted { $0.key < $1.key }.map { "\(jsonString($0.key)):\(jsonString($0.value))" }
            members.append("\(jsonString(Header.metadataName)):{\(entries.joined(separator: ","))}")
        }
        var begin = 0
        for (index, tensor) in tensors.enumerated() {
            if index > 0, tensors[index - 1].name.utf8.elementsEqual(tensor.name.utf8) {
                throw .duplicateName(tensor.name)
            }
            let end = begin + (try byteCount(tensor))
            let shape = tensor.shape.map(String.init).joined(separator: ",")
            members.append(
                "\(jsonString(tensor.name)):{\"dtype\":\"\(tensor.elementType.rawValue)\",\"shape\":[\(shape)],"
                    + "\"data_offsets\":[\(begin),\(end)]}")
            begin = end
        }
        var text = Array("{\(members.joined(separator: ","))}".utf8)
        // Spaces up to a multiple of 8: with the 8 bytes of the length before it, the data are aligned.
        text += repeatElement(UInt8(ascii: " "), count: -text.count & 7)
        guard text.count <= Header.maximumLength else { throw .headerTooLong(headerBytes: UInt64(text.count)) }
        return text
    }

    private static func check(_ tensor: NamedTensor) throws(SafetensorsError) {
        let bits = tensor.shape.allSatisfy { $0 >= 0 } ? Header.bitCount(tensor.shape, tensor.elementType) : nil
        guard let bits, bits / tensor.elementType.bitWidth == tensor.values.count else {
            throw .wrongValueCount(tensor: tensor.name, shape: tensor.shape, values: tensor.values.count)
        }
    }

    static func byteCount(_ tensor: TensorPlan) throws(SafetensorsError) -> Int {
        guard tensor.name != Header.metadataName else { throw .reservedName(tensor.name) }
        guard ElementType.writable.contains(tensor.elementType) else {
            throw .unsupportedElementType(
                tensor: tensor.name, elementType: tensor.elementType, expected: ElementType.writable)
        }
        guard tensor.shape.allSatisfy({ $0 >= 0 }), let bits = Header.bitCount(tensor.shape, tensor.elementType) else {
            throw .sizeOverflow(tensor: tensor.name, shape: tensor.shape)
        }
        return bits / 8
    }

    /// Returns `text` as a JSON string.
    private static func jsonString(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case ..<" ":
                let digits = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }

    // MARK: - The data

    private static func write(_ tensor: NamedTensor, to file: FileDescriptor) throws {
        switch tensor.elementType {
        case .float16: try write(tensor.values, to: file, roundedToFloat16)
        case .bfloat16: try write(tensor.values, to: file, roundedToBFloat16)
        default: try write(tensor.values, to: file)
        }
    }

    private static func write(
        _ values: [Float], to file: FileDescriptor, _ round: (Float) -> UInt16
    ) throws {
        for start in stride(from: 0, to: values.count, by: 1 << 16) {
            try write(values[start...].prefix(1 << 16).map(round), to: file)
        }
    }

    private static func write<Element: BitwiseCopyable>(_ elements: [Element], to file: FileDescriptor) throws {
        try elements.withUnsafeBytes { try file.write($0) }
    }

    /// Writes the header's length and the header.
    static func write(header: [UInt8], to file: FileDescriptor) throws {
        try withUnsafeBytes(of: UInt64(header.count)) { try file.write($0) }
        try write(header, to: file)
    }
}
