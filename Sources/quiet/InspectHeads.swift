// SPDX-License-Identifier: Apache-2.0
// InspectHeads.swift - the heads of quiet inspect: how each spreads its attention.

import QuietAttention
import Safetensors

/// The diagnostics of every query head, and what they were computed with.
struct MeasuredHeads {
    let problem: FileProblem
    let epsilon: Double
    let leadingKeys: Int
    let attention: Attention
    /// What was measured, and how, in lines.
    let lines: String
    let heads: [HeadDiagnostics]
    /// Of all heads, or none.
    let maps: [HeadMap]

    /// - Parameter isDrawn: whether there are to be maps.
    init(
        _ problem: FileProblem, _ inputs: AttendInputs, _ file: SafetensorsFile, epsilon: Double, leadingKeys: Int,
        isDrawn: Bool
    ) throws {
        (self.problem, self.epsilon, self.leadingKeys) = (problem, epsilon, leadingKeys)
        attention = try problem.attention(file, inputs)
        lines = """
            tensors     \(problem.tensors.all.map(printable).joined(separator: ", "))
            \(problem.lines(attention, inputs))
            epsilon     \(decimal(epsilon, digits: 3, format: "g")), first keys \(leadingKeys)
            """
        maps =
            isDrawn
            ? try attention.headMaps(
                queries: inputs.queries, keys: inputs.keys, rowBands: HeadFigure.bands, keyBands: HeadFigure.bands,
                epsilon: epsilon, leadingKeys: leadingKeys) : []
        heads =
            isDrawn
            ? maps.map(\.diagnostics)
            : try attention.headDiagnostics(
                queries: inputs.queries, keys: inputs.keys, epsilon: epsilon, leadingKeys: leadingKeys)
    }

    /// What the three tensors' names share, or that of the queries.
    var title: String {
        let name = names[0]
        return name.hasSuffix(".q") ? String(name.dropLast(2)) : name
    }

    private static let columns: [(title: String, name: String, value: KeyPath<HeadDiagnostics, Double> & Sendable)] = [
        ("sink share", "sink_share", \.sinkShare), ("first keys", "leading_weight", \.leadingWeight),
        ("largest weight", "largest_weight", \.largestWeight),
        ("entropy", "entropy", \.entropy), ("of keys", "key_entropy", \.keyEntropy),
        ("l1/l2", "l1_over_l2", \.l1OverL2), ("mean/max", "mean_over_maximum", \.meanOverMaximum),
        ("up to epsilon", "share_up_to_epsilon", \.shareBelowEpsilon),
        ("largest score", "largest_score", \.largestScore), ("top/median", "score_top_to_median", \.scoreTopToMedian),
    ]

    private var names: [String] { problem.tensors.all }

    var text: String {
        let rows = heads.enumerated().map { head, diagnostics in
            ["\(head)"] + Self.columns.map { decimal(diagnostics[keyPath: $0.value], digits: 4, format: "g") } + [
                diagnostics.heaviestKey.map(String.init) ?? "none",
                decimal(diagnostics.heaviestKeyShare, digits: 4, format: "g"),
            ]
        }
        let titles = ["head"] + Self.columns.map(\.title) + ["heaviest key", "of rows"]
        let table = TextTable(titles, rows, leftColumns: 0)
        return lines + "\n\n" + table.text
    }

    func report() -> JSONValue {
        var members: [(name: String, value: JSONValue)] = [
            ("query_tensor", .string(names[0])), ("key_tensor", .string(names[1])),
            ("value_tensor", .string(names[2])),
        ]
        members += problem.members(attention)
        members += [
            ("kernels", .string(attention.kernels.name)),
            ("threads", .integer(attention.threads)),
            ("epsilon", .number(epsilon)),
            ("leading_keys", .integer(leadingKeys)),
            ("heads", .array(heads.map { report($0) })),
        ]
        return .object(members)
    }

    private func report(_ head: HeadDiagnostics) -> JSONValue {
        var members: [(name: String, value: JSONValue)] = [("rows", .integer(head.rows))]
        for column in Self.columns { members.append((column.name, .number(head[keyPath: column.value]))) }
        members.append(("heaviest_key", head.heaviestKey.map(JSONValue.integer) ?? .null))
        members.append(("heaviest_key_share", .number(head.heaviestKeyShare)))
        members.append(("smallest_sink_share", .number(head.smallestSinkShare)))
        members.append(("largest_sink_share", .number(head.largestSinkShare)))
        return .object(members)
    }
}
