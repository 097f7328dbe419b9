// SPDX-License-Identifier: Apache-2.0
// AttendMethod.swift - what attend computes with: the scores of all pairs, or a recurrence over the keys.

import ArgumentParser
import QuietAttention
import Safetensors

/// Linear attention or retention in place of scores and weights.
struct RecurrenceOptions: ParsableArguments {
    enum Kind: String, CaseIterable {
        case linear, retention

        var library: RecurrentAttention.Kind { self == .linear ? .linear : .retention }

        /// As messages call it.
        var name: String { self == .linear ? "linear attention" : "retention" }
    }

    @Option(
        help: ArgumentHelp(
            "A state that goes over the keys, in time L + S instead of L S: a baseline to compare with. It has norms, the masks "
                + "none and causal, and what follows below.",
            discussion: """
                linear            sum w[j] v[j] / sum w, w[j] = phi(q).phi(k[j]),
                                  phi(x) = elu(x) + 1
                retention         sum g^|p - j| q.k[j] v[j] / sqrt(D sum g^|p - j|),
                                  p = i + S - L, g = 1 - 2^(-5 - h) in head h
                """,
            valueName: "kind"),
        transform: Kind.init(parsing:))
    var recurrent: Kind?

    /// Refuses what has no part in a recurrence.
    func check(_ kind: Kind, _ problem: FileProblem, lse: Bool) throws {
        let scores = problem.scores
        guard [.none, .causal].contains(scores.mask) else {
            throw ValidationError(
                "--mask: expected none or causal with \(kind.name), whose state cannot forget the keys behind a window")
        }
        let tensors = problem.scoreTensors.named.map { ($0.name, $0.tensor != nil) }
        for (option, isGiven) in tensors + [
            ("--scale", scores.scale != nil), ("--scaling", scores.scaling.description != "none"),
            ("--softcap", scores.softcap != nil), ("--alibi", scores.alibi),
            ("--normaliser", scores.normaliser.description != "softmax"),
            ("--positions", problem.position.positions != .none),
        ] where isGiven {
            throw ValidationError("\(option): is for scores, and \(kind.name) has none")
        }
        for (option, isGiven) in [("--sink", problem.scoreTensors.sink != nil), ("--lse", lse)] where isGiven {
            throw ValidationError(
                "\(option): \(kind.name) has no softmax denominator, and so neither a sink nor its logarithm")
        }
    }
}

/// Attention of one of two kinds.
enum AttendMethod {
    case scores(Attention)
    case recurrent(RecurrenceOptions.Kind, RecurrentAttention)

    /// - Parameter inputs: queries and keys are normalised here where the method does not do it itself.
    init(
        _ kind: RecurrenceOptions.Kind?, _ problem: FileProblem, products: AttentionProducts, _ file: SafetensorsFile,
        _ inputs: inout AttendInputs
    ) throws {
        guard let kind else {
            self = .scores(try problem.attention(file, inputs, products: products))
            return
        }
        let shape = inputs.shape
        let (norms, kernels) = (problem.norms, try problem.machine.kernelSet)
        let vectors = try problem.normTensors.vectors(file, shape)
        try norms.apply(
            norms.qkNorm, to: &inputs.queries, heads: shape.queryHeads, dimension: shape.headDimension,
            gain: vectors.queryGain, bias: vectors.queryBias, batch: shape.batch, kernels: kernels)
        try norms.apply(
            norms.qkNorm, to: &inputs.keys, heads: shape.keyValueHeads, dimension: shape.headDimension,
            gain: vectors.keyGain, bias: vectors.keyBias, batch: shape.batch, kernels: kernels)
        let isCausal = problem.scores.mask == .causal
        self = .recurrent(kind, RecurrentAttention(kind.library, shape, isCausal: isCausal))
    }

    /// - Parameter record: what the backward pass needs; nil: it is not wanted.
    func run(_ inputs: AttendInputs, recording record: inout ForwardRecord?) throws -> AttentionResult {
        switch self {
        case .scores(let attention):
            let (queries, keys, values) = (inputs.queries, inputs.keys, inputs.values)
            guard record != nil else { return try attention.forward(queries: queries, keys: keys, values: values) }
            return try attention.forward(queries: queries, keys: keys, values: values, recording: &record!)
        case .recurrent(_, let attention):
            return AttentionResult(
                output: try attention.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values),
                logSumExp: [], sinkShare: [])
        }
    }

    var hasSink: Bool { if case .scores(let attention) = self { attention.normaliser.hasSink } else { false } }

    /// A recurrence is plain Swift on one thread.
    var kernels: String { if case .scores(let attention) = self { attention.kernels.name } else { "none" } }
    var threads: Int { if case .scores(let attention) = self { attention.threads } else { 1 } }

    /// Operations that count as work.
    func operations(mask: MaskOption) -> Double {
        switch self {
        case .scores(let attention): FloatOperations(attention, mask: mask).count
        case .recurrent(_, let attention): FloatOperations.count(attention)
        }
    }
}
