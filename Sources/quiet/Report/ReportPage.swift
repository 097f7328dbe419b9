// SPDX-License-Identifier: Apache-2.0
// ReportPage.swift - quiet inspect --report: one page of pictures that needs nothing but itself.

import QuietAttention
import Safetensors

/// The page of what `quiet inspect` measured. No scripts and nothing from elsewhere: it opens from disk, and the policy in
/// its head forbids whatever a name could smuggle in. Its size is bounded, however many tensors and heads a file has.
struct ReportPage {
    let file: String
    let tensors: [MeasuredTensor]
    let attention: InspectedAttention
    let faults: [String]

    /// So much is drawn at most; of the rest the page says how much it is.
    static let (mostHeads, mostTensors, mostRows, mostReasons) = (400, 160, 2000, 50)

    var html: String {
        let sections = [attentionSection, tensorSection, tableSection, leftOutSection].compactMap(\.self)
        let links = sections.map { "<li><a href=\"#\($0.identifier)\">\($0.title)</a></li>" as Markup }
        let bodies = sections.map { section in
            "<section id=\"\(section.identifier)\"><h2>\(section.title)</h2>\n\(section.body)</section>" as Markup
        }
        let page: Markup = """
            <!DOCTYPE html>
            <html lang="en"><head><meta charset="utf-8"><title>\(name) - quiet inspect</title>
            <meta name="viewport" content="width=device-width, initial-scale=1">
            <meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
            <style>
            \(Markup(stringLiteral: ReportStyle.sheet))
            </style></head>
            <body><a class="skip" href="#\(sections.first?.identifier ?? "")">To the pictures</a>
            <header><h1>\(name)</h1><p class="faint">\(summary)</p>
            <nav aria-label="Parts"><ul>\(links.joined(""))</ul></nav></header>
            <main>
            \(bodies.joined())
            </main></body></html>
            """
        return page.source + "\n"
    }

    private var name: String { file.split(separator: "/").last.map(String.init) ?? file }

    private var summary: String {
        let elements = tensors.reduce(0) { $0 + ($1.statistics?.count ?? 0) }
        return "Tensors: \(tensors.count), with \(elements) elements measured. Layers with queries, keys and values: "
            + "\(attention.heads.count). Made by quiet inspect."
    }

    private struct Section {
        let identifier, title: String
        let body: Markup
    }

    /// A sentence where there is more than is drawn.
    private static func remark(_ drawn: Int, of all: Int, _ what: String) -> Markup {
        drawn >= all ? "" : "<p class=\"faint\">The first \(drawn) of \(all) \(what) are drawn.</p>\n"
    }

    // MARK: - Heads

    private var attentionSection: Section? {
        guard !attention.heads.isEmpty else { return nil }
        let drawn = attention.heads.reduce(0) { $0 + $1.maps.count }
        let all = attention.heads.reduce(0) { $0 + $1.heads.count }
        let layers = attention.heads.enumerated().filter { !$0.element.maps.isEmpty || $0.offset < 64 }.map(layer)
        return Section(
            identifier: "heads", title: "What heads do",
            body: """
                \(HeadOverview(layers: attention.heads).markup)
                <h3>Where each head puts its weight</h3>
                <p>Rows of queries downwards, keys to the right, in \(HeadFigure.bands) bands each at most; a cell is the mean \
                weight of its rows on all keys of its band, so that a row of cells and its sink sum to 100 %. Below, the weight by the \
                distance from a row back to the key, in ranges that double.</p>
                \(HeadFigure.legend)
                \(Self.remark(drawn, of: all, "heads"))\(layers.joined())
                """)
    }

    private func layer(_ index: Int, _ measured: MeasuredHeads) -> Markup {
        let figures = measured.maps.enumerated().map { head, map in
            HeadFigure(
                map: map, head: head, leadingKeys: measured.leadingKeys,
                identifier: HeadOverview.identifier(layer: index, head: head)
            ).markup
        }
        return """
            <h3 id="\(HeadOverview.identifier(layer: index, head: nil))">\(measured.title)</h3>
            <pre tabindex="0">\(measured.lines)</pre>
            <div class="figures">
            \(figures.joined())
            </div>
            """
    }

    // MARK: - Tensors

    private var tensorSection: Section? {
        let figures = tensors.enumerated().compactMap { index, tensor -> Markup? in
            guard let picture = tensor.picture, let statistics = tensor.statistics else { return nil }
            return TensorFigure(
                tensor: tensor, picture: picture, statistics: statistics, identifier: "t\(index)"
            ).markup
        }
        guard !figures.isEmpty else { return nil }
        let measured = tensors.count { $0.statistics != nil }
        return Section(
            identifier: "tensors", title: "Tensors",
            body: """
                \(TensorOverview(tensors).markup)<p>Elements by value, with lines at six standard deviations, beyond which an \
                element counts as an outlier; and the largest magnitude of each channel, a place in the last dimension.</p>
                \(Self.remark(figures.count, of: measured, "tensors"))<div class="figures">
                \(figures.joined())
                </div>
                """)
    }

    private var tableSection: Section? {
        guard !tensors.isEmpty else { return nil }
        let rows = tensors.prefix(Self.mostRows).map { tensor in
            "<tr>\(tensor.cells.map { "<td>\($0)</td>" as Markup }.joined(""))</tr>" as Markup
        }
        let head = MeasuredTensor.titles.map { "<th scope=\"col\">\($0)</th>" as Markup }
        return Section(
            identifier: "table", title: "All tensors in numbers",
            body: """
                \(Self.remark(rows.count, of: tensors.count, "tensors"))<div class="wide" tabindex="0" role="region" \
                aria-label="Statistics of tensors"><table><thead><tr>\(head.joined(""))</tr></thead><tbody>
                \(rows.joined())
                </tbody></table></div>
                """)
    }

    private var leftOutSection: Section? {
        let reasons = attention.leftOut.map(\.text) + faults
        guard !reasons.isEmpty else { return nil }
        let items = reasons.prefix(Self.mostReasons).map { "<li>\(String($0.prefix(1000)))</li>" as Markup }
        return Section(
            identifier: "left-out", title: "Left out",
            body: "\(Self.remark(items.count, of: reasons.count, "reasons"))<ul>\n\(items.joined())\n</ul>")
    }
}
