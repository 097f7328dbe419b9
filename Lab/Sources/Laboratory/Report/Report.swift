// SPDX-License-Identifier: Apache-2.0
// Report.swift - report.md, report.html and figures of all results in a folder.

import Foundation

public enum Report {
    /// Writes the report of a folder's JSON files, whose claims are judged anew: they may have been put better since the runs.
    /// Returns the paths of what it wrote.
    public static func write(folder: String) throws -> [String] {
        guard let names = try? FileManager.default.contentsOfDirectory(atPath: folder) else {
            throw LabError("\(folder): cannot be read")
        }
        var (markdown, html, written) = ("# Results\n", "", [String]())
        for name in names.sorted() where name.hasSuffix(".json") {
            let outcome = try judged("\(folder)/\(name)")
            let figures = figures(outcome)
            for figure in figures {
                try put(figure.svg, "\(folder)/\(figure.file)")
                written.append("\(folder)/\(figure.file)")
            }
            markdown += section(outcome, figures)
            html += page(outcome, figures)
        }
        guard !html.isEmpty else { throw LabError("\(folder): has no results") }
        try put(markdown, "\(folder)/report.md")
        try put(Self.frame(html), "\(folder)/report.html")
        return written + ["\(folder)/report.md", "\(folder)/report.html"]
    }

    /// Results with the claims as their experiment has them now; the file is written again where that changes it.
    private static func judged(_ path: String) throws -> Outcome {
        var outcome = try Outcome.read(path)
        let experiment = Experiments.all.first { $0.name == outcome.experiment }
        guard let experiment, !outcome.verdicts.isEmpty else { return outcome }
        let verdicts = experiment.tests(outcome)
        if verdicts != outcome.verdicts {
            outcome.verdicts = verdicts
            try outcome.write(path)
        }
        return outcome
    }

    private struct Figure { let file, title, svg: String }

    /// A figure for each name of a curve: the means of all seeds of every variant.
    private static func figures(_ outcome: Outcome) -> [Figure] {
        let names = Set(outcome.runs.flatMap { $0.measurement.curves.keys }).sorted()
        return names.map { name in
            let lines = outcome.variants.compactMap { variant -> (name: String, points: [(x: Double, y: Double)])? in
                let curves = outcome.runs.filter { $0.variant == variant }.compactMap { $0.measurement.curves[name] }
                guard let first = curves.first, !first.isEmpty else { return nil }
                let points = first.indices.map { index in
                    (x: first[index][0], y: mean(curves.filter { $0.count > index }.map { $0[index][1] }))
                }
                return (name: variant, points: points)
            }
            let file =
                "\(outcome.experiment)-\(name.map { $0.isLetter || $0.isNumber ? String($0) : "-" }.joined()).svg"
            return Figure(file: file.lowercased(), title: name, svg: Chart(title: name, lines: lines).svg)
        }.filter { !$0.svg.isEmpty }
    }

    /// Rows of the table: every number of a run, by variant: mean, and the standard deviation over seeds.
    private static func table(_ outcome: Outcome) -> [[String]] {
        let names = Set(outcome.runs.flatMap { $0.measurement.numbers.keys }).sorted {
            $0.compare($1, options: .numeric) == .orderedAscending
        }
        return [[""] + outcome.variants]
            + names.map { name in [name] + outcome.variants.map { cell(outcome.numbers(name, $0)) } }
    }

    private static func cell(_ values: [Double]) -> String {
        guard !values.isEmpty else { return "" }
        let mean = mean(values)
        if values.count == 1 { return String(format: "%.4g", mean) }
        let squares = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
        return String(format: "%.4g ± %.2g", mean, (squares / Double(values.count - 1)).squareRoot())
    }

    private static func facts(_ o: Outcome) -> String {
        let seeds = Set(o.runs.map(\.seed)).count
        let minutes = o.runs.reduce(0) { $0 + $1.seconds } / 60
        let settings = o.settings.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
        return "Seeds: \(seeds). Settings: \(settings). \(o.machine). Commit \(o.commit), \(o.date). "
            + String(format: "All runs together: %.1f minutes. ", minutes)
            + "Cells are the mean and the standard deviation over seeds."
    }

    private static func section(_ o: Outcome, _ figures: [Figure]) -> String {
        var text = "\n## \(o.experiment)\n\n\(o.question)\n\n\(o.method)\n\n\(facts(o))\n\n    lab \(o.command)\n\n"
        for (index, row) in table(o).enumerated() {
            text += "| \(row.map { $0.replacingOccurrences(of: "|", with: "\\|") }.joined(separator: " | ")) |\n"
            if index == 0 { text += "|---|" + String(repeating: "---:|", count: row.count - 1) + "\n" }
        }
        if !o.verdicts.isEmpty { text += "\n| claim | holds | found |\n|---|---|---|\n" }
        for verdict in o.verdicts {
            text += "| \(verdict.claim) | \(verdict.holds ? "yes" : "**no**") | \(verdict.detail) |\n"
        }
        for figure in figures { text += "\n![\(figure.title)](\(figure.file))\n" }
        return text
    }

    private static func page(_ o: Outcome, _ figures: [Figure]) -> String {
        func row(_ cells: [String], _ tag: String) -> String {
            "<tr>" + cells.map { "<\(tag)>\(escaped($0))</\(tag)>" }.joined() + "</tr>\n"
        }
        let rows = table(o)
        var text = "<h2>\(escaped(o.experiment))</h2><p>\(escaped(o.question))</p><p>\(escaped(o.method))</p>"
        text += "<p>\(escaped(facts(o)))</p><pre>lab \(escaped(o.command))</pre>\n<table>\(row(rows[0], "th"))"
        text += rows.dropFirst().map { row($0, "td") }.joined() + "</table>\n"
        if !o.verdicts.isEmpty {
            text += "<table>" + row(["claim", "holds", "found"], "th")
            text +=
                o.verdicts.map { row([$0.claim, $0.holds ? "yes" : "no", $0.detail], "td") }.joined() + "</table>\n"
        }
        return text
            + figures.map { "<img src=\"\(escaped($0.file))\" alt=\"\(escaped($0.title))\" width=\"640\">\n" }.joined()
    }

    private static func frame(_ body: String) -> String {
        """
        <!doctype html><html lang="en"><meta charset="utf-8"><title>Results</title>
        <style>:root{color-scheme:light dark}body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
        table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}td,th{border-bottom:1px solid #8886;
        padding:.2em .8em;text-align:left}img{max-width:100%}</style>
        <h1>Results</h1>
        \(body)</html>

        """
    }

    private static func put(_ text: String, _ path: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: path), options: .atomic)
    }
}
