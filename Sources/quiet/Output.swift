// SPDX-License-Identifier: Apache-2.0
// Output.swift - results on standard output, as JSON or as lines for people, and failures.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

/// An input that cannot be used: the command ends with status 1 and this one line.
struct Failure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}

/// Writes `text` to standard output; a full disk is a failure like any other.
func emit(_ text: String) throws {
    guard writeAll(text + "\n", to: STDOUT_FILENO) else {
        throw Failure("cannot write to standard output: \(String(cString: strerror(errno)))")
    }
}

/// Returns `value` with so many digits after the point, or in as many significant digits where `format` is "g".
func decimal(_ value: Double, digits: Int, format: Character = "f") -> String {
    // C prints the sign of a NaN, which says nothing and differs between machines.
    if value.isNaN { return "nan" }
    var text = [CChar](repeating: 0, count: 400)
    let length = withVaList([Int32(digits), value]) { vsnprintf(&text, text.count, "%.*\(format)", $0) }
    return String(decoding: text.prefix(Int(length)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// A JSON value. Objects keep the order of their members.
indirect enum JSONValue {
    case string(String)
    case integer(Int)
    /// Seven to nine significant digits, as many as a Float needs; what is not finite becomes null.
    case number(Double)
    case bool(Bool)
    case null
    case array([JSONValue])
    case object([(name: String, value: JSONValue)])

    /// The value on one line, or an object with one line for each of its members.
    func text(lines: Bool = false) -> String {
        switch self {
        case .string(let text): quoted(text)
        case .integer(let value): "\(value)"
        case .number(let value): Float(value).isFinite ? "\(Float(value))" : "null"
        case .bool(let value): "\(value)"
        case .null: "null"
        case .array(let values): "[" + values.map { $0.text() }.joined(separator: ", ") + "]"
        case .object(let members):
            lines
                ? "{\n" + members.map { "  \(quoted($0.name)): \($0.value.text())" }.joined(separator: ",\n") + "\n}"
                : "{" + members.map { "\(quoted($0.name)): \($0.value.text())" }.joined(separator: ", ") + "}"
        }
    }

    /// Beside what JSON asks for, escaped what would mislead: the same string for a program, a safe one on a terminal.
    private func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case _ where scalar.misleadsWhenShown:
                for unit in String(scalar).utf16 {
                    let digits = String(unit, radix: 16)
                    result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
                }
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }
}
