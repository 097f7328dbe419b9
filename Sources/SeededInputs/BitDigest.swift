// SPDX-License-Identifier: Apache-2.0
// BitDigest.swift - 64-bit FNV-1a over the bits of results: one word that tells whether two computations agree.
//
//     hash = 0xcbf29ce484222325;   for each byte: hash = (hash xor byte) * 0x100000001b3
//
// Fowler, Noll, Vo: http://www.isthe.com/chongo/tech/comp/fnv/

/// A digest of floats: the bytes of each, the lowest first; every NaN counts as 0x7fc00000.
public struct BitDigest: Sendable, Equatable {
    public private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    public init() {}

    public mutating func add(_ number: Float) {
        add(number.isNaN ? 0x7fc0_0000 : number.bitPattern, bytes: 4)
    }

    public mutating func add(_ numbers: some Sequence<Float>) {
        for number in numbers { add(number) }
    }

    private mutating func add(_ bits: UInt32, bytes: Int) {
        for byte in 0..<bytes {
            value = (value ^ UInt64((bits >> UInt32(8 * byte)) & 0xff)) &* 0x0000_0100_0000_01b3
        }
    }

    /// The value in 16 hexadecimal digits.
    public var hexadecimal: String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
