// SPDX-License-Identifier: Apache-2.0
// Inspect.swift - quiet inspect: what outliers and attention look like in the tensors of a file.

import ArgumentParser
import QuietAttention
import Safetensors

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

struct Inspect: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure the tensors of a safetensors file, and how its heads spread their attention.",
        discussion: """
            For every float32, float16 or bfloat16 tensor: mean and standard deviation; the largest magnitude; kurtosis \
            c4 / c2^2 by the central moments of all elements, raw (3 for a normal distribution) and in excess of that (0); the share of \
            elements beyond 6 standard deviations; and what int8 quantisation leaves of it, in dB.

            Where the file holds queries [batch, H, L, D], keys [batch, G, S, D] and values [batch, G, S, E], called q, k and \
            v or <prefix>.q and so on, or as the options say, for every query head, as means over its rows: the sink's \
            share; the weight on the first key; the largest weight; the entropy with the sink and of the keys alone, in nats; \
            l1/l2 and mean/max of the weights, 1 where all are equal; the share of weights up to epsilon; the largest \
            score of all rows; the ratio of the largest to the median score; and the key that most rows give their largest \
            weight to, counted from 0, with the share of those rows.

            With --report the same as one page of pictures, which opens in a browser from disk: maps of layers by heads; \
            of each head, its weights by key and by distance; of each tensor, a histogram and its channels with outliers.

            Where tensors of these names do not fit together their heads are left out, and the report says why. Tensors \
            that cannot be read are left out, too; the status is then 1, after the others have been reported.
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

    @Option(
        parsing: .unconditional,
        help: "How many keys, from the first on, the weight on the first keys is summed over.")
    var leadingKeys = 1

    @Flag(
        inversion: .prefixedNo,
        help: "Tell on standard error how far it is, and the time left. Default: where that is a terminal.")
    var progress: Bool?

    @OptionGroup var problem: FileProblem

    @Option(
        help: ArgumentHelp(
            "Also write a page of pictures, complete in itself. So many are drawn at most: \(ReportPage.mostHeads) heads, \(ReportPage.mostTensors) tensors.",
            valueName: "page.html"))
    var report: String?

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        guard epsilon >= 0, epsilon.isFinite else {
            throw ValidationError("--epsilon: expected a finite number of 0 or more, got \(epsilon)")
        }
        guard leadingKeys >= 1 else {
            throw ValidationError("--leading-keys: expected 1 or more, got \(leadingKeys)")
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
        if let report, namesSameFile(input, report) {
            throw Failure("the report \(printable(report)) is the input: it would replace the tensors")
        }
        let tensors = tensor.isEmpty ? file.tensors : try tensor.map { try file.tensor(named: $0) }
        var faults: [String] = []
        let measured = try measure(tensors, of: file, &faults)
        let attention = try InspectedAttention(self, file)
        // As of attend: a run that fails leaves no page behind, but for what cannot be measured of a file.
        let page = try report.map { path in
            let page = ReportPage(file: input, tensors: measured, attention: attention, faults: faults)
            return try PreparedFile(text: page.html, for: path)
        }
        try emit(json ? members(measured, attention, faults) : text(measured, attention))
        try page?.commit()
        if let report, !json { try emit("written     \(printable(report))") }
        // What could be measured is said above, and so it is worth having; but not all could.
        guard let fault = faults.first else { return }
        throw Failure(faults.count == 1 ? fault : "\(fault); and \(faults.count - 1) more tensors cannot be measured")
    }

    /// A tensor that was asked for must be one of floats. Of the others, what cannot be read is a fault of its own.
    private func measure(
        _ tensors: [TensorDescription], of file: SafetensorsFile, _ faults: inout [String]
    ) throws -> [MeasuredTensor] {
        var progress = Progress(
            "tensors", count: tensors.count, .bytes, amount: tensors.reduce(0) { $0 + Double($1.dataRange.count) },
            isShown: isProgressShown)
        defer { progress.finish() }
        var left = report == nil ? 0 : ReportPage.mostTensors
        return try tensors.map { tensor in
            defer { progress.count(Double(tensor.dataRange.count)) }
            var values: [Float]?
            do {
                if !self.tensor.isEmpty || ElementType.readable.contains(tensor.elementType) {
                    values = try file.floats(named: tensor.name)
                }
            } catch {
                guard self.tensor.isEmpty else { throw error }
                faults.append("\(error)")
            }
            if values != nil { left -= 1 }
            return MeasuredTensor(tensor, values: values, isDrawn: left >= 0)
        }
    }

    var isProgressShown: Bool { progress ?? (isatty(STDERR_FILENO) == 1) }

    private func members(_ measured: [MeasuredTensor], _ attention: InspectedAttention, _ faults: [String]) -> String {
        let members: [(name: String, value: JSONValue)] = [
            ("file", .string(input)), ("tensors", .array(measured.map { $0.report() })),
            ("attention", .array(attention.heads.map { $0.report() })),
            ("left_out", .array(attention.leftOut.map { $0.report() })),
            ("faults", .array(faults.map(JSONValue.string))),
        ]
        return JSONValue.object(members).text()
    }

    private func text(_ measured: [MeasuredTensor], _ attention: InspectedAttention) -> String {
        let table = TextTable(MeasuredTensor.titles, measured.map { $0.cells }, leftColumns: 3)
        let leftOut = attention.leftOut.map(\.text).joined(separator: "\n")
        return ([table.text] + attention.heads.map(\.text) + (leftOut.isEmpty ? [] : [leftOut])).joined(
            separator: "\n\n")
    }
}
