// SPDX-License-Identifier: Apache-2.0
// GGUFFile.swift - a model file: open, check the header, then fetch tensors one at a time.

/// A GGUF file open for reading, of version 2 or 3.
///
/// Opening reads and checks the header alone: every length against the bytes that are left, every tensor against the end of
/// the file and against all others. Tensors are read from the file when asked for. A file that is cut off or written to after it was opened
/// is an error then, never a signal: nothing is mapped into memory.
public struct GGUFFile: Sendable {
    public let version: UInt32
    public let metadata: [String: GGUFValue]
    /// In the order of the file.
    public let tensors: [GGUFTensor]

    private let path: String
    private let file: FileDescriptor
    private let status: FileStatus
    private let indices: [String: Int]

    public init(path: String) throws(GGUFError) {
        let file: FileDescriptor
        let status: FileStatus
        do {
            file = try FileDescriptor.reading(path)
            status = try file.status()
        } catch {
            throw .cannotOpen(path: path, reason: Self.reason(error))
        }
        (self.path, self.file, self.status) = (path, file, status)
        let header = try Self.reading(path) { try Header(file, fileBytes: status.byteCount) }
        (version, metadata, tensors) = (header.version, header.metadata, header.tensors)
        indices = Dictionary(uniqueKeysWithValues: header.tensors.enumerated().map { ($1.name, $0) })
    }

    /// The tensor of that name; nil if there is none.
    public func tensor(named name: String) -> GGUFTensor? { indices[name].map { tensors[$0] } }

    /// Reads rows of a tensor, as they lie in the file.
    ///
    /// - Parameters:
    ///   - rows: within the tensor.
    ///   - buffer: of `rows.count * tensor.rowBytes` bytes.
    public func read(
        _ tensor: GGUFTensor, rows: Range<Int>, into buffer: UnsafeMutableRawBufferPointer
    ) throws(GGUFError) {
        precondition(rows.lowerBound >= 0 && rows.upperBound <= tensor.rows)
        precondition(buffer.count == rows.count * tensor.rowBytes)
        let offset = tensor.byteRange.lowerBound + rows.lowerBound * tensor.rowBytes
        try Self.reading(path) {
            try file.read(into: buffer, from: offset)
            guard try file.status().isUnchanged(since: status) else { throw GGUFError.changed(path: path) }
        }
    }

    private static func reading<Result>(_ path: String, _ body: () throws -> Result) throws(GGUFError) -> Result {
        do {
            return try body()
        } catch let error as GGUFError {
            throw error
        } catch {
            throw .cannotRead(path: path, reason: reason(error))
        }
    }

    private static func reason(_ error: any Error) -> String { (error as? SystemError)?.reason ?? "\(error)" }
}

/// A header that keeps every rule of the format.
private struct Header {
    let version: UInt32
    let metadata: [String: GGUFValue]
    let tensors: [GGUFTensor]

    init(_ file: FileDescriptor, fileBytes: Int) throws {
        var reader = GGUFHeaderReader(file, fileBytes: fileBytes)
        guard fileBytes >= 4, try reader.integer(UInt32.self, "the first word") == 0x4655_4747 else {
            throw GGUFError.notGGUF
        }
        version = try reader.integer(UInt32.self, "the version")
        guard version == 2 || version == 3 else { throw GGUFError.unsupportedVersion(version) }
        let tensorCount = try reader.integer(UInt64.self, "the number of tensors")
        let valueCount = try reader.integer(UInt64.self, "the number of values")
        // A value takes a name, a type and a byte at least, a tensor a name and 24 bytes.
        let values = try reader.require(valueCount, elementsOf: 13, "the metadata")
        metadata = try Self.metadata(values, &reader)
        let count = try reader.require(tensorCount, elementsOf: 32, "the list of tensors")
        var entries: [GGUFHeaderReader.Entry] = []
        var names: Set<String> = []
        for _ in 0..<count {
            let entry = try reader.tensor()
            guard names.insert(entry.name).inserted else { throw GGUFError.duplicateName(entry.name) }
            entries.append(entry)
        }
        tensors = try Self.placed(entries, after: reader.offset, fileBytes, alignment: try Self.alignment(metadata))
    }

    private static func metadata(_ count: Int, _ reader: inout GGUFHeaderReader) throws -> [String: GGUFValue] {
        var metadata: [String: GGUFValue] = [:]
        for _ in 0..<count {
            let key = try reader.string("a key")
            guard metadata.updateValue(try reader.value(key), forKey: key) == nil else {
                throw GGUFError.duplicateName(key)
            }
        }
        return metadata
    }

    private static func alignment(_ metadata: [String: GGUFValue]) throws -> Int {
        guard let value = metadata["general.alignment"] else { return 32 }
        guard case .unsigned(let alignment) = value, (8...65536).contains(alignment),
            alignment & (alignment - 1) == 0
        else { throw GGUFError.invalidAlignment("\(value)") }
        return Int(alignment)
    }

    private static func placed(
        _ entries: [GGUFHeaderReader.Entry], after header: Int, _ fileBytes: Int, alignment: Int
    ) throws -> [GGUFTensor] {
        let start = (header + alignment - 1) / alignment * alignment
        let dataBytes = max(0, fileBytes - start)
        let tensors = try entries.map { entry in
            guard entry.offset % UInt64(alignment) == 0 else {
                throw GGUFError.misaligned(tensor: entry.name, offset: entry.offset, alignment: alignment)
            }
            guard entry.offset <= dataBytes, entry.byteCount <= dataBytes - Int(entry.offset) else {
                throw GGUFError.dataPastEndOfFile(
                    tensor: entry.name, offset: entry.offset, byteCount: entry.byteCount, dataBytes: dataBytes)
            }
            let begin = start + Int(entry.offset)
            return GGUFTensor(
                name: entry.name, type: entry.type, shape: entry.shape, byteRange: begin..<begin + entry.byteCount)
        }
        let ordered = tensors.filter { !$0.byteRange.isEmpty }.sorted {
            $0.byteRange.lowerBound < $1.byteRange.lowerBound
        }
        for (tensor, next) in zip(ordered, ordered.dropFirst())
        where next.byteRange.lowerBound < tensor.byteRange.upperBound {
            throw GGUFError.overlap(tensor: next.name, other: tensor.name)
        }
        return tensors
    }
}
