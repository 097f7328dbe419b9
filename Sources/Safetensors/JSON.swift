// SPDX-License-Identifier: Apache-2.0
// JSON.swift - a strict reader of JSON (RFC 8259) that hands out what stands in a text while it passes by, and keeps nothing.

/// Reads a JSON text from front to back, in time proportional to its length. The bytes are UTF-8 known to be valid.
///
/// Whatever is no JSON is ``SafetensorsError/headerNotJSON(byte:reason:)``. As in serde_json, which the format's own reader
/// uses: objects and arrays nest at most ``maximumDepth`` deep, and a number is one that a Double can hold.
struct JSONReader {
    static let maximumDepth = 127

    private let text: [UInt8]
    private(set) var position = 0
    /// Objects and arrays open here.
    private var depth = 0

    init(_ text: [UInt8]) {
        self.text = text
        skipWhiteSpace()
    }

    /// White space may stand behind the value that was read, and nothing else.
    mutating func expectEnd() throws(SafetensorsError) {
        skipWhiteSpace()
        guard position == text.count else { throw error("text after the end of the value") }
    }

    // MARK: - Bytes

    /// The first byte of what comes next; nil at the end.
    var next: UInt8? { position < text.count ? text[position] : nil }

    private func error(_ reason: String) -> SafetensorsError { .headerNotJSON(byte: position, reason: reason) }

    private mutating func skipWhiteSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0a || byte == 0x0d || byte == 0x09 { position += 1 }
    }

    /// Steps over `byte` and returns whether it was there.
    private mutating func accept(_ byte: UInt8) -> Bool {
        guard next == byte else { return false }
        position += 1
        return true
    }

    private mutating func expect(_ byte: UInt8) throws(SafetensorsError) {
        guard accept(byte) else { throw error("\(Character(UnicodeScalar(byte))) expected") }
    }

    // MARK: - Values

    /// Reads an object; `member` reads the value of each name.
    mutating func object(
        _ member: (inout JSONReader, String) throws(SafetensorsError) -> Void
    ) throws(SafetensorsError) {
        try list(from: Byte.openBrace, to: Byte.closeBrace) { (reader) throws(SafetensorsError) in
            let name = try reader.string()
            reader.skipWhiteSpace()
            try reader.expect(Byte.colon)
            reader.skipWhiteSpace()
            try member(&reader, name)
        }
    }

    /// Reads an array; `element` reads each of its values.
    mutating func array(_ element: (inout JSONReader) throws(SafetensorsError) -> Void) throws(SafetensorsError) {
        try list(from: Byte.openBracket, to: Byte.closeBracket, element)
    }

    private mutating func list(
        from first: UInt8, to last: UInt8, _ item: (inout JSONReader) throws(SafetensorsError) -> Void
    ) throws(SafetensorsError) {
        guard depth < Self.maximumDepth else { throw error("more than \(Self.maximumDepth) levels of nesting") }
        try expect(first)
        depth += 1
        skipWhiteSpace()
        if !accept(last) {
            repeat {
                skipWhiteSpace()
                try item(&self)
                skipWhiteSpace()
            } while accept(Byte.comma)
            try expect(last)
        }
        depth -= 1
    }

    /// Steps over a value of any kind.
    mutating func skipValue() throws(SafetensorsError) {
        switch next {
        case Byte.openBrace: try object { (reader, _) throws(SafetensorsError) in try reader.skipValue() }
        case Byte.openBracket: try array { (reader) throws(SafetensorsError) in try reader.skipValue() }
        case Byte.quote: _ = try string()
        case UInt8(ascii: "t"): try skip("true")
        case UInt8(ascii: "f"): try skip("false")
        case UInt8(ascii: "n"): try skip("null")
        default: _ = try number()
        }
    }

    /// Steps over `word` where it comes next.
    mutating func accept(_ word: StaticString) -> Bool {
        let bytes = UnsafeBufferPointer(start: word.utf8Start, count: word.utf8CodeUnitCount)
        guard text[position...].starts(with: bytes) else { return false }
        position += bytes.count
        return true
    }

    private mutating func skip(_ word: StaticString) throws(SafetensorsError) {
        guard accept(word) else { throw error("a value expected") }
    }

    // MARK: - Numbers

    /// Reads a number. Nil: it has a sign, a fraction or an exponent, or does not fit into `Int`.
    mutating func number() throws(SafetensorsError) -> Int? {
        let start = position
        let isNegative = accept(UInt8(ascii: "-"))
        let first = position
        let digits = skipDigits()
        guard digits > 0 else { throw error("a value expected") }
        guard digits == 1 || text[first] != UInt8(ascii: "0") else { throw error("a number with a leading zero") }
        var isInteger = !isNegative
        if accept(UInt8(ascii: ".")) {
            isInteger = false
            guard skipDigits() > 0 else { throw error("a digit expected") }
        }
        if accept(UInt8(ascii: "e")) || accept(UInt8(ascii: "E")) {
            isInteger = false
            if !accept(UInt8(ascii: "+")) { _ = accept(UInt8(ascii: "-")) }
            guard skipDigits() > 0 else { throw error("a digit expected") }
        }
        // Eighteen digits fit, whatever they are.
        if isInteger, digits <= 18 {
            return text[first..<position].reduce(0) { $0 * 10 + Int($1 - UInt8(ascii: "0")) }
        }
        let written = String(decoding: text[start..<position], as: UTF8.self)
        guard let value = Double(written), value.isFinite else { throw error("a number out of range") }
        return isInteger ? Int(written) : nil
    }

    private mutating func skipDigits() -> Int {
        let start = position
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { position += 1 }
        return position - start
    }

    // MARK: - Strings

    mutating func string() throws(SafetensorsError) -> String {
        try expect(Byte.quote)
        let start = position
        skipPlainCharacters()
        if next == Byte.quote {
            defer { position += 1 }
            return String(decoding: text[start..<position], as: UTF8.self)
        }
        var bytes = Array(text[start..<position])
        while !accept(Byte.quote) {
            guard let byte = next else { throw error("a string without an end") }
            guard byte == Byte.backslash else { throw error("a control character in a string") }
            position += 1
            bytes += try escapedCharacter().utf8
            let start = position
            skipPlainCharacters()
            bytes += text[start..<position]
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    private mutating func skipPlainCharacters() {
        while let byte = next, byte >= 0x20, byte != Byte.quote, byte != Byte.backslash { position += 1 }
    }

    private mutating func escapedCharacter() throws(SafetensorsError) -> String {
        guard let byte = next else { throw error("a string without an end") }
        position += 1
        switch byte {
        case Byte.quote, Byte.backslash, UInt8(ascii: "/"): return String(UnicodeScalar(byte))
        case UInt8(ascii: "b"): return "\u{08}"
        case UInt8(ascii: "f"): return "\u{0c}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"): return String(try escapedScalar())
        default: throw error("an unknown escape sequence")
        }
    }

    /// Reads the digits of \uXXXX, and the second half of a surrogate pair after the first.
    private mutating func escapedScalar() throws(SafetensorsError) -> UnicodeScalar {
        let first = try fourHexadecimalDigits()
        if let scalar = UnicodeScalar(first) { return scalar }
        guard (0xd800...0xdbff).contains(first), accept(Byte.backslash), accept(UInt8(ascii: "u")) else {
            throw error("half a surrogate pair")
        }
        let second = try fourHexadecimalDigits()
        guard (0xdc00...0xdfff).contains(second),
            let scalar = UnicodeScalar(0x10000 + (first - 0xd800) << 10 + (second - 0xdc00))
        else { throw error("half a surrogate pair") }
        return scalar
    }

    private mutating func fourHexadecimalDigits() throws(SafetensorsError) -> UInt32 {
        var value: UInt32 = 0
        for _ in 0..<4 {
            guard let byte = next, let digit = Character(UnicodeScalar(byte)).hexDigitValue else {
                throw error("a hexadecimal digit expected")
            }
            value = value << 4 | UInt32(digit)
            position += 1
        }
        return value
    }
}

/// The bytes that JSON is built from.
enum Byte {
    static let openBrace = UInt8(ascii: "{")
    static let closeBrace = UInt8(ascii: "}")
    static let openBracket = UInt8(ascii: "[")
    static let closeBracket = UInt8(ascii: "]")
    static let quote = UInt8(ascii: "\"")
    static let backslash = UInt8(ascii: "\\")
    static let colon = UInt8(ascii: ":")
    static let comma = UInt8(ascii: ",")
}
