// SPDX-License-Identifier: Apache-2.0
// Chart.swift - lines over a numeric axis as SVG, which can be read on light and on dark.

import Foundation

/// One figure: a line for every variant, the mean of its seeds, with points.
struct Chart {
    let title: String
    /// Points (x, y) of every line, in the order of x.
    let lines: [(name: String, points: [(x: Double, y: Double)])]
    private let width = 640.0, height = 360.0
    private let left = 64.0, right = 170.0, top = 36.0, bottom = 40.0
    /// Okabe and Ito's colours, which the colour-blind can tell apart.
    private static let colours = [
        "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#b0a000",
    ]

    init(title: String, lines: [(name: String, points: [(x: Double, y: Double)])]) {
        self.title = title
        self.lines = lines.map { ($0.name, $0.points.filter { $0.x.isFinite && $0.y.isFinite }) }
    }

    private var xs: [Double] { lines.flatMap { $0.points.map(\.x) } }
    private var ys: [Double] { lines.flatMap { $0.points.map(\.y) } }
    /// Doubling lengths get a logarithmic axis.
    private var isLogarithmic: Bool {
        (xs.min() ?? 0) > 0 && (xs.max() ?? 0) >= 7 * (xs.min() ?? 1) && Set(xs).count > 2
    }

    var svg: String {
        let (low, high) = (ys.min() ?? 0, ys.max() ?? 1)
        let margin = high > low ? 0.05 * (high - low) : max(abs(high), 1) * 0.1
        let (bottomValue, topValue) = (low - margin, high + margin)
        func y(_ value: Double) -> Double {
            top + (height - top - bottom) * (topValue - value) / (topValue - bottomValue)
        }
        var body = ""
        for tick in ticks(bottomValue, topValue) {
            body += "<path class=\"grid\" d=\"M\(left) \(number(y(tick)))H\(width - right)\"/>"
            body += "<text x=\"\(left - 8)\" y=\"\(number(y(tick) + 4))\" text-anchor=\"end\">\(label(tick))</text>\n"
        }
        for tick in isLogarithmic ? Array(Set(xs)).sorted() : ticks(xs.min() ?? 0, xs.max() ?? 1) {
            if isLogarithmic, Set(xs).count > 12, log2(tick) != log2(tick).rounded() { continue }
            body +=
                "<text x=\"\(number(x(tick)))\" y=\"\(height - bottom + 20)\" text-anchor=\"middle\">\(label(tick))</text>\n"
        }
        for (index, line) in lines.enumerated() {
            let colour = Self.colours[index % Self.colours.count]
            let path = line.points.enumerated()
                .map { "\($0.offset == 0 ? "M" : "L")\(number(x($0.element.x))) \(number(y($0.element.y)))" }.joined()
            body += "<path d=\"\(path)\" fill=\"none\" stroke=\"\(colour)\" stroke-width=\"2\"/>"
            for point in line.points where line.points.count <= 20 {
                body += "<circle cx=\"\(number(x(point.x)))\" cy=\"\(number(y(point.y)))\" r=\"3\" fill=\"\(colour)\"/>"
            }
            let place = top + 12 + 18 * Double(index)
            body += "<path d=\"M\(width - right + 12) \(place - 4)h18\" stroke=\"\(colour)\" stroke-width=\"2\"/>"
            body += "<text x=\"\(width - right + 36)\" y=\"\(place)\">\(escaped(line.name))</text>\n"
        }
        return """
            <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(Int(width)) \(Int(height))" font-family="sans-serif" font-size="12">
            <style>text{fill:#222}.grid{stroke:#8888;stroke-width:.5}.ground{fill:#fff}
            @media(prefers-color-scheme:dark){text{fill:#ddd}.ground{fill:#161616}}</style>
            <rect class="ground" width="100%" height="100%"/>
            <text x="\(left)" y="20" font-size="14">\(escaped(title))</text>
            \(body)</svg>

            """
    }

    private func x(_ value: Double) -> Double {
        let scale: (Double) -> Double = isLogarithmic ? { log($0) } : { $0 }
        let (low, high) = (scale(xs.min() ?? 0), scale(xs.max() ?? 1))
        return left + (width - left - right) * (high > low ? (scale(value) - low) / (high - low) : 0.5)
    }

    private func ticks(_ low: Double, _ high: Double) -> [Double] {
        guard high > low else { return [low] }
        let rough = (high - low) / 5
        let unit = pow(10, log10(rough).rounded(.down))
        let step = unit * ([1, 2, 5, 10].first { $0 * unit >= rough } ?? 10)
        return Array(stride(from: (low / step).rounded(.up) * step, through: high, by: step))
    }

    private func number(_ value: Double) -> String { String(format: "%.1f", value) }
    private func label(_ value: Double) -> String { String(format: "%.5g", abs(value) < 1e-12 ? 0 : value) }
}

func escaped(_ text: String) -> String {
    text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(of: "<", with: "&lt;")
        .replacingOccurrences(of: ">", with: "&gt;").replacingOccurrences(of: "\"", with: "&quot;")
}
