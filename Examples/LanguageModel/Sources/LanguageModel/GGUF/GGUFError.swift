// SPDX-License-Identifier: Apache-2.0
// GGUFError.swift - why a GGUF file could not be read, in one line.

/// Why a GGUF file could not be read. The description is one line.
public enum GGUFError: Error, Sendable, Equatable {
    // The file
    case cannotOpen(path: String, reason: String)
    case cannotRead(path: String, reason: String)
    /// It was written to after it was opened.
    case changed(path: String)

    // The header
    case notGGUF
    case unsupportedVersion(UInt32)
    /// The header wants `needed` bytes from byte `offset` on; there are `available`.
    case truncated(offset: Int, needed: UInt64, available: Int, what: String)
    case notUTF8(offset: Int, what: String)
    case duplicateName(String)
    case unknownValueType(key: String, type: UInt32)
    case nestedArray(key: String)
    case invalidBoolean(key: String, byte: UInt8)
    case invalidAlignment(String)

    // One tensor
    case invalidShape(tensor: String, reason: String)
    case unknownTensorType(tensor: String, type: UInt32)
    case misaligned(tensor: String, offset: UInt64, alignment: Int)
    case dataPastEndOfFile(tensor: String, offset: UInt64, byteCount: Int, dataBytes: Int)
    case overlap(tensor: String, other: String)

    // A request
    case noSuchTensor(String)
    case missing(key: String)
    case wrongType(key: String, expected: String)
    case unsupportedTensor(String, type: String, expected: String)
    case unexpectedShape(tensor: String, shape: [Int], expected: [Int])
    case invalidValue(key: String, found: String, expected: String)
}

extension GGUFError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .cannotOpen(let path, let reason): "cannot open \(quoted(path)): \(reason)"
        case .cannotRead(let path, let reason): "cannot read \(quoted(path)): \(reason)"
        case .changed(let path): "\(quoted(path)) was written to while it was read"
        case .notGGUF: "not a GGUF file: it does not begin with GGUF"
        case .unsupportedVersion(let version): "GGUF version \(version): only 2 and 3, little endian, can be read"
        case .truncated(let offset, let needed, let available, let what):
            "truncated GGUF file: \(quoted(what)) takes \(needed) bytes from byte \(offset) on, and \(available) are left"
        case .notUTF8(let offset, let what): "invalid GGUF file: \(quoted(what)) at byte \(offset) is not UTF-8"
        case .duplicateName(let name): "invalid GGUF file: \(quoted(name)) stands there twice"
        case .unknownValueType(let key, let type): "invalid GGUF file: \(quoted(key)) has the unknown type \(type)"
        case .nestedArray(let key): "invalid GGUF file: \(quoted(key)) is an array of arrays"
        case .invalidBoolean(let key, let byte):
            "invalid GGUF file: \(quoted(key)) is a truth value of \(byte), not 0 or 1"
        case .invalidAlignment(let found):
            "invalid GGUF file: general.alignment is \(quoted(found)), not a power of two from 8 to 65536"
        default: requestDescription
        }
    }

    private var requestDescription: String {
        switch self {
        case .invalidShape(let tensor, let reason): "invalid GGUF file: tensor \(quoted(tensor)) \(reason)"
        case .unknownTensorType(let tensor, let type):
            "tensor \(quoted(tensor)) has the type number \(type), which this reader does not know"
        case .misaligned(let tensor, let offset, let alignment):
            "invalid GGUF file: tensor \(quoted(tensor)) begins at \(offset), not at a multiple of \(alignment)"
        case .dataPastEndOfFile(let tensor, let offset, let byteCount, let dataBytes):
            "invalid GGUF file: tensor \(quoted(tensor)) takes \(byteCount) bytes from \(offset) on, of \(dataBytes)"
        case .overlap(let tensor, let other):
            "invalid GGUF file: tensors \(quoted(tensor)) and \(quoted(other)) overlap"
        case .noSuchTensor(let name): "no tensor \(quoted(name)) in the file"
        case .missing(let key): "no \(quoted(key)) in the file's metadata"
        case .wrongType(let key, let expected): "\(quoted(key)) in the file's metadata is not \(expected)"
        case .unsupportedTensor(let name, let type, let expected):
            "tensor \(quoted(name)) is of type \(type); expected \(expected)"
        case .unexpectedShape(let tensor, let shape, let expected):
            "tensor \(quoted(tensor)) has the shape \(shape), not \(expected)"
        case .invalidValue(let key, let found, let expected): "\(quoted(key)) is \(quoted(found)), expected \(expected)"
        default: ""
        }
    }

    /// Names come from files: control characters are replaced, and what is long is cut.
    private func quoted(_ text: String) -> String {
        let scalars = text.unicodeScalars.prefix(100).map { $0.value < 0x20 || $0.value == 0x7f ? "\u{fffd}" : $0 }
        let cut = text.unicodeScalars.dropFirst(100).isEmpty ? "" : "..."
        return "\"" + String(String.UnicodeScalarView(scalars)) + cut + "\""
    }
}
