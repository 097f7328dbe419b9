// SPDX-License-Identifier: Apache-2.0
// Markup.swift - pieces of HTML and SVG: text from files becomes text, whatever it says, and numbers are short.

import Safetensors

/// Markup that may stand in a page as it is. Text becomes one by ``text(_:)`` alone, which escapes it.
struct Markup: ExpressibleByStringInterpolation {
    let source: String

    init(stringLiteral value: String) { source = value }

    init(stringInterpolation: Interpolation) { source = stringInterpolation.source }

    fileprivate init(source: String) { self.source = source }

    /// Text of any origin, names of files and tensors among them.
    static func text(_ text: String) -> Markup { Markup(source: escaped(text)) }

    private static func escaped(_ text: String) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            case "\"": result += "&quot;"
            case "'": result += "&#39;"
            case "\n": result += "\n"
            // What would turn the direction of writing, or is no character, is shown as its number.
            case _ where scalar.misleadsWhenShown: result += scalar.asNumber
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }

    /// Strings in literals are escaped, markup is not.
    struct Interpolation: StringInterpolationProtocol {
        fileprivate var source = ""

        init(literalCapacity: Int, interpolationCount: Int) { source.reserveCapacity(literalCapacity * 2) }

        mutating func appendLiteral(_ literal: String) { source += literal }
        mutating func appendInterpolation(_ text: String) { source += Markup.escaped(text) }
        mutating func appendInterpolation(_ markup: Markup) { source += markup.source }
        mutating func appendInterpolation(_ number: Int) { source += String(number) }
    }
}

extension Sequence<Markup> {
    func joined(_ separator: String = "\n") -> Markup {
        Markup(source: map(\.source).joined(separator: separator))
    }
}

// MARK: - Numbers

/// `12.3 %`; empty for what is no number.
func percent(_ share: Double) -> String {
    share.isNaN ? "none" : decimal(share * 100, digits: share < 0.0995 ? 1 : 0) + " %"
}

/// In so many significant digits, for people.
func short(_ value: Double) -> String { decimal(value, digits: 4, format: "g") }

/// A place in a picture, in tenths.
func place(_ value: Double) -> String {
    let tenths = Int((value * 10).rounded())
    return tenths.isMultiple(of: 10) ? "\(tenths / 10)" : decimal(Double(tenths) / 10, digits: 1)
}
