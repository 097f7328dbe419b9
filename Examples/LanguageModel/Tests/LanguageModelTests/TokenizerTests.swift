// SPDX-License-Identifier: Apache-2.0
// TokenizerTests.swift - pieces, merges, special tokens, and text that comes back.

import LanguageModel
import Testing

@Suite struct TokenizerTests {
    func pieces(_ text: String) -> [String] {
        let scalars = Array(text.unicodeScalars)
        var pieces: [String] = []
        PreTokenizer.forEachPiece(of: scalars) { range in
            pieces.append(String(String.UnicodeScalarView(scalars[range])))
        }
        return pieces
    }

    /// As the package `tokenizers` cuts them.
    @Test func piecesOfText() {
        let expected: [[String]] = [
            [
                "I", "'m", " sure", " we", "'ll", " see", " ", "3", ".", "1", "4", " ", " spaces", "\n\n ", " and",
                "\t",
                "tabs", ",", " don", "'t", " ", " we", "?", "  ",
            ],
            ["'", "S", " '", "s", "''", "s", " '", " s"], ["x", "\u{a0}", "y", " \u{3000}", " z"],
            ["a", "1", "b", "2", "2", " ", "3", "3", "3", "  ", "4"],
            ["naïve", " e", "\u{301}", " 日本語"], ["½", " ", "Ⅷ", " ", "٣"], [], [" "], ["\n", "\n", "x"], ["\r\n"],
        ]
        for pieces in expected { #expect(self.pieces(pieces.joined()) == pieces) }
        // A letter of Unicode 17 is none to the tokenizers that models are trained with.
        #expect(pieces("\u{a7ce}'re") == ["\u{a7ce}'", "re"] && pieces("\u{a7cb}'re") == ["\u{a7cb}", "'re"])
    }

    @Test(arguments: TinyModel.shared.answers)
    func tokensOfTheScript(answer: TinyModel.Answer) throws {
        #expect(try TinyModel.tokenizer.encode(answer.text) == answer.tokens)
        if let expected = answer.pieces { #expect(pieces(answer.text) == expected) }
    }

    @Test func specialTokens() throws {
        let tokenizer = try TinyModel.tokenizer
        #expect(tokenizer.encode("<|im_start|><|im_end|>") == [1, 2])
        #expect(!tokenizer.encode("<|im_start|>", parsesSpecials: false).contains(1))
        #expect(tokenizer.decode([1] + tokenizer.encode("hello") + [2]) == "hello")
        #expect(tokenizer.isSpecial(1) && !tokenizer.isSpecial(3) && tokenizer.endToken == 2)
        #expect(tokenizer.encode("<|im_star") == tokenizer.encode("<|im_star", parsesSpecials: false))
    }

    /// Any text comes back, but for the bytes that the vocabulary lacks.
    @Test func roundTrips() throws {
        let tokenizer = try TinyModel.tokenizer
        var state: UInt64 = 3
        for _ in 0..<300 {
            var text = String.UnicodeScalarView()
            for _ in 0..<30 {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                let bound: UInt64 = state & 1 == 0 ? 0x80 : 0x40000
                if let scalar = Unicode.Scalar(UInt32((state >> 33) % bound)), scalar.value != 4 { text.append(scalar) }
            }
            #expect(tokenizer.decode(tokenizer.encode(String(text), parsesSpecials: false)) == String(text))
        }
        #expect(tokenizer.encode("a\u{4}b") == tokenizer.encode("a") + tokenizer.encode("b"))
    }

    /// Long pieces take n log n steps, and give what the definition gives.
    @Test func longPieces() throws {
        let tokenizer = try TinyModel.tokenizer
        let text = String(repeating: "the", count: 20_000)
        let tokens = tokenizer.encode(text)
        #expect(tokens.count == 20_000 && Set(tokens).count == 1)
        #expect(tokenizer.decode(tokens) == text)
    }

    /// Characters come out when their last byte is there.
    @Test func streamedText() {
        let text = "aé日🙂 b"
        for size in 1...5 {
            var (streamed, result) = (StreamedText(), "")
            let bytes = Array(text.utf8)
            for start in stride(from: 0, to: bytes.count, by: size) {
                let part = streamed.append(Array(bytes[start..<min(start + size, bytes.count)]))
                #expect(!part.unicodeScalars.contains("\u{fffd}"))
                result += part
            }
            #expect(result + streamed.finish() == text)
        }
        var streamed = StreamedText()
        #expect(streamed.append([0xe6]) == "" && streamed.append([0x41]) == "\u{fffd}A")
        #expect(streamed.append([0x80, 0x80, 0x80, 0x80]).unicodeScalars.allSatisfy { $0 == "\u{fffd}" })
        #expect(streamed.append([0xf0, 0x9f]) == "" && streamed.finish() == "\u{fffd}")
    }
}
