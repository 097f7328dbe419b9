// SPDX-License-Identifier: Apache-2.0
// Inspect.swift - quiet inspect: what outliers and attention look like in the tensors of a file.

import ArgumentParser
import QuietAttention
import Safetensors

struct Inspect: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure the tensors of a safetensors file, and how its heads spread their attention.",
        discussion: """
            For every float32, float16 or bfloat16 tensor: mean and standard deviation; the largest magnitude; kurtosis, raw \
            over the sample's deviation (3 for a normal distribution) and in excess of the population's (0); the share of \
            elements beyond 6 standard deviations; and what int8 quantisation leaves of it, in dB.

            Where the file holds queries [batch, H, L, D], keys [batch, G, S, D] and values [batch, G, S, E], called q, k and \
            v or <prefix>.q and so on, or as the options say, for every query head, as means over its rows: the sink's \
            share; the largest weight; the entropy with the sink and of the keys alone, in nats; \
            l1/l2 and mean/max of the weights, 1 where all are equal; the share of weights up to epsilon; the largest \
            score of all rows; and the ratio of the largest to the median score.
            """)

    @Argument(help: ArgumentHelp("The safetensors file.", valueName: "file.safetensors"))
    var input: String

    @Option(
        help: ArgumentHelp(
            "Measure this tensor alone; may be repeated. Default: all, and the heads.", valueName: "name"))
    var tensor: [String] = []

    @Option(
        // Unconditional: so that a negative number is refused as a number.
        parsing: .unconditional, help: "Weights up to this count as next to nothing.")
    var epsilon = 1e-3

    @OptionGroup var problem: FileProblem

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        guard epsilon >= 0, epsilon.isFinite else {
            throw ValidationError("--epsilon: expected a finite number of 0 or more, got \(epsilon)")
        }
        try problem.check()
        try problem.norms.check()
        let normaliser = problem.scores.normaliser
        guard normaliser.library == .softmax else {
            throw ValidationError("--normaliser: only the weights of softmax are diagnosed, got \(normaliser)")
        }
    }

    func run() throws {
        let file = try SafetensorsFile(path: input)
        let tensors = tensor.isEmpty ? file.tensors : try tensor.map { try file.tensor(named: $0) }
        let measured = try tensors.map { try MeasuredTensor($0, file, isAskedFor: !tensor.isEmpty) }
        let heads = try problems(file).map { try MeasuredHeads($0, file, epsilon: epsilon) }
        if json {
            let members: [(name: String, value: JSONValue)] = [
                ("file", .string(input)), ("tensors", .array(measured.map { $0.report() })),
                ("attention", .array(heads.map { $0.report() })),
            ]
            try emit(JSONValue.object(members).text())
        } else {
            let table = TextTable(MeasuredTensor.titles, measured.map { $0.cells }, leftColumns: 3)
            try emit(([table.text] + heads.map(\.text)).joined(separator: "\n\n"))
        }
    }

    /// The queries, keys and values that were asked for; by default all that are called q, k and v behind a common
    /// prefix, and may be ones: matrices of those names are weights.
    private func problems(_ file: SafetensorsFile) -> [FileProblem] {
        guard tensor.isEmpty else { return [] }
        guard [problem.tensors.queries, problem.tensors.keys, problem.tensors.values] == ["q", "k", "v"] else {
            return [problem]
        }
        return file.tensors.compactMap { tensor in
            guard tensor.name == "q" || tensor.name.hasSuffix(".q") else { return nil }
            var candidate = problem
            let prefix = tensor.name.dropLast()
            let names = [tensor.name, prefix + "k", prefix + "v"]
            (candidate.tensors.queries, candidate.tensors.keys, candidate.tensors.values) = (
                names[0], names[1], names[2]
            )
            let fits = names.allSatisfy { name in file.tensors.contains { $0.name == name && $0.shape.count == 4 } }
            return fits ? candidate : nil
        }
    }
}

/// One tensor and its statistics; nil where its elements are no floats.
private struct MeasuredTensor {
    let tensor: TensorDescription
    let statistics: TensorStatistics?

    init(_ tensor: TensorDescription, _ file: SafetensorsFile, isAskedFor: Bool) throws {
        self.tensor = tensor
        let isReadable = isAskedFor || ElementType.readable.contains(tensor.elementType)
        statistics = isReadable ? TensorStatistics(try file.floats(named: tensor.name)) : nil
    }

    static let titles = [
        "tensor", "shape", "type", "mean", "deviation", "largest", "kurtosis", "excess", "beyond 6", "int8 dB",
    ]

    var cells: [String] {
        let names = [printable(tensor.name), "\(tensor.shape)", tensor.elementType.rawValue]
        guard let statistics else { return names }
        return names
            + [
                statistics.mean, statistics.standardDeviation, statistics.infinityNorm, statistics.rawKurtosis,
                statistics.excessKurtosis, statistics.outlierShare, statistics.int8SignalToNoise,
            ].map { decimal($0, digits: 4, format: "g") }
    }

    func report() -> JSONValue {
        var members: [(name: String, value: JSONValue)] = [
            ("name", .string(tensor.name)), ("shape", .array(tensor.shape.map { .integer($0) })),
            ("dtype", .string(tensor.elementType.rawValue)),
        ]
        if let statistics {
            members += [
                ("count", .integer(statistics.count)), ("mean", .number(statistics.mean)),
                ("standard_deviation", .number(statistics.standardDeviation)),
                ("infinity_norm", .number(statistics.infinityNorm)),
                ("raw_kurtosis", .number(statistics.rawKurtosis)),
                ("excess_kurtosis", .number(statistics.excessKurtosis)),
                ("share_beyond_6_deviations", .number(statistics.outlierShare)),
                ("l1_over_l2", .number(statistics.l1OverL2)),
                ("mean_over_maximum", .number(statistics.meanOverMaximum)),
                ("int8_step", .number(statistics.int8Step)),
                ("int8_signal_to_noise_db", .number(statistics.int8SignalToNoise)),
            ]
        }
        return .object(members)
    }
}

/// The diagnostics of every query head, and what they were computed with.
private struct MeasuredHeads {
    let problem: FileProblem
    let epsilon: Double
    let attention: Attention
    let inputs: AttendInputs
    let heads: [HeadDiagnostics]

    init(_ problem: FileProblem, _ file: SafetensorsFile, epsilon: Double) throws {
        (self.problem, self.epsilon) = (problem, epsilon)
        inputs = try problem.inputs(file)
        attention = try problem.attention(file, inputs)
        heads = try attention.headDiagnostics(queries: inputs.queries, keys: inputs.keys, epsilon: epsilon)
    }

    private static let columns: [(title: String, name: String, value: KeyPath<HeadDiagnostics, Double> & Sendable)] = [
        ("sink share", "sink_share", \.sinkShare), ("largest weight", "largest_weight", \.largestWeight),
        ("entropy", "entropy", \.entropy), ("of keys", "key_entropy", \.keyEntropy),
        ("l1/l2", "l1_over_l2", \.l1OverL2), ("mean/max", "mean_over_maximum", \.meanOverMaximum),
        ("up to epsilon", "share_up_to_epsilon", \.shareBelowEpsilon),
        ("largest score", "largest_score", \.largestScore), ("top/median", "score_top_to_median", \.scoreTopToMedian),
    ]

    private var names: [String] { [problem.tensors.queries, problem.tensors.keys, problem.tensors.values] }

    var text: String {
        let rows = heads.enumerated().map { head, diagnostics in
            ["\(head)"] + Self.columns.map { decimal(diagnostics[keyPath: $0.value], digits: 4, format: "g") }
        }
        let table = TextTable(["head"] + Self.columns.map(\.title), rows, leftColumns: 0)
        return """
            tensors     \(names.map(printable).joined(separator: ", "))
            \(problem.lines(attention, inputs))
            epsilon     \(decimal(epsilon, digits: 3, format: "g"))

            \(table.text)
            """
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
            ("heads", .array(heads.map { report($0) })),
        ]
        return .object(members)
    }

    private func report(_ head: HeadDiagnostics) -> JSONValue {
        var members: [(name: String, value: JSONValue)] = [("rows", .integer(head.rows))]
        for column in Self.columns { members.append((column.name, .number(head[keyPath: column.value]))) }
        members.append(("smallest_sink_share", .number(head.smallestSinkShare)))
        members.append(("largest_sink_share", .number(head.largestSinkShare)))
        return .object(members)
    }
}

/// Rows of text in columns as wide as their longest cell.
private struct TextTable {
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
