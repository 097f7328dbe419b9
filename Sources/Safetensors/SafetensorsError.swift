// SPDX-License-Identifier: Apache-2.0
// SafetensorsError.swift - why a file could not be read or written, in one line.

/// Why a safetensors file could not be read or written. `description` is one line that names the file or the tensor.
public enum SafetensorsError: Error, Sendable, Equatable {
    // The file
    case cannotOpen(path: String, reason: String)
    case cannotRead(path: String, reason: String)
    case cannotWrite(path: String, reason: String)

    // The header as a whole
    case fileTooShort(fileBytes: Int)
    case headerTooLong(headerBytes: UInt64)
    case headerPastEndOfFile(headerBytes: UInt64, fileBytes: Int)
    case headerNotUTF8
    case headerNotJSON(byte: Int, reason: String)
    case headerNotObject
    case invalidMetadata(key: String?)

    // One tensor
    case duplicateName(String)
    case invalidField(tensor: String, reason: String)
    case unknownElementType(tensor: String, name: String)
    case sizeOverflow(tensor: String, shape: [Int])
    case lengthMismatch(tensor: String, dataBytes: Int, shape: [Int], elementType: ElementType)
    case dataPastEndOfFile(tensor: String, end: Int, dataBytes: Int)
    case overlap(tensor: String, begin: Int, previousEnd: Int)
    case hole(tensor: String?, begin: Int, previousEnd: Int)

    // A request
    case noSuchTensor(String, available: [String])
    case unsupportedElementType(
        tensor: String, elementType: ElementType, expected: [ElementType] = ElementType.readable)
    /// A finite number of F64 that `Float` does not reach.
    case beyondFloat(tensor: String, value: Double)
    case wrongValueCount(tensor: String, shape: [Int], values: Int)
    case reservedName(String)
}

extension SafetensorsError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .cannotOpen(let path, let reason): "cannot open \(quoted(path)): \(reason)"
        case .cannotRead(let path, let reason): "cannot read \(quoted(path)): \(reason)"
        case .cannotWrite(let path, let reason): "cannot write \(quoted(path)): \(reason)"
        case .fileTooShort, .headerTooLong, .headerPastEndOfFile, .headerNotUTF8, .headerNotJSON, .headerNotObject,
            .invalidMetadata:
            "not a safetensors file: \(headerFault)"
        case .noSuchTensor(let name, let available):
            "no tensor \(quoted(name)) in the file, which holds \(listed(available))"
        case .unsupportedElementType(let tensor, let type, let expected):
            "tensor \(quoted(tensor)) has dtype \(type.rawValue), only "
                + expected.map(\.rawValue).joined(separator: ", ") + " can be " + purpose(expected)
        case .beyondFloat(let tensor, let value):
            "tensor \(quoted(tensor)) holds \(value), which is beyond the range of F32"
        case .wrongValueCount(let tensor, let shape, let values):
            "tensor \(quoted(tensor)): \(values) values do not fill the shape \(shape)"
        case .reservedName(let name): "\(quoted(name)) cannot be the name of a tensor"
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
        case .invalidMetadata(let key?): "the metadata entry \(quoted(key)) is not a string"
        default: "the metadata are not an object of strings"
        }
    }

    private var tensorFault: String {
        switch self {
        case .duplicateName(let name): "the name \(quoted(name)) occurs twice in one object"
        case .invalidField(let tensor, let reason): "tensor \(quoted(tensor)): \(reason)"
        case .unknownElementType(let tensor, let name): "tensor \(quoted(tensor)): unknown dtype \(quoted(name))"
        case .sizeOverflow(let tensor, let shape): "tensor \(quoted(tensor)): the size of shape \(shape) overflows"
        case .lengthMismatch(let tensor, let bytes, let shape, let type):
            "tensor \(quoted(tensor)): \(bytes) bytes of data do not make \(shape) elements of \(type.rawValue)"
        case .dataPastEndOfFile(let tensor, let end, let bytes):
            "tensor \(quoted(tensor)): its data end at byte \(end) of \(bytes): the file is truncated or the header wrong"
        case .overlap(let tensor, let begin, let previous):
            "tensor \(quoted(tensor)): its data begin at byte \(begin), inside data that end at byte \(previous)"
        case .hole(let tensor?, let begin, let previous):
            "tensor \(quoted(tensor)): its data begin at byte \(begin), after a hole from byte \(previous) on"
        case .hole(nil, let begin, let previous):
            "the data are \(begin) bytes, of which the tensors cover only the first \(previous)"
        default: ""
        }
    }
}

/// Returns `text` in quotation marks on one line, control characters escaped, cut off where it becomes unreadable.
private func quoted(_ text: String) -> String {
    text.count <= 100 ? text.debugDescription : String(text.prefix(100)).debugDescription + "..."
}

/// Returns the first names of a list, and how many more there are.
private func listed(_ names: [String]) -> String {
    if names.isEmpty { return "no tensors" }
    let shown = names.prefix(12).map(quoted).joined(separator: ", ")
    return names.count > 12 ? "\(shown) and \(names.count - 12) more" : shown
}
