// SPDX-License-Identifier: Apache-2.0
// ElementType.swift - the element types a safetensors file may hold, and how wide they are.

/// The type of a tensor's elements. The raw value is the format's own name for it (`dtype`).
///
/// Every type the format knows can stand in a file that is read; ``readable``, ``integers`` and ``booleans`` can be read.
public enum ElementType: String, Sendable, Hashable, CaseIterable {
    case float32 = "F32"
    case float16 = "F16"
    case bfloat16 = "BF16"

    case bool = "BOOL"
    case uint8 = "U8"
    case int8 = "I8"
    case uint16 = "U16"
    case int16 = "I16"
    case uint32 = "U32"
    case int32 = "I32"
    case uint64 = "U64"
    case int64 = "I64"
    case float64 = "F64"
    case complex64 = "C64"
    case float8E5M2 = "F8_E5M2"
    case float8E4M3 = "F8_E4M3"
    case float8E8M0 = "F8_E8M0"
    case float8E5M2FNUZ = "F8_E5M2FNUZ"
    case float8E4M3FNUZ = "F8_E4M3FNUZ"
    case float6E3M2 = "F6_E3M2"
    case float6E2M3 = "F6_E2M3"
    case float4 = "F4"

    /// The types whose elements this module converts from `Float`.
    public static let writable: [ElementType] = [.float32, .float16, .bfloat16]
    /// The types whose elements this module converts to `Float` and `Double`.
    public static let readable: [ElementType] = writable + [.float64]
    /// The types whose elements this module converts to `Int`.
    public static let integers: [ElementType] = [
        .uint8, .int8, .uint16, .int16, .uint32, .int32, .uint64, .int64,
    ]
    /// The types whose elements this module converts to `Bool`.
    public static let booleans: [ElementType] = [.bool] + integers

    /// Bits of one element. Elements lie next to each other, also when they are narrower than a byte.
    public var bitWidth: Int {
        switch self {
        case .uint64, .int64, .float64, .complex64: 64
        case .float32, .uint32, .int32: 32
        case .float16, .bfloat16, .uint16, .int16: 16
        case .bool, .uint8, .int8, .float8E5M2, .float8E4M3, .float8E8M0, .float8E5M2FNUZ, .float8E4M3FNUZ: 8
        case .float6E3M2, .float6E2M3: 6
        case .float4: 4
        }
    }
}
