// SPDX-License-Identifier: Apache-2.0
// Tokenizer.swift - text to tokens and back, by the vocabulary of a model file.

/// Byte-level byte-pair encoding with the vocabulary and the merges of a GGUF file.
///
/// Text is cut at special tokens first, of which the longest counts, then by the pre-tokenizer; within a piece, pairs of
/// bytes are merged. A byte that the vocabulary has no token for (`smollm`: some control characters, and the first byte
/// of planes 4 to 11) is left out.
///
/// Any text comes back from its tokens, but for such bytes.
public final class Tokenizer: Sendable {
    /// The tokens of the vocabulary.
    public let count: Int
    /// The token that ends a text or a turn; nil without one.
    public let endToken: Int?
    /// Whether texts begin with ``beginToken``.
    public let addsBeginToken: Bool
    public let beginToken: Int?
    /// The file's chat template, in the language Jinja; nil without one.
    public let chatTemplate: String?

    private let bytes: [[UInt8]]
    private let isSpecial: [Bool]
    /// Longest first.
    private let specials: [(bytes: [UInt8], token: Int)]
    /// The token of each single byte, or -1.
    private let byteTokens: [Int32]
    private let pairs: BytePairs

    public init(_ file: GGUFFile) throws(GGUFError) {
        try Self.check(file, "tokenizer.ggml.model", ["gpt2"])
        try Self.check(file, "tokenizer.ggml.pre", ["smollm"])
        let texts = try file.strings("tokenizer.ggml.tokens")
        let types = try file.integers("tokenizer.ggml.token_type")
        guard types.count == texts.count, texts.count < Int32.max, !texts.isEmpty else {
            throw .invalidValue(
                key: "tokenizer.ggml.token_type", found: "\(types.count) types",
                expected: "\(texts.count), one per token")
        }
        count = texts.count
        isSpecial = types.map { $0 != 1 }
        var bytes: [[UInt8]] = []
        for (index, text) in texts.enumerated() {
            guard let token = types[index] == 1 ? ByteAlphabet.bytes(of: text) : Array(text.utf8), !token.isEmpty else {
                throw .invalidValue(
                    key: "tokenizer.ggml.tokens", found: text, expected: "characters of the byte-level alphabet")
            }
            bytes.append(token)
        }
        self.bytes = bytes
        specials = types.indices.filter { types[$0] == 3 || types[$0] == 4 }.map { (bytes[$0], $0) }
            .sorted { $0.bytes.count > $1.bytes.count }
        var numbers: [[UInt8]: Int32] = [:]
        for (index, token) in bytes.enumerated() where types[index] == 1 { numbers[token] = Int32(index) }
        byteTokens = (0..<256).map { numbers[[UInt8($0)]] ?? -1 }
        pairs = try Self.pairs(try file.strings("tokenizer.ggml.merges"), numbers)
        func token(_ key: String) throws(GGUFError) -> Int? {
            file.metadata[key] == nil ? nil : try file.integer(key, in: 0...texts.count - 1)
        }
        endToken = try token("tokenizer.ggml.eos_token_id")
        beginToken = try token("tokenizer.ggml.bos_token_id")
        addsBeginToken = file.metadata["tokenizer.ggml.add_bos_token"] == .bool(true)
        chatTemplate = try? file.string("tokenizer.chat_template")
    }

    private static func check(_ file: GGUFFile, _ key: String, _ known: [String]) throws(GGUFError) {
        let found = try file.string(key)
        guard known.contains(found) else {
            throw .invalidValue(key: key, found: found, expected: known.joined(separator: " or "))
        }
    }

    private static func pairs(_ merges: [String], _ numbers: [[UInt8]: Int32]) throws(GGUFError) -> BytePairs {
        var pairs = BytePairs()
        for (rank, merge) in merges.enumerated() {
            // A space is no character of the alphabet.
            let parts = merge.split(separator: " ", omittingEmptySubsequences: false)
            guard parts.count == 2, let left = ByteAlphabet.bytes(of: parts[0]),
                let right = ByteAlphabet.bytes(of: parts[1]), let leftToken = numbers[left],
                let rightToken = numbers[right], let token = numbers[left + right]
            else {
                throw .invalidValue(key: "tokenizer.ggml.merges", found: merge, expected: "two tokens and their whole")
            }
            pairs.add(leftToken, rightToken, BytePairs.Merge(rank: Int32(clamping: rank), token: token))
        }
        return pairs
    }

    // MARK: - Text to tokens

    /// The tokens of a text.
    ///
    /// - Parameter parsesSpecials: whether `<|im_start|>` in the text is the token of that name, or characters.
    public func encode(_ text: String, parsesSpecials: Bool = true) -> [Int] {
        let text = Array(text.utf8)
        var known: [[UInt8]: [Int32]] = [:]
        var tokens: [Int] = addsBeginToken ? [beginToken].compactMap(\.self) : []
        var start = 0
        if parsesSpecials {
            var index = 0
            while index < text.count {
                if let special = special(text, at: index) {
                    encode(text[start..<index], &known, into: &tokens)
                    tokens.append(special.token)
                    index += special.bytes.count
                    start = index
                } else {
                    index += 1
                }
            }
        }
        encode(text[start...], &known, into: &tokens)
        return tokens
    }

    private func special(_ text: [UInt8], at index: Int) -> (bytes: [UInt8], token: Int)? {
        specials.first { special in
            text[index] == special.bytes[0] && text[index...].prefix(special.bytes.count).elementsEqual(special.bytes)
        }
    }

    private func encode(_ text: ArraySlice<UInt8>, _ known: inout [[UInt8]: [Int32]], into tokens: inout [Int]) {
        let scalars = Array(String(decoding: text, as: UTF8.self).unicodeScalars)
        PreTokenizer.forEachPiece(of: scalars) { range in
            var piece: [UInt8] = []
            for scalar in scalars[range] { piece += UTF8.encode(scalar)! }
            let merged =
                known[piece] ?? pairs.merged(piece.compactMap { byteTokens[Int($0)] < 0 ? nil : byteTokens[Int($0)] })
            // Words come again; what is long does not.
            if piece.count <= 64 { known[piece] = merged }
            for token in merged { tokens.append(Int(token)) }
        }
    }

    // MARK: - Tokens to text

    /// The bytes of a token; those of a special token are its name.
    public func bytes(of token: Int) -> [UInt8] { bytes[token] }

    /// Whether a token stands for no text, such as the beginning of a turn.
    public func isSpecial(_ token: Int) -> Bool { isSpecial[token] }

    /// The text of tokens, special ones left out. Bytes that are no UTF-8 become U+FFFD.
    public func decode(_ tokens: some Sequence<Int>) -> String {
        String(decoding: tokens.flatMap { isSpecial[$0] ? [] : bytes[$0] }, as: UTF8.self)
    }
}
