// SPDX-License-Identifier: Apache-2.0
// Overview.swift - a whole model at a glance: layers by heads, and kinds of tensors by layers.

import QuietAttention

/// Layers by heads, one picture for each thing that a head does.
struct HeadOverview {
    let layers: [MeasuredHeads]

    /// Layers that are drawn.
    private static let most = 256

    static func identifier(layer: Int, head: Int?) -> String { "a\(layer)" + (head.map { "-\($0)" } ?? "") }

    var markup: Markup {
        let leading = layers[0].leadingKeys == 1 ? "first key" : "first \(layers[0].leadingKeys) keys"
        let entropy = layers.flatMap(\.heads).map(\.keyEntropy).filter(\.isFinite).max() ?? 0
        let pictures = [
            picture("Weight on the \(leading), %", unit: "%") { $0.leadingWeight },
            picture("Share of the sink, %", unit: "%") { $0.sinkShare },
            picture("Largest weight of a row, %", unit: "%") { $0.largestWeight },
            picture("Entropy of the keys, nats", unit: "nats", most: entropy) { $0.keyEntropy },
        ]
        return """
            <p>Layers downwards, heads to the right; means over rows. Each cell leads to its head.</p>
            <div class="figures">
            \(pictures.joined())
            </div>
            """
    }

    /// - Parameter most: what has the last colour; nil: shares, in per cent.
    private func picture(
        _ title: String, unit: String, most: Double? = nil, _ value: (HeadDiagnostics) -> Double
    ) -> Markup {
        let cells = layers.prefix(Self.most).enumerated().map { layer, measured in
            measured.heads.enumerated().map { head, diagnostics in
                let amount = value(diagnostics)
                let text = most == nil ? decimal(amount * 100, digits: 0) : decimal(amount, digits: 1)
                return MatrixPicture.Cell(
                    share: amount / (most ?? 1), text: amount.isNaN ? "" : text,
                    description: "\(measured.title), head \(head): \(text) \(unit)",
                    target: measured.maps.isEmpty ? nil : Self.identifier(layer: layer, head: head))
            }
        }
        let heads = cells.map(\.count).max() ?? 0
        let picture = MatrixPicture(
            rowTitles: layers.prefix(Self.most).map { shortened($0.title) }, columnTitles: (0..<heads).map(String.init),
            cells: cells, description: title)
        return "<figure><figcaption><b>\(title)</b></figcaption>\n\(picture.markup)</figure>"
    }
}

/// Kinds of tensors by layers: names that differ in their first number alone are one kind.
struct TensorOverview {
    private struct Kind {
        let title: String
        var tensors: [Int: (index: Int, statistics: TensorStatistics)] = [:]
    }

    private var kinds: [Kind] = []
    private let layers: [Int]
    private let drawn: Set<Int>

    private static let (mostKinds, mostLayers) = (64, 256)

    init(_ tensors: [MeasuredTensor]) {
        var places: [String: Int] = [:]
        var layers: Set<Int> = []
        var kinds: [Kind] = []
        for (index, tensor) in tensors.enumerated() {
            guard let statistics = tensor.statistics, let (title, layer) = Self.split(tensor.name) else { continue }
            if places[title] == nil, kinds.count == Self.mostKinds { continue }
            let place = places[title] ?? kinds.count
            if place == kinds.count { kinds.append(Kind(title: title)) }
            places[title] = place
            kinds[place].tensors[layer] = (index, statistics)
            layers.insert(layer)
        }
        self.layers = Array(layers.sorted().prefix(Self.mostLayers))
        self.kinds = kinds.filter { $0.tensors.count > 1 }
        drawn = Set(tensors.indices.filter { tensors[$0].picture != nil })
    }

    /// A name with a star in the place of its first number, and that number.
    private static func split(_ name: String) -> (title: String, layer: Int)? {
        guard let start = name.firstIndex(where: { ("0"..."9").contains($0) }) else { return nil }
        let digits = name[start...].prefix { ("0"..."9").contains($0) }
        guard let layer = Int(digits) else { return nil }
        return (name[..<start] + "*" + name[digits.endIndex...], layer)
    }

    var markup: Markup {
        guard !kinds.isEmpty else { return "" }
        return """
            <p>Kinds of tensors downwards, layers to the right; colours grow with the logarithm. Each cell leads to its tensor.</p>
            <div class="figures">
            \(picture("Largest magnitude") { $0.infinityNorm })
            \(picture("Excess kurtosis") { $0.excessKurtosis })
            </div>

            """
    }

    private func picture(_ title: String, _ value: (TensorStatistics) -> Double) -> Markup {
        let amounts = kinds.flatMap { $0.tensors.values.map { value($0.statistics) } }.filter { $0.isFinite && $0 > 0 }
        let (least, most) = (amounts.min() ?? 1, amounts.max() ?? 1)
        func share(_ amount: Double) -> Double {
            guard amount.isFinite, amount > 0 else { return .nan }
            return least == most ? 1 : 0.001 + 0.999 * logarithm(amount / least) / logarithm(most / least)
        }
        let cells = kinds.map { kind in
            layers.map { layer in
                guard let (index, statistics) = kind.tensors[layer] else {
                    return MatrixPicture.Cell(share: .nan, text: "", description: "none", target: nil)
                }
                let amount = value(statistics)
                return MatrixPicture.Cell(
                    share: share(amount), text: compact(amount),
                    description: "\(kind.title), \(layer): \(short(amount))",
                    target: drawn.contains(index) ? "t\(index)" : nil)
            }
        }
        let picture = MatrixPicture(
            rowTitles: kinds.map { shortened($0.title) }, columnTitles: layers.map(String.init), cells: cells,
            description: title)
        return "<figure class=\"wide\"><figcaption><b>\(title)</b></figcaption>\n\(picture.markup)</figure>"
    }

    /// In four characters and a sign at most.
    private func compact(_ amount: Double) -> String {
        guard amount.isFinite else { return "" }
        let (magnitude, sign) = (abs(amount), amount < 0 ? "-" : "")
        switch magnitude {
        case ..<10: return sign + decimal(magnitude, digits: magnitude < 1 ? 2 : 1)
        case ..<1000: return sign + decimal(magnitude, digits: 0)
        case ..<999_500: return sign + decimal(magnitude / 1000, digits: magnitude < 9950 ? 1 : 0) + "k"
        case ..<1e9: return sign + decimal(magnitude / 1e6, digits: magnitude < 9.95e6 ? 1 : 0) + "M"
        default: return sign + decimal(magnitude, digits: 0, format: "e")
        }
    }
}

/// A title of at most 40 characters, by its end.
private func shortened(_ title: String) -> String { title.count <= 40 ? title : "..." + title.suffix(37) }

/// Nearly log2: heights and colours need no more.
func logarithm(_ value: Double) -> Double { Double(value.exponent) + (value.significand - 1) }
