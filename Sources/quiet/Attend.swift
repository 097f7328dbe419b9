// SPDX-License-Identifier: Apache-2.0
// Attend.swift - quiet attend: attention over the tensors of a file.

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

struct Attend: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Compute attention over the queries, keys and values of a safetensors file.",
        discussion: """
            Reads float32, float16 or bfloat16 tensors [batch, heads, sequence, dimension] by name. Keys and values may have \
            fewer heads than the queries (grouped-query attention), and values another dimension than keys. Writes `out` \
            [batch, query heads, queries, value dimension] in float32.

            Prints shapes, kernel set, time, speed, and for each head the mean share of weight that went to the sink.
            """)

    @Argument(help: ArgumentHelp("The safetensors file with queries, keys and values.", valueName: "in.safetensors"))
    var input: String

    @Option(help: ArgumentHelp("The safetensors file to write.", valueName: "out.safetensors"))
    var output: String

    @OptionGroup var problem: FileProblem

    @Flag(help: "Also write `lse` [batch, query heads, queries]: the log-sum-exp of each row, sink included.")
    var lse = false

    @Flag(help: "Print one JSON object.")
    var json = false

    func validate() throws {
        try problem.options.scores.check(sink: problem.sink)
        let normaliser = problem.options.scores.normaliser
        guard !lse || normaliser.library.hasSink else {
            throw ValidationError("--lse: the normaliser \(normaliser) has no log-sum-exp")
        }
    }

    func run() throws {
        let file = try SafetensorsFile(path: input)
        guard !namesSameFile(input, output) else {
            throw Failure("the output \(output) is the input: it would replace the queries, keys and values")
        }
        let inputs = try problem.inputs(file)
        let attention = try problem.attention(file, inputs.shape)
        let computed = try AttendResult(attention, inputs)
        try write(computed.result, inputs.shape)

        let report = AttendReport(command: self, attention: attention, inputs: inputs, computed: computed)
        try emit(json ? report.json : report.lines)
    }

    private func write(_ result: AttentionResult, _ shape: AttentionShape) throws {
        let rows = [shape.batch, shape.queryHeads, shape.queries]
        var tensors = [NamedTensor(name: "out", shape: rows + [shape.valueDimension], values: result.output)]
        if lse { tensors.append(NamedTensor(name: "lse", shape: rows, values: result.logSumExp)) }
        try SafetensorsFile.write(tensors, to: output)
    }
}

/// Returns whether two paths lead to one existing file.
private func namesSameFile(_ first: String, _ second: String) -> Bool {
    var (one, other) = (stat(), stat())
    guard stat(first, &one) == 0, stat(second, &other) == 0 else { return false }
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino
}

/// Queries, keys and values that fit together.
struct AttendInputs {
    let shape: AttentionShape
    let queries, keys, values: [Float]
    /// `[1, 12, 192, 32] F32`, for each of the three.
    let descriptions: [String]

    init(_ file: SafetensorsFile, queries: String, keys: String, values: String) throws {
        let (q, k, v) = (try file.tensor(named: queries), try file.tensor(named: keys), try file.tensor(named: values))
        for tensor in [q, k, v] where tensor.shape.count != 4 {
            throw Failure(
                "tensor \(tensor.name.debugDescription): expected the shape [batch, heads, sequence, dimension], got \(tensor.shape)"
            )
        }
        func check(_ what: String, _ tensor: TensorDescription, _ axis: Int, equals other: TensorDescription) throws {
            guard tensor.shape[axis] == other.shape[axis] else {
                throw Failure(
                    "tensor \(tensor.name.debugDescription): expected \(what) \(other.shape[axis]), as \(other.name.debugDescription) has, "
                        + "got \(tensor.shape[axis]) in the shape \(tensor.shape)")
            }
        }
        try check("batch", k, 0, equals: q)
        try check("batch", v, 0, equals: q)
        try check("heads", v, 1, equals: k)
        try check("sequence", v, 2, equals: k)
        try check("dimension", k, 3, equals: q)
        shape = try AttentionShape(
            batch: q.shape[0], queryHeads: q.shape[1], keyValueHeads: k.shape[1], queries: q.shape[2], keys: k.shape[2],
            headDimension: q.shape[3], valueDimension: v.shape[3])
        self.queries = try file.floats(named: queries)
        self.keys = try file.floats(named: keys)
        self.values = try file.floats(named: values)
        descriptions = [q, k, v].map { "\($0.shape) \($0.elementType.rawValue)" }
    }
}

/// What was computed, and in which time.
struct AttendResult {
    let result: AttentionResult
    /// Of the fastest run.
    let seconds: Double
    let runs: Int

    /// Runs once, or while that takes no time worth mentioning five times: a first run also waits for memory and threads.
    init(_ attention: Attention, _ inputs: AttendInputs) throws {
        func run() throws -> (result: AttentionResult, seconds: Double) {
            try timed { try attention.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values) }
        }
        let first = try run()
        var (fastest, spent, runs) = (first.seconds, first.seconds, 1)
        while spent < 0.05 && runs < 5 {
            let time = try run().seconds
            fastest = min(fastest, time)
            spent += time
            runs += 1
        }
        (result, seconds, self.runs) = (first.result, fastest, runs)
    }
}

/// What attend prints.
struct AttendReport {
    let command: Attend
    let attention: Attention
    let inputs: AttendInputs
    let computed: AttendResult

    private var shape: AttentionShape { attention.shape }

    private var gflops: Double {
        FloatOperations(attention, mask: command.problem.options.mask, keyLengths: nil).count / computed.seconds / 1e9
    }

    /// The mean over batch and rows, one per query head; NaN where there are no rows, none without a sink.
    private var meanSinkShares: [Double] {
        (0..<(attention.normaliser.hasSink ? shape.queryHeads : 0)).map { head in
            var sum = 0.0
            for item in 0..<shape.batch {
                let start = (item * shape.queryHeads + head) * shape.queries
                sum += computed.result.sinkShare[start..<start + shape.queries].reduce(0) { $0 + Double($1) }
            }
            return sum / Double(shape.batch * shape.queries)
        }
    }

    var json: String {
        var members = command.problem.members(attention)
        members += [
            ("kernels", .string(attention.kernels.name)),
            ("threads", .integer(attention.threads)),
            ("runs", .integer(computed.runs)),
            ("min_ms", .number(computed.seconds * 1e3)),
            ("gflops", .number(gflops)),
            ("mean_sink_share", .array(meanSinkShares.map(JSONValue.number))),
            ("output", .string(command.output)),
        ]
        return JSONValue.object(members).text()
    }

    var lines: String {
        let time = decimal(computed.seconds * 1e3, digits: 4, format: "g")
        let shares =
            meanSinkShares.map { decimal($0, digits: 4) }.joined(separator: " ")
            + (attention.normaliser.hasSink ? " (mean of each head)" : "none")
        return """
            \(command.problem.lines(attention, inputs))
            kernels     \(attention.kernels.name), at most \(attention.threads) thread\(attention.threads == 1 ? "" : "s")
            time        \(time) ms, fastest of \(computed.runs); \(decimal(gflops, digits: 3, format: "g")) GFLOP/s
            sink share  \(shares)
            written     out\(command.lse ? " and lse" : "") to \(command.output)
            """
    }
}
