// SPDX-License-Identifier: Apache-2.0
// TextTable.swift - rows of text in columns that stand under each other.

/// Rows of text in columns as wide as their longest cell.
struct TextTable {
    let text: String

    /// - Parameters:
    ///   - rows: cells that are missing at the end stay empty.
    ///   - leftColumns: so many columns are aligned left, the others right.
    init(_ titles: [String], _ rows: [[String]], leftColumns: Int) {
        let lines = [titles] + rows
        let widths = titles.indices.map { column in
            lines.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0
        }
        text = lines.map { cells in
            let padded = cells.enumerated().map { column, cell in
                let blanks = String(repeating: " ", count: widths[column] - cell.count)
                if column >= leftColumns { return blanks + cell }
                return column + 1 < cells.count ? cell + blanks : cell
            }
            return padded.joined(separator: "  ")
        }.joined(separator: "\n")
    }
}
