// SPDX-License-Identifier: Apache-2.0
// InspectedAttention.swift - which tensors of a file are queries, keys and values, and which only have their names.

import QuietAttention
import Safetensors

/// The attention of a file: the problems that are ones, and the tensors that are none.
struct InspectedAttention {
    private(set) var heads: [MeasuredHeads] = []
    private(set) var leftOut: [LeftOut] = []

    /// Queries, keys and values that the options name must be a problem. Those that are found by their names may be anything:
    /// weights of a convolution, too, have four dimensions.
    init(_ command: Inspect, _ file: SafetensorsFile) throws {
        guard command.tensor.isEmpty else { return }
        var left = command.report == nil ? 0 : ReportPage.mostHeads
        func measure(_ problem: FileProblem, _ inputs: AttendInputs) throws -> MeasuredHeads {
            let isDrawn = left >= inputs.shape.queryHeads && left > 0
            if isDrawn { left -= inputs.shape.queryHeads }
            return try MeasuredHeads(
                problem, inputs, file, epsilon: command.epsilon, leadingKeys: command.leadingKeys, isDrawn: isDrawn)
        }
        guard command.problem.tensors.areUsual else {
            heads = [try measure(command.problem, command.problem.inputs(file))]
            return
        }
        let candidates = Self.candidates(command.problem, file)
        func pairs(_ problem: FileProblem) -> Double {
            let shapes = problem.tensors.all.prefix(2).compactMap { try? file.tensor(named: $0).shape }
            // In either layout: rows by keys, but for a factor that all have.
            return shapes.reduce(1.0) { $0 * $1.reduce(1.0) { $0 * Double($1) } }
        }
        var progress = Progress(
            "sets of heads", count: candidates.count, .pairs, amount: candidates.reduce(0) { $0 + pairs($1) },
            isShown: command.isProgressShown && !candidates.isEmpty)
        defer { progress.finish() }
        var refusal: Error?
        for problem in candidates {
            defer { progress.count(pairs(problem)) }
            let inputs: AttendInputs
            do {
                inputs = try problem.inputs(file)
            } catch {
                leftOut.append(LeftOut(problem.tensors, "\(error)"))
                continue
            }
            do {
                heads.append(try measure(problem, inputs))
            } catch {
                refusal = refusal ?? error
                leftOut.append(LeftOut(problem.tensors, "\(error)"))
            }
        }
        // Options that fit none of the problems are wrong themselves.
        if heads.isEmpty, let refusal { throw refusal }
    }

    /// All that are called q, k and v behind a common prefix, and have four dimensions: matrices of those names are weights.
    private static func candidates(_ problem: FileProblem, _ file: SafetensorsFile) -> [FileProblem] {
        file.tensors.compactMap { tensor in
            guard tensor.shape.count == 4, tensor.name == "q" || tensor.name.hasSuffix(".q") else { return nil }
            var candidate = problem
            let prefix = tensor.name.dropLast()
            candidate.tensors.queries = tensor.name
            candidate.tensors.keys = prefix + "k"
            candidate.tensors.values = prefix + "v"
            // One that is missing is said to be.
            let fits = [candidate.tensors.keys, candidate.tensors.values].allSatisfy { name in
                (try? file.tensor(named: name)).map { $0.shape.count == 4 } ?? true
            }
            return fits ? candidate : nil
        }
    }
}

/// Tensors that are called queries, keys and values and are none.
struct LeftOut {
    private let names: [String]
    private let reason: String

    init(_ tensors: TensorNames, _ reason: String) {
        names = tensors.all
        self.reason = reason
    }

    var text: String { "left out    \(names.map(printable).joined(separator: ", ")): \(reason)" }

    func report() -> JSONValue {
        .object([("tensors", .array(names.map(JSONValue.string))), ("reason", .string(reason))])
    }
}
