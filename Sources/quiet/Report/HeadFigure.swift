// SPDX-License-Identifier: Apache-2.0
// HeadFigure.swift - one head on the page: where its rows put their weight, by key and by distance.

import QuietAttention

/// The pictures of a head.
struct HeadFigure {
    let map: HeadMap
    let head: Int
    let leadingKeys: Int
    /// The figure's place on the page.
    let identifier: String

    /// Bands of rows and of keys.
    static let bands = 48

    /// Colours are by half decades: from 1/1000 on, and the last from 1 downwards.
    private static let thresholds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7]

    private static func level(_ weight: Double) -> Int {
        weight.isNaN ? 0 : thresholds.lastIndex { weight >= $0 }.map { $0 + 1 } ?? 0
    }

    static var legend: Markup {
        let width = 52
        let cells = thresholds.enumerated().map { index, threshold in
            """
            <rect class="f\(index + 1)" x="\(index * width)" y="0" width="\(width)" height="14"/>\
            <text x="\(index * width)" y="27">\(decimal(threshold * 100, digits: 3, format: "g")) %</text>
            """ as Markup
        }
        return """
            <svg viewBox="0 0 \(width * thresholds.count) 32" width="\(width * thresholds.count)" role="img" \
            aria-label="Colours of the weights, by the least weight that has them">\(cells.joined(""))</svg>
            """
    }

    var markup: Markup {
        let d = map.diagnostics
        let heaviest =
            d.heaviestKey.map { "key \($0) leads in \(percent(d.heaviestKeyShare)) of rows" } ?? "no key leads"
        let leading = leadingKeys == 1 ? "first key" : "first \(leadingKeys) keys"
        let undefined = map.undefinedRows > 0 ? "; rows left out for NaN: \(map.undefinedRows)" : ""
        return """
            <figure class="head" id="\(identifier)"><figcaption><b>Head \(head)</b> <span>\(leading) \
            \(percent(d.leadingWeight)), sink \(percent(d.sinkShare)), largest \(percent(d.largestWeight)), entropy \
            \(short(d.entropy)); \(heaviest)\(undefined)</span></figcaption>
            \(heatMap)
            \(distances)</figure>
            """
    }

    private var description: String {
        let d = map.diagnostics
        return "Head \(head): weights of rows, downwards, on keys, to the right. The first \(leadingKeys) get "
            + "\(percent(d.leadingWeight)), the sink, in the column at the right, \(percent(d.sinkShare))."
    }

    private var heatMap: Markup {
        let (rows, keys) = (map.rowBands, map.keyBands)
        let cells = (0..<rows).map { row in map.weights[row * keys..<(row + 1) * keys].map(Self.level) }
        let sinks = map.sinkShares.map { [Self.level($0)] }
        let (width, height, sinkWidth) = (264.0, 200.0, 16.0)
        let (cellWidth, cellHeight) = (width / Double(keys), height / Double(rows))
        return """
            <svg viewBox="0 0 288 216" width="288" role="img" aria-label="\(description)" shape-rendering="crispEdges">\
            <rect class="ground" x="0" y="0" width="\(place(width))" height="\(place(height))"/>\
            <rect class="ground" x="272" y="0" width="\(place(sinkWidth))" height="\(place(height))"/>\
            <g transform="scale(\(decimal(cellWidth, digits: 4)) \(decimal(cellHeight, digits: 4))) translate(0 .5)">\
            \(CellPicture(levels: cells).paths)</g>\
            <g transform="translate(272) scale(\(place(sinkWidth)) \(decimal(cellHeight, digits: 4))) translate(0 .5)">\
            \(CellPicture(levels: sinks).paths)</g>\
            <text x="0" y="212">first key</text><text x="256" y="212" text-anchor="end">last key</text>\
            <text x="288" y="212" text-anchor="end">sink</text></svg>
            """
    }

    private var distances: Markup {
        let bands = map.weightByDistance
        func label(_ band: HeadMap.DistanceBand?) -> String {
            guard let band else { return "" }
            let (low, high) = (band.distances.lowerBound, band.distances.upperBound)
            if low == 0 { return "itself" }
            let (least, most) = (min(abs(low), abs(high)), max(abs(low), abs(high)))
            return (least == most ? "\(least)" : "\(least) to \(most)") + (low < 0 ? " after" : " back")
        }
        let tallest = bands.max { $0.weight < $1.weight }
        return BarPicture(
            values: bands.map(\.weight),
            labels: (
                label(bands.first), bands.count > 2 ? "distance" : "",
                bands.count > 1 ? label(bands.last) : ""
            ),
            top: tallest.map { "\(percent($0.weight)) at \(label($0))" } ?? "no weight",
            description: "Weight by distance from row to key, in ranges that double. "
                + bands.map { "\(label($0)): \(percent($0.weight))" }.joined(separator: ", "),
            height: 84
        ).markup
    }
}
