// SPDX-License-Identifier: Apache-2.0
// JSON.swift - a strict reader of JSON (RFC 8259) that keeps what others drop: members in order, and names that occur twice.

/// A JSON value as it stands in the text.
enum JSON: Equatable {
    case object([Member])
    case array([JSON])
    case string(String)
    /// An integer written without fraction and exponent that fits into `Int`.
    case integer(Int)
    /// Any other number, as written.
    case number(String)
    case bool(Bool)
    case null

    struct Member: Equatable {
        let name: String
        let value: JSON
    }
}

/// Where and why a text is not JSON.
struct JSONError: Error, Equatable {
    let byte: Int
    let reason: String
}

/// Reads one JSON value from UTF-8 that is known to be valid. Objects and arrays nest at most `maximumDepth` deep.
struct JSONReader {
    /// Deep enough for every header, shallow enough that hostile nesting cannot exhaust the stack.
    static let maximumDepth = 32

    private let text: [UInt8]
    private var position = 0

    private init(_ text: [UInt8]) {
        self.text = text
    }

    /// Returns the value that `text` consists of; white space may stand around it and nothing else.
    static func read(_ text: [UInt8]) throws(JSONError) -> JSON {
        var reader = JSONReader(text)
        reader.skipWhiteSpace()
        let value = try reader.value(depth: 0)
        reader.skipWhiteSpace()
        guard reader.position == text.count else { throw reader.error("text after the end of the value") }
        return value
    }

    private func error(_ reason: String) -> JSONError {
        JSONError(byte: position, reason: reason)
    }

    // MARK: - Bytes

    private var next: UInt8? {
        position < text.count ? text[position] : nil
    }

    private mutating func skipWhiteSpace() {
        while let byte = next, byte == 0x20 || byte == 0x0a || byte == 0x0d || byte == 0x09 { position += 1 }
    }

    /// Steps over `byte` and returns whether it was there.
    private mutating func accept(_ byte: Character) -> Bool {
        guard next == byte.asciiValue else { return false }
        position += 1
        return true
    }

    private mutating func expect(_ byte: Character) throws(JSONError) {
        guard accept(byte) else { throw error("\(byte) expected") }
    }

    // MARK: - Values

    private mutating func value(depth: Int) throws(JSONError) -> JSON {
        guard depth < Self.maximumDepth else { throw error("more than \(Self.maximumDepth) levels of nesting") }
        switch next {
        case UInt8(ascii: "{"): return .object(try object(depth: depth))
        case UInt8(ascii: "["): return .array(try array(depth: depth))
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try literal("true", .bool(true))
        case UInt8(ascii: "f"): return try literal("false", .bool(false))
        case UInt8(ascii: "n"): return try literal("null", .null)
        default: return try number()
        }
    }

    private mutating func object(depth: Int) throws(JSONError) -> [JSON.Member] {
        var members: [JSON.Member] = []
        try expect("{")
        skipWhiteSpace()
        if accept("}") { return members }
        repeat {
            skipWhiteSpace()
            let name = try string()
            skipWhiteSpace()
            try expect(":")
            skipWhiteSpace()
            members.append(JSON.Member(name: name, value: try value(depth: depth + 1)))
            skipWhiteSpace()
        } while accept(",")
        try expect("}")
        return members
    }

    private mutating func array(depth: Int) throws(JSONError) -> [JSON] {
        var elements: [JSON] = []
        try expect("[")
        skipWhiteSpace()
        if accept("]") { return elements }
        repeat {
            skipWhiteSpace()
            elements.append(try value(depth: depth + 1))
            skipWhiteSpace()
        } while accept(",")
        try expect("]")
        return elements
    }

    private mutating func literal(_ word: String, _ value: JSON) throws(JSONError) -> JSON {
        guard text[position...].starts(with: word.utf8) else { throw error("a value expected") }
        position += word.utf8.count
        return value
    }

    // MARK: - Numbers

    private mutating func number() throws(JSONError) -> JSON {
        let start = position
        _ = accept("-")
        let leadingZero = next == UInt8(ascii: "0")
        let digits = skipDigits()
        guard digits > 0 else { throw error("a value expected") }
        guard !leadingZero || digits == 1 else { throw error("a number with a leading zero") }
        var isInteger = true
        if accept(".") {
            isInteger = false
            guard skipDigits() > 0 else { throw error("a digit expected") }
        }
        if accept("e") || accept("E") {
            isInteger = false
            if !accept("+") { _ = accept("-") }
            guard skipDigits() > 0 else { throw error("a digit expected") }
        }
        let written = String(decoding: text[start..<position], as: UTF8.self)
        if isInteger, written != "-0", let value = Int(written) { return .integer(value) }
        return .number(written)
    }

    private mutating func skipDigits() -> Int {
        let start = position
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { position += 1 }
        return position - start
    }

    // MARK: - Strings

    private mutating func string() throws(JSONError) -> String {
        try expect("\"")
        var bytes: [UInt8] = []
        while let byte = next {
            switch byte {
            case UInt8(ascii: "\""):
                position += 1
                return String(decoding: bytes, as: UTF8.self)
            case UInt8(ascii: "\\"):
                position += 1
                bytes += try escapedCharacter().utf8
            case ..<0x20:
                throw error("a control character in a string")
            default:
                position += 1
                bytes.append(byte)
            }
        }
        throw error("a string without an end")
    }

    private mutating func escapedCharacter() throws(JSONError) -> String {
        guard let byte = next else { throw error("a string without an end") }
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return String(UnicodeScalar(byte))
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
    private mutating func escapedScalar() throws(JSONError) -> UnicodeScalar {
        let first = try fourHexadecimalDigits()
        if let scalar = UnicodeScalar(first) { return scalar }
        guard (0xd800...0xdbff).contains(first), accept("\\"), accept("u") else { throw error("half a surrogate pair") }
        let second = try fourHexadecimalDigits()
        guard (0xdc00...0xdfff).contains(second),
            let scalar = UnicodeScalar(0x10000 + (first - 0xd800) << 10 + (second - 0xdc00))
        else { throw error("half a surrogate pair") }
        return scalar
    }

    private mutating func fourHexadecimalDigits() throws(JSONError) -> UInt32 {
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
