// SPDX-License-Identifier: Apache-2.0
// SafetensorsError.swift - why a file could not be read or written, in one line.

/// Why a safetensors file could not be read or written. `description` is one line that names the file or the tensor.
public enum SafetensorsError: Error, Sendable, Equatable {
    // The file
    /// The system's words for why; also what is no regular file.
    case cannotOpen(path: String, reason: String)
    case cannotRead(path: String, reason: String)
    case cannotWrite(path: String, reason: String)

    // The header as a whole
    /// Less than the eight bytes of the header's length.
    case fileTooShort(fileBytes: Int)
    /// More than 100 MB, the limit of the format.
    case headerTooLong(headerBytes: UInt64)
    case headerPastEndOfFile(headerBytes: UInt64, fileBytes: Int)
    case headerNotUTF8
    case headerNotJSON(byte: Int, reason: String)
    case headerNotObject
    /// The file seems to be of another format, told by its first bytes.
    case otherFormat(String)
    /// `__metadata__` is neither null nor an object (nil), or the value of `key` is no string.
    case invalidMetadata(key: String?)

    // One tensor
    /// Of a tensor, of a field with a meaning, or of an entry of the metadata.
    case duplicateName(String)
    /// A field is missing or holds what it must not.
    case invalidField(tensor: String, reason: String)
    case unknownElementType(tensor: String, name: String)
    /// The bytes that the shape takes are more than a number of 64 bits can say.
    case sizeOverflow(tensor: String, shape: [Int])
    /// The shape takes more or less than the data have.
    case lengthMismatch(tensor: String, dataBytes: Int, shape: [Int], elementType: ElementType)
    case dataPastEndOfFile(tensor: String, end: Int, dataBytes: Int)
    /// The data of a tensor begin inside those of another.
    case overlap(tensor: String, begin: Int, previousEnd: Int)
    /// Bytes of the data belong to no tensor: those before this one, or (nil) the last of the file.
    case hole(tensor: String?, begin: Int, previousEnd: Int)

    // A request
    /// The file has no tensor of that name.
    case noSuchTensor(String, available: [String])
    /// Its elements take so many bytes of memory, which there are not.
    case noMemory(tensor: String, bytes: Int)
    /// The elements are of a type that is not converted to what was asked for.
    case unsupportedElementType(
        tensor: String, elementType: ElementType, expected: [ElementType] = ElementType.readable)
    /// A finite number of F64 that `Float` does not reach.
    case beyondFloat(tensor: String, value: Double)
    /// To be written: as many values as the shape has elements are wanted.
    case wrongValueCount(tensor: String, shape: [Int], values: Int)
    /// To be written: `__metadata__` is no name of a tensor.
    case reservedName(String)
}

extension SafetensorsError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .cannotOpen(let path, let reason): "cannot open \(shown(path)): \(reason)"
        case .cannotRead(let path, let reason): "cannot read \(shown(path)): \(reason)"
        case .cannotWrite(let path, let reason): "cannot write \(shown(path)): \(reason)"
        case .fileTooShort, .headerTooLong, .headerPastEndOfFile, .headerNotUTF8, .headerNotJSON, .headerNotObject,
            .otherFormat, .invalidMetadata:
            "not a safetensors file: \(headerFault)"
        case .noSuchTensor(let name, let available):
            "no tensor \(shown(name)) in the file, which holds \(listed(available))"
        case .noMemory(let tensor, let bytes):
            "tensor \(shown(tensor)): its elements take \(bytes) bytes, more than there is memory"
        case .unsupportedElementType(let tensor, let type, let expected):
            "tensor \(shown(tensor)) has dtype \(type.rawValue), only "
                + expected.map(\.rawValue).joined(separator: ", ") + " can be " + purpose(expected)
        case .beyondFloat(let tensor, let value):
            "tensor \(shown(tensor)) holds \(value), which is beyond the range of F32"
        case .wrongValueCount(let tensor, let shape, let values):
            "tensor \(shown(tensor)): \(values) values do not fill the shape \(shown(shape: shape))"
        case .reservedName(let name): "\(shown(name)) cannot be the name of a tensor"
        default: "invalid safetensors file: \(tensorFault)"
        }
    }

    /// What is read from these types and no others.
    private func purpose(_ types: [ElementType]) -> String {
        switch types {
        case ElementType.integers: "read as integers"
        case ElementType.booleans: "read as true and false"
        case ElementType.writable: "written"
        default: "read"
        }
    }

    private var headerFault: String {
        switch self {
        case .fileTooShort(let bytes): "\(bytes) bytes are too few for the 8 bytes of the header's length"
        case .headerTooLong(let bytes): "a header of \(bytes) bytes is over the limit of \(Header.maximumLength)"
        case .headerPastEndOfFile(let header, let file):
            "a header of \(header) bytes does not fit into a file of \(file) bytes"
        case .headerNotUTF8: "the header is not UTF-8"
        case .headerNotJSON(let byte, let reason): "the header is not JSON (byte \(byte): \(reason))"
        case .headerNotObject: "the header is not a JSON object that begins with {"
        case .otherFormat(let format): "it seems to be \(format)"
        case .invalidMetadata(let key?): "the metadata entry \(shown(key)) is not a string"
        default: "the metadata are not an object of strings"
        }
    }

    private var tensorFault: String {
        switch self {
        case .duplicateName(let name): "the name \(shown(name)) occurs twice in one object"
        case .invalidField(let tensor, let reason): "tensor \(shown(tensor)): \(reason)"
        case .unknownElementType(let tensor, let name): "tensor \(shown(tensor)): unknown dtype \(shown(name))"
        case .sizeOverflow(let tensor, let shape):
            "tensor \(shown(tensor)): the size of shape \(shown(shape: shape)) overflows"
        case .lengthMismatch(let tensor, let bytes, let shape, let type):
            "tensor \(shown(tensor)): \(bytes) bytes of data do not make \(shown(shape: shape)) elements of \(type.rawValue)"
        case .dataPastEndOfFile(let tensor, let end, let bytes):
            "tensor \(shown(tensor)): its data end at byte \(end) of \(bytes): the file is truncated or the header wrong"
        case .overlap(let tensor, let begin, let previous):
            "tensor \(shown(tensor)): its data begin at byte \(begin), inside data that end at byte \(previous)"
        case .hole(let tensor?, let begin, let previous):
            "tensor \(shown(tensor)): its data begin at byte \(begin), after a hole from byte \(previous) on"
        case .hole(nil, let begin, let previous):
            "the data are \(begin) bytes, of which the tensors cover only the first \(previous)"
        default: ""
        }
    }
}

/// Returns the first names of a list, and how many more there are.
private func listed(_ names: [String]) -> String {
    if names.isEmpty { return "no tensors" }
    let shown = names.prefix(12).map(shown).joined(separator: ", ")
    return names.count > 12 ? "\(shown) and \(names.count - 12) more" : shown
}

/// Returns `text` in quotation marks on one line, cut off where it becomes unreadable.
private func shown(_ text: String) -> String { quoted(text, limit: 100) }
