// SPDX-License-Identifier: Apache-2.0
// TensorSlices.swift - parts of tensors: read from a file, and written to one that is not complete yet.

import CheckedFiles

/// A tensor to be written, without its values.
public struct TensorPlan: Sendable {
    public var name: String
    /// The extent of each dimension, the slowest first. Empty for a scalar.
    public var shape: [Int]
    /// One of ``ElementType/writable``.
    public var elementType: ElementType

    public init(name: String, shape: [Int], elementType: ElementType = .float32) {
        (self.name, self.shape, self.elementType) = (name, shape, elementType)
    }
}

extension SafetensorsFile {
    /// Reads bytes of a tensor as they lie in the file, until `buffer` is full.
    ///
    /// - Parameters:
    ///   - tensor: one of ``tensors``.
    ///   - offset: of the first byte, counted from the tensor's own first.
    ///   - buffer: what is to be filled, at most what is left of the tensor.
    /// - Throws: ``SafetensorsError/cannotRead(path:reason:)``.
    public func read(
        _ tensor: TensorDescription, from offset: Int, into buffer: UnsafeMutableRawBufferPointer
    ) throws(SafetensorsError) {
        let left = tensor.dataRange.count - offset
        try during(.read, path) {
            guard offset >= 0, buffer.count <= left else {
                throw SystemError("tensor \(quoted(tensor.name)) has no \(buffer.count) bytes from \(offset) on")
            }
            try file.read(into: buffer, from: dataStart + tensor.dataRange.lowerBound + offset)
        }
    }
}

/// A file whose header is written, with room for the data, and which takes its place when all of it is there.
///
///     let file = try SlicedFile([TensorPlan(name: "out", shape: [2, 3])], for: "result.safetensors")
///     try file.write([1, 2, 3], of: "out", from: 3)
///     try file.write([4, 5, 6], of: "out", from: 0)
///     try file.commit()
///
/// What was not written is 0. Without ``commit()`` it is removed when the last reference goes: see ``PreparedFile``.
public final class SlicedFile {
    private let prepared: PreparedFile
    private let file: FileDescriptor
    /// Of each tensor: its first byte in the file, and its bytes.
    private let places: [String: (start: Int, bytes: Int)]

    /// - Parameters:
    ///   - tensors: of the type `float32`.
    ///   - path: where the file shall be.
    /// - Throws: ``SafetensorsError`` of the cases that writing has.
    public init(_ tensors: [TensorPlan], for path: String) throws(SafetensorsError) {
        let tensors = tensors.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
        for tensor in tensors where tensor.elementType != .float32 {
            throw .unsupportedElementType(
                tensor: tensor.name, elementType: tensor.elementType, expected: [.float32])
        }
        let header = try SafetensorsFile.headerText(tensors, metadata: [:])
        var places: [String: (start: Int, bytes: Int)] = [:]
        var end = 8 + header.count
        for tensor in tensors {
            let bytes = try SafetensorsFile.byteCount(tensor)
            places[tensor.name] = (end, bytes)
            end += bytes
        }
        self.places = places
        prepared = try PreparedFile(path) { file in
            try SafetensorsFile.write(header: header, to: file)
            try file.makeRoom(from: 8 + header.count, to: end)
        }
        let temporary = prepared.temporary
        file = try during(.write, path) { try FileDescriptor.overwriting(temporary) }
    }

    /// Where the file is until it takes its place: for those who must remove it in a signal handler.
    public var temporaryPath: String { prepared.temporary }

    /// Writes elements of a tensor.
    ///
    /// - Parameters:
    ///   - values: adjacent elements.
    ///   - name: of the tensor.
    ///   - first: the number of the first of them in the tensor.
    /// - Throws: ``SafetensorsError/cannotWrite(path:reason:)``.
    public func write(_ values: [Float], of name: String, from first: Int) throws(SafetensorsError) {
        try during(.write, prepared.path) {
            let (start, bytes) = places[name] ?? (0, 0)
            let offset = first * MemoryLayout<Float>.stride
            guard first >= 0, offset + values.count * MemoryLayout<Float>.stride <= bytes else {
                throw SystemError("tensor \(quoted(name)) has no \(values.count) elements from \(first) on")
            }
            try values.withUnsafeBytes { try file.write($0, at: start + offset) }
        }
    }

    /// Gives the file its place.
    ///
    /// - Throws: ``SafetensorsError/cannotWrite(path:reason:)``.
    public func commit() throws(SafetensorsError) { try prepared.commit() }
}
