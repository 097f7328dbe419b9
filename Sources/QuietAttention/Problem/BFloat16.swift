// SPDX-License-Identifier: Apache-2.0
// BFloat16.swift - the 16-bit float with the exponent range of Float.

/// The upper half of a Float: 1 sign bit, 8 exponent bits, 7 stored significand bits.
///
/// A storage format: compute in Float. Every BFloat16 is a Float exactly.
public struct BFloat16: Sendable, BitwiseCopyable, Equatable, CustomStringConvertible {
    public var bitPattern: UInt16

    public init(bitPattern: UInt16) { self.bitPattern = bitPattern }

    /// The nearest BFloat16, ties to even.
    ///
    /// *Edge cases*: beyond the largest finite value, infinity; NaN stays NaN, made quiet; subnormals are kept.
    public init(_ value: Float) {
        let bits = value.bitPattern
        if value.isNaN {
            // Rounding could carry a NaN into infinity, and cutting could lose its only bits.
            bitPattern = UInt16(truncatingIfNeeded: bits >> 16) | 0x0040
        } else {
            // Half of the dropped unit, less one where the kept last bit is even: ties go to even. Largest: -inf's
            // 0xff80_0000 + 0x8000, so the sum fits.
            let rounded = bits + 0x7fff + ((bits >> 16) & 1)
            bitPattern = UInt16(truncatingIfNeeded: rounded >> 16)
        }
    }

    /// As Floats compare: NaN equals nothing, and -0 equals 0.
    public static func == (left: BFloat16, right: BFloat16) -> Bool { Float(left) == Float(right) }

    public var description: String { Float(self).description }
}

extension Float {
    /// The same value.
    public init(_ value: BFloat16) { self.init(bitPattern: UInt32(value.bitPattern) << 16) }
}
