// SPDX-License-Identifier: Apache-2.0
// ByteAlphabet.swift - the 256 printable characters by which byte-level vocabularies write bytes.

/// GPT-2's alphabet: bytes that Latin-1 prints stand for themselves, the other 68 for the characters from U+0100 on.
enum ByteAlphabet {
    /// The character of each byte.
    static let characters: [Unicode.Scalar] = {
        var others: UInt32 = 0x100
        return (0..<256 as Range<UInt32>).map { byte in
            switch byte {
            case 0x21...0x7e, 0xa1...0xac, 0xae...0xff: return Unicode.Scalar(UInt8(byte))
            default:
                defer { others += 1 }
                return Unicode.Scalar(others)!
            }
        }
    }()

    private static let bytes: [Unicode.Scalar: UInt8] = Dictionary(
        uniqueKeysWithValues: characters.enumerated().map { ($1, UInt8($0)) })

    /// The bytes that a token's text stands for; nil where a character is none of the alphabet's.
    static func bytes(of text: some StringProtocol) -> [UInt8]? {
        var result: [UInt8] = []
        for scalar in text.unicodeScalars {
            guard let byte = bytes[scalar] else { return nil }
            result.append(byte)
        }
        return result
    }
}
