// SPDX-License-Identifier: Apache-2.0
// DisplayedText.swift - names out of files as they can be shown: what would steer a terminal or turn a line is escaped.

extension Unicode.Scalar {
    /// Whether showing this scalar as it is could do something else than put a character there: controls of C0 and C1,
    /// format characters (overrides of the writing direction, joiners, marks that are not seen), ends of lines and
    /// paragraphs, and what is no character at all.
    package var misleadsWhenShown: Bool {
        if isASCII { return value < 0x20 || value == 0x7f }
        return switch properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse, .unassigned: true
        default: false
        }
    }

    /// As in a Swift literal: `\u{202e}`.
    package var asNumber: String { "\\u{\(String(value, radix: 16))}" }
}

/// Returns `text` in quotation marks on one line, escaped as in a Swift literal what would mislead: `\u{202e}`.
///
/// - Parameter limit: so many scalars of it are shown at most; dots stand for the rest.
package func quoted(_ text: String, limit: Int = .max) -> String {
    var result = "\""
    var shown = 0
    for scalar in text.unicodeScalars {
        if shown == limit { return result + "\"..." }
        shown += 1
        switch scalar {
        case "\"": result += "\\\""
        case "\\": result += "\\\\"
        case "\n": result += "\\n"
        case "\r": result += "\\r"
        case "\t": result += "\\t"
        case _ where scalar.misleadsWhenShown: result += scalar.asNumber
        default: result.unicodeScalars.append(scalar)
        }
    }
    return result + "\""
}

/// Returns a name as it is, or quoted where it would not stand as one word in a table.
package func printable(_ name: String) -> String {
    let isPlain =
        !name.isEmpty
        && name.unicodeScalars.allSatisfy {
            !$0.misleadsWhenShown && $0.properties.generalCategory != .spaceSeparator && $0 != "\""
        }
    return isPlain ? name : quoted(name)
}

/// Returns a shape as text, of which a file may claim a million extents: the first 16, and how many there are.
package func shown(shape: [Int]) -> String {
    guard shape.count > 16 else { return "\(shape)" }
    return "[\(shape.prefix(16).map(String.init).joined(separator: ", ")), ... \(shape.count) extents]"
}
