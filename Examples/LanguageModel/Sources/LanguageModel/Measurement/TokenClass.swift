// SPDX-License-Identifier: Apache-2.0
// TokenClass.swift - what a token of a text is, for asking where weight goes and where outliers are.

/// What a token is.
public enum TokenClass: Int, Sendable, CaseIterable, Encodable {
    /// The first of the text, whatever it is.
    case first
    /// Blanks and new lines alone.
    case blank
    /// Signs without letters and digits.
    case punctuation
    /// All else.
    case word

    /// Classes of the tokens of a text.
    public static func classes(_ tokens: [Int], _ tokenizer: Tokenizer) -> [TokenClass] {
        tokens.enumerated().map { index, token in
            if index == 0 { return .first }
            let scalars = String(decoding: tokenizer.bytes(of: token), as: UTF8.self).unicodeScalars
            let kinds = Set(scalars.map(PreTokenizer.kind))
            if kinds == [.space] { return .blank }
            return kinds.contains(.letter) || kinds.contains(.number) ? .word : .punctuation
        }
    }
}
