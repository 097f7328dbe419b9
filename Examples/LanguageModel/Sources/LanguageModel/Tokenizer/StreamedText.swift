// SPDX-License-Identifier: Apache-2.0
// StreamedText.swift - text that comes token by token: a character is put out when its last byte is there.

/// Puts together the bytes of tokens, and gives out whole characters.
public struct StreamedText {
    private var pending: [UInt8] = []

    public init() {}

    /// Takes the bytes of a token, and returns the text that is complete with them. Bytes that cannot begin or go on with a
    /// character become U+FFFD.
    public mutating func append(_ bytes: [UInt8]) -> String {
        pending += bytes
        let kept = Self.unfinished(pending)
        defer { pending = Array(pending.suffix(kept)) }
        return String(decoding: pending.dropLast(kept), as: UTF8.self)
    }

    /// The rest, at the end of the text.
    public mutating func finish() -> String {
        defer { pending = [] }
        return String(decoding: pending, as: UTF8.self)
    }

    /// How many bytes at the end are the beginning of a character.
    private static func unfinished(_ bytes: [UInt8]) -> Int {
        for count in 1...3 where count <= bytes.count {
            let byte = bytes[bytes.count - count]
            if byte & 0xc0 == 0x80 { continue }
            let length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1
            return length > count ? count : 0
        }
        return 0
    }
}
