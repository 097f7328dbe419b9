// SPDX-License-Identifier: Apache-2.0
// PreTokenizer.swift - where text is cut before pairs of bytes are merged: nothing is merged across a cut.

/// The `smollm` pre-tokenizer: every digit alone, the rest as GPT-2 cuts it:
///
///     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
///
/// where the lookahead ends with the text between two digits.
public struct PreTokenizer {
    /// What the expression tells apart.
    enum Kind: UInt8 {
        case letter, number, space, other
    }

    /// Calls `body` with the range of every piece, in order; they cover all scalars.
    public static func forEachPiece(of scalars: [Unicode.Scalar], _ body: (Range<Int>) -> Void) {
        let kinds = scalars.map(kind)
        var start = 0
        while start < scalars.count {
            if kinds[start] == .number {
                body(start..<start + 1)
                start += 1
            } else {
                let end = kinds[start...].firstIndex(of: .number) ?? scalars.count
                while start < end {
                    let next = pieceEnd(scalars, kinds, start, end)
                    body(start..<next)
                    start = next
                }
            }
        }
    }

    /// Where the piece from `start` on ends, in text without numbers.
    private static func pieceEnd(_ scalars: [Unicode.Scalar], _ kinds: [Kind], _ start: Int, _ end: Int) -> Int {
        if scalars[start] == "'", let length = contraction(scalars, start, end) { return start + length }
        let first = scalars[start] == " " ? start + 1 : start
        if first < end, kinds[first] == .letter || kinds[first] == .other {
            return kinds[first..<end].firstIndex { $0 != kinds[first] } ?? end
        }
        // White space: the last of it goes with what follows, if it is a space, and stands alone if not.
        let spaceEnd = kinds[start..<end].firstIndex { $0 != .space } ?? end
        return spaceEnd == end || spaceEnd == start + 1 ? spaceEnd : spaceEnd - 1
    }

    private static let contractions: [[Unicode.Scalar]] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].map {
        Array($0.unicodeScalars)
    }

    private static func contraction(_ scalars: [Unicode.Scalar], _ start: Int, _ end: Int) -> Int? {
        contractions.first { start + $0.count <= end && scalars[start..<start + $0.count].elementsEqual($0) }?.count
    }

    static func kind(_ scalar: Unicode.Scalar) -> Kind {
        switch scalar.value {
        case 0x41...0x5a, 0x61...0x7a: .letter
        case 0x30...0x39: .number
        case 0x20, 0x09...0x0d: .space
        case ..<0x80: .other
        default: wideKind(scalar)
        }
    }

    /// Letters are those of Unicode 16, as in the tokenizer that models are trained with (`tokenizers` 0.23, Oniguruma); what
    /// came later is one of the others there. Its numbers are those of the Unicode of its time.
    private static func wideKind(_ scalar: Unicode.Scalar) -> Kind {
        if scalar.properties.isWhitespace { return .space }
        return switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter:
            (scalar.properties.age?.major ?? 0) <= 16 ? .letter : .other
        case .decimalNumber, .letterNumber, .otherNumber: .number
        default: .other
        }
    }
}
