// SPDX-License-Identifier: Apache-2.0
// AttendReport.swift - what attend computed, in which time, and how it says so.

import QuietAttention
import Safetensors

/// What was computed, and in which time.
struct AttendResult {
    var result: AttentionResult
    /// Of the fastest run.
    let seconds: Double
    let runs: Int
    /// What the backward pass needs, if it was wanted.
    let record: ForwardRecord?

    /// Runs once, or while that takes no time worth mentioning five times: a first run also waits for memory and threads.
    init(_ method: AttendMethod, _ inputs: AttendInputs, records: Bool) throws {
        var record = records ? ForwardRecord() : nil
        func run() throws -> (result: AttentionResult, seconds: Double) {
            try timed { try method.run(inputs, recording: &record) }
        }
        let first = try run()
        var (fastest, spent, runs) = (first.seconds, first.seconds, 1)
        while spent < 0.05 && runs < 5 {
            let time = try run().seconds
            fastest = min(fastest, time)
            spent += time
            runs += 1
        }
        (result, seconds, self.runs, self.record) = (first.result, fastest, runs, record)
    }
}

/// What attend prints.
struct AttendReport {
    let command: Attend
    let method: AttendMethod
    let inputs: AttendInputs
    let gate: GateTensor?
    let computed: AttendResult
    /// The tensors of the output file.
    let written: [String]

    private var gflops: Double { method.operations(mask: command.problem.scores.mask) / computed.seconds / 1e9 }

    /// The mean over batch and rows, one per query head; NaN where there are no rows, none without a sink.
    private var meanSinkShares: [Double] {
        let shape = inputs.shape
        return (0..<(method.hasSink ? shape.queryHeads : 0)).map { head in
            if shape.rowCount == 0 { return .nan }
            var sum = 0.0
            for item in 0..<shape.batch {
                let start = (item * shape.queryHeads + head) * shape.queries
                sum += computed.result.sinkShare[start..<start + shape.queries].reduce(0) { $0 + Double($1) }
            }
            return sum / Double(shape.batch * shape.queries)
        }
    }

    // MARK: - One JSON object

    private var problem: [(name: String, value: JSONValue)] {
        switch method {
        case .scores(let attention): command.problem.members(attention)
        case .recurrent(let kind, let attention):
            attention.shape.members + [
                ("recurrent", .string(kind.rawValue)), ("mask", .string("\(command.problem.scores.mask)")),
                ("qk_norm", .string(command.problem.norms.qkNorm.rawValue)),
            ] + command.problem.tensorMembers
        }
    }

    var json: String {
        let members: [(name: String, value: JSONValue)] = [
            ("value_norm", .string(command.outputs.valueNorm.rawValue)),
            ("output_norm", .string(command.outputs.outputNorm.rawValue)),
            ("gate", .string(gate?.granularity ?? "none")),
            ("kernels", .string(method.kernels)),
            ("threads", .integer(method.threads)),
            ("runs", .integer(computed.runs)),
            ("min_ms", .number(computed.seconds * 1e3)),
            ("gflops", .number(gflops)),
            ("mean_sink_share", .array(meanSinkShares.map(JSONValue.number))),
            ("output", .string(command.outputs.output)),
            ("written", .array(written.map(JSONValue.string))),
        ]
        return JSONValue.object(problem + members).text()
    }

    // MARK: - Lines

    private var problemLines: String {
        switch method {
        case .scores(let attention): command.problem.lines(attention, inputs)
        case .recurrent(let kind, _):
            """
            \(inputs.lines)
            weights     none: \(kind.name), mask \(command.problem.scores.mask), norm of queries and keys \(command.problem.norms.qkNorm.rawValue)
            """
        }
    }

    var lines: String {
        let time = decimal(computed.seconds * 1e3, digits: 4, format: "g")
        let shares =
            !method.hasSink
            ? "none"
            : inputs.shape.rowCount == 0
                ? "none, as there are no rows"
                : meanSinkShares.map { decimal($0, digits: 4) }.joined(separator: " ") + " (mean of each head)"
        let gate = gate.map { "a gate for each \($0.granularity)" } ?? "no gate"
        return """
            \(problemLines)
            beside      norm of values \(command.outputs.valueNorm.rawValue), of the output \(command.outputs.outputNorm.rawValue), \(gate)
            kernels     \(method.kernels), at most \(method.threads) thread\(method.threads == 1 ? "" : "s")
            time        \(time) ms, fastest of \(computed.runs); \(decimal(gflops, digits: 3, format: "g")) GFLOP/s
            sink share  \(shares)
            written     \(written.joined(separator: ", ")) to \(printable(command.outputs.output))
            """
    }
}
