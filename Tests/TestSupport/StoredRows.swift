// SPDX-License-Identifier: Apache-2.0
// StoredRows.swift - rows of Floats as bytes of a storage type, with room between the rows.

extension AttentionCase.StorageChoice {
    /// The types that exist on this platform.
    #if os(macOS) && arch(x86_64)
        public static let available: [Self] = [.float32, .bfloat16]
    #else
        public static let available = allCases
    #endif

    public var size: Int { self == .float32 ? 4 : 2 }

    /// The bits of a value that this type can hold, in its lower bytes.
    public func bits(_ value: Float) -> UInt32 {
        switch self {
        case .float32: value.bitPattern
        case .bfloat16: value.bitPattern >> 16
        case .float16: float16Bits(value)
        }
    }

    public func value(_ bits: UInt32) -> Float {
        switch self {
        case .float32: Float(bitPattern: bits)
        case .bfloat16: Float(bitPattern: bits << 16)
        case .float16: float16Value(bits)
        }
    }

    /// The nearest value of this type, ties to even.
    public func rounded(_ value: Float) -> Float {
        switch self {
        case .float32: value
        case .bfloat16:
            value.isNaN
                ? .nan
                : Float(
                    bitPattern: (value.bitPattern + 0x7fff + ((value.bitPattern >> 16) & 1)) & 0xffff_0000)
        case .float16: float16Value(float16Bits(value))
        }
    }
}

#if os(macOS) && arch(x86_64)
    private func float16Bits(_ value: Float) -> UInt32 { fatalError("no Float16 on this platform") }
    private func float16Value(_ bits: UInt32) -> Float { fatalError("no Float16 on this platform") }
#else
    private func float16Bits(_ value: Float) -> UInt32 { UInt32(Float16(value).bitPattern) }
    private func float16Value(_ bits: UInt32) -> Float { Float(Float16(bitPattern: UInt16(bits))) }
#endif

/// Rows of `width` elements that start `stride` elements apart, beside a guard page. What lies between the rows is NaN;
/// the last row ends where the memory ends.
public struct StoredRows: Sendable {
    public let rows, width, stride: Int
    public let storage: AttentionCase.StorageChoice
    private let bytes: GuardedBuffer<UInt8>

    public init(
        _ values: [Float], width: Int, padding: Int = 0, storage: AttentionCase.StorageChoice,
        guard side: GuardedBuffer<UInt8>.Side
    ) {
        self.width = width
        self.storage = storage
        stride = width + padding
        rows = values.count / width
        var padded = values
        if padding > 0 {
            let filler = [Float](repeating: .nan, count: padding)
            padded = Array((0..<rows).map { values.rows($0, 1, width) + filler }.joined().dropLast(padding))
        }
        bytes = GuardedBuffer(count: padded.count * storage.size, guard: side)
        let memory = UnsafeMutableRawBufferPointer(bytes.elements)
        if storage == .float32 {
            padded.withUnsafeBytes { memory.copyMemory(from: $0) }
        } else {
            let halves = padded.map { UInt16(storage.bits($0)) }
            halves.withUnsafeBytes { memory.copyMemory(from: $0) }
        }
    }

    public var start: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bytes.start) }

    /// All elements, those between the rows included.
    private var elements: [Float] {
        let memory = UnsafeRawBufferPointer(bytes.elements)
        if storage == .float32 { return Array(memory.bindMemory(to: Float.self)) }
        return memory.bindMemory(to: UInt16.self).map { storage.value(UInt32($0)) }
    }

    /// The rows without what lies between them.
    public var values: [Float] {
        let elements = elements
        if stride == width { return elements }
        return (0..<rows).flatMap { elements[$0 * stride..<$0 * stride + width] }
    }

    /// Whether everything between the rows is still NaN, and nothing was written beside the memory.
    public var isIntactOutsideRows: Bool {
        let elements = elements
        let gaps = stride == width ? [] : (0..<max(0, rows - 1)).map { $0 * stride + width..<($0 + 1) * stride }
        return bytes.slackIsIntact && gaps.allSatisfy { elements[$0].allSatisfy(\.isNaN) }
    }
}
