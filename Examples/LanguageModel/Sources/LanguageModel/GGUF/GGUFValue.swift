// SPDX-License-Identifier: Apache-2.0
// GGUFValue.swift - what stands in a file's metadata, and the types that tensors may have.

/// A value of a file's metadata. Integers of all widths are one case, and so are both floats.
public enum GGUFValue: Sendable, Equatable {
    case unsigned(UInt64)
    case signed(Int64)
    case float(Double)
    case bool(Bool)
    case string(String)
    case strings([String])
    case integers([Int64])
    case floats([Double])
    case bools([Bool])
}

/// The type numbers of values.
enum GGUFValueType: UInt32 {
    case uint8, int8, uint16, int16, uint32, int32, float32, bool, string, array, uint64, int64, float64

    /// Bytes that one value takes at least.
    var minimumBytes: Int {
        switch self {
        case .uint8, .int8, .bool: 1
        case .uint16, .int16: 2
        case .uint32, .int32, .float32: 4
        case .string, .uint64, .int64, .float64: 8
        case .array: 12
        }
    }
}

/// How the elements of a tensor are stored: the types that this reader knows the size of.
public enum GGUFTensorType: UInt32, Sendable, CaseIterable {
    case f32 = 0
    case f16 = 1
    case q40 = 2
    case q41 = 3
    case q50 = 6
    case q51 = 7
    case q80 = 8
    case q2K = 10
    case q3K = 11
    case q4K = 12
    case q5K = 13
    case q6K = 14
    case bf16 = 30

    /// The elements that share their scales.
    public var blockElements: Int {
        switch self {
        case .f32, .f16, .bf16: 1
        case .q40, .q41, .q50, .q51, .q80: 32
        case .q2K, .q3K, .q4K, .q5K, .q6K: 256
        }
    }

    /// Bytes of a block.
    public var blockBytes: Int {
        switch self {
        case .f32: 4
        case .f16, .bf16: 2
        case .q40: 18
        case .q41: 20
        case .q50: 22
        case .q51: 24
        case .q80: 34
        case .q2K: 84
        case .q3K: 110
        case .q4K: 144
        case .q5K: 176
        case .q6K: 210
        }
    }

    /// `Q4_1`, ...
    public var name: String {
        var name = "\(self)".uppercased()
        if blockElements > 1 { name.insert("_", at: name.index(before: name.endIndex)) }
        return name
    }
}

/// One tensor of a file.
public struct GGUFTensor: Sendable, Equatable {
    public let name: String
    public let type: GGUFTensorType
    /// The extent of each dimension, the slowest first: the file has them the other way round.
    public let shape: [Int]
    /// Where its bytes are, counted from the beginning of the file.
    public let byteRange: Range<Int>

    /// The elements of a row.
    public var columns: Int { shape.last ?? 1 }
    /// All extents but the last, multiplied.
    public var rows: Int { shape.dropLast().reduce(1, *) }
    /// Bytes of a row.
    public var rowBytes: Int { columns / type.blockElements * type.blockBytes }
}
