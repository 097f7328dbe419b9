// SPDX-License-Identifier: Apache-2.0
// Picture.swift - the drawings of a report as inline SVG: a grid of cells in a few colours, and bars.

/// A grid of cells, each in one of a few colours.
struct CellPicture {
    /// 0 is not drawn, 1 to ``ReportStyle/levels`` are colours; `[rows][columns]`.
    let levels: [[Int]]

    /// One path per colour, in units of cells: neighbours of one colour in a row are one line.
    var paths: Markup {
        var moves = [String](repeating: "", count: ReportStyle.levels + 1)
        for (row, line) in levels.enumerated() {
            var start = 0
            for column in line.indices where column + 1 == line.count || line[column + 1] != line[column] {
                if line[column] > 0 { moves[line[column]] += "M\(start) \(row)h\(column + 1 - start)" }
                start = column + 1
            }
        }
        return moves.enumerated().filter { !$0.element.isEmpty }.map { level, path in
            "<path class=\"c\(level)\" d=\"\(path)\"/>" as Markup
        }.joined("")
    }
}

/// Amounts from 0 up as bars beside each other.
struct BarPicture {
    let values: [Double]
    /// Under the first, in the middle and under the last bar; empty: nothing is written.
    let labels: (first: String, middle: String, last: String)
    /// What the tallest bar stands for, written at the top.
    let top: String
    /// The places of dashed lines, in bars from the left.
    var marks: [Double] = []
    /// What is read to those who do not see it.
    let description: String
    var width = 288.0
    var height = 96.0

    var markup: Markup {
        let (plot, step) = (height - 18, width / Double(max(values.count, 1)))
        let tallest = values.filter(\.isFinite).max() ?? 0
        let bars = values.enumerated().filter { $0.element > 0 && $0.element.isFinite }.map { index, value in
            // What is there at all is seen.
            let size = max(value / tallest * (plot - 14), 0.7)
            return
                "M\(place(Double(index) * step)) \(place(plot))v-\(place(size))h\(place(max(step - 0.5, 0.5)))v\(place(size))z"
        }.joined()
        let lines = marks.filter { $0 >= 0 && $0 <= Double(values.count) }.map { mark in
            "<path class=\"mark\" d=\"M\(place(mark * step)) 0V\(place(plot))\"/>" as Markup
        }
        return """
            <svg viewBox="0 0 \(place(width)) \(place(height))" width="\(place(width))" role="img" aria-label="\(description)">\
            <rect class="ground" x=".5" y=".5" width="\(place(width - 1))" height="\(place(plot - 0.5))"/>\
            <path class="bar" d="\(bars)"/>\(lines.joined(""))<text x="4" y="11">\(top)</text>\
            <text x="0" y="\(place(height - 5))">\(labels.first)</text>\
            <text x="\(place(width / 2))" y="\(place(height - 5))" text-anchor="middle">\(labels.middle)</text>\
            <text x="\(place(width))" y="\(place(height - 5))" text-anchor="end">\(labels.last)</text></svg>
            """
    }
}

/// A table of amounts, layers by heads, in colours and numbers.
struct MatrixPicture {
    struct Cell {
        /// 0...1, how far up the colours; NaN: none.
        let share: Double
        /// Written into the cell.
        let text: String
        /// What it is, in full.
        let description: String
        /// The place of the page that it leads to; nil: none.
        let target: String?
    }

    let rowTitles, columnTitles: [String]
    /// `[rows][columns]`; a row may be shorter.
    let cells: [[Cell]]
    let description: String

    /// So many have text and lead somewhere; more are colours alone.
    static let mostDetailed = 1200

    private var columns: Int { cells.map(\.count).max() ?? 0 }
    private var isDetailed: Bool { cells.reduce(0) { $0 + $1.count } <= Self.mostDetailed }
    private var titleWidth: Double { min(260, 10 + 6.2 * Double(rowTitles.map(\.count).max() ?? 0)) }

    var markup: Markup {
        let (cell, line) = isDetailed ? (36.0, 20.0) : (6.0, 6.0)
        let width = titleWidth + cell * Double(columns) + 8
        let height = line * Double(cells.count) + 18
        return """
            <svg viewBox="0 0 \(place(width)) \(place(height))" width="\(place(width))" role="\(isDetailed ? "group" : "img")" \
            aria-label="\(description)">\(isDetailed ? detailed(cell, line) : coloured(cell, line))</svg>
            """
    }

    private func detailed(_ width: Double, _ height: Double) -> Markup {
        let titles = columnTitles.prefix(columns).enumerated().map { index, title in
            "<text x=\"\(place(titleWidth + (Double(index) + 0.5) * width))\" y=\"11\" text-anchor=\"middle\">\(title)</text>"
                as Markup
        }
        let rows = cells.enumerated().map { row, line in
            let y = 16 + Double(row) * height
            let title: Markup =
                "<text x=\"\(place(titleWidth - 6))\" y=\"\(place(y + 14))\" text-anchor=\"end\">\(rowTitles[row])</text>"
            return
                ([title]
                + line.enumerated().map { column, cell in
                    drawn(cell, x: titleWidth + Double(column) * width, y: y, width, height)
                }).joined("")
        }
        return (titles + rows).joined("")
    }

    private func drawn(_ cell: Cell, x: Double, y: Double, _ width: Double, _ height: Double) -> Markup {
        let level = Self.level(cell.share)
        let isUpper = level > ReportStyle.levels / 2
        let body: Markup = """
            <rect class="\(level > 0 ? "f\(level)" : "ground")" x="\(place(x))" y="\(place(y))" width="\(place(width))" \
            height="\(place(height))"/><text class="value\(isUpper ? " upper" : "")" x="\(place(x + width / 2))" \
            y="\(place(y + 14))">\(cell.text)</text><title>\(cell.description)</title>
            """
        return cell.target.map { "<a href=\"#\($0)\" aria-label=\"\(cell.description)\">\(body)</a>" }
            ?? "<g>\(body)</g>"
    }

    private func coloured(_ width: Double, _ height: Double) -> Markup {
        let picture = CellPicture(levels: cells.map { $0.map { Self.level($0.share) } })
        return """
            <g transform="translate(\(place(titleWidth)) 16) scale(\(place(width)) \(place(height))) translate(0 .5)">\
            \(picture.paths)</g><text x="\(place(titleWidth - 6))" y="24" text-anchor="end">\(rowTitles.first ?? "")</text>\
            <text x="\(place(titleWidth - 6))" y="\(place(14 + height * Double(cells.count)))" text-anchor="end">\
            \(rowTitles.last ?? "")</text>
            """
    }

    private static func level(_ share: Double) -> Int {
        guard share > 0 else { return 0 }
        return min(ReportStyle.levels, 1 + Int(min(share, 1) * Double(ReportStyle.levels)))
    }
}
