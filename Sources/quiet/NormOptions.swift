// SPDX-License-Identifier: Apache-2.0
// NormOptions.swift - the options for norms of queries, keys, values and output.

import ArgumentParser
import QuietAttention
import Safetensors

/// What a row is divided by.
enum Norm: String, CaseIterable {
    case none, rms, layer

    /// What ``NormOptions/epsilon(of:)`` is by default: as LLaMA has it, and PyTorch's LayerNorm.
    fileprivate var epsilon: Float { self == .layer ? 1e-5 : 1e-6 }
}

/// How queries and keys are normalised, and what keeps norms from dividing by 0.
struct NormOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Of each query and key of each head, before their positions.",
            discussion: """
                none              the default
                rms               x / sqrt(mean x^2 + epsilon) gain
                layer             (x - mean) / sqrt(variance + epsilon) gain + bias
                """,
            valueName: "norm"),
        transform: Norm.init(parsing:))
    var qkNorm = Norm.none

    @Option(
        // Unconditional: so that a negative number is refused as a number.
        parsing: .unconditional,
        help: ArgumentHelp("The epsilon of all norms. Default: 1e-6 of rms, 1e-5 of layer.", valueName: "epsilon"))
    var normEpsilon: Float?

    func validate() throws {
        guard let normEpsilon, !(normEpsilon >= .leastNormalMagnitude && normEpsilon.isFinite) else { return }
        throw ValidationError("--norm-epsilon: expected a positive, finite number, got \(normEpsilon)")
    }

    /// Refuses an epsilon that no norm adds to anything.
    func check(others: Norm...) throws {
        guard normEpsilon != nil, ([qkNorm] + others).allSatisfy({ $0 == .none }) else { return }
        throw ValidationError("--norm-epsilon: there is no norm that it would belong to")
    }

    private func epsilon(of norm: Norm) -> Float { normEpsilon ?? norm.epsilon }

    /// The norm of queries and keys.
    func queryKeyNorm(_ tensors: NormTensors.Vectors = .init()) -> QueryKeyNorm? {
        let epsilon = epsilon(of: qkNorm)
        return switch qkNorm {
        case .none: nil
        case .rms: .rms(epsilon: epsilon, queryGain: tensors.queryGain, keyGain: tensors.keyGain)
        case .layer:
            .layer(
                epsilon: epsilon, queryGain: tensors.queryGain, queryBias: tensors.queryBias,
                keyGain: tensors.keyGain, keyBias: tensors.keyBias)
        }
    }

    /// Normalises the rows `[batch, heads, sequence, dimension]` in place, with gains and biases of each head if there are so many.
    func apply(
        _ norm: Norm, to rows: inout [Float], heads: Int, dimension: Int, gain: [Float]?, bias: [Float]?,
        batch: Int, kernels: KernelSet?
    ) throws {
        let vectors = max(gain?.count ?? 0, bias?.count ?? 0)
        guard vectors > dimension, !rows.isEmpty else {
            try apply(norm, to: &rows, dimension: dimension, gain: gain, bias: bias, kernels: kernels)
            return
        }
        func vector(_ all: [Float]?, _ head: Int) -> [Float]? {
            all.map { $0.count == dimension ? $0 : Array($0[head * dimension..<(head + 1) * dimension]) }
        }
        let size = rows.count / (batch * heads)
        for index in 0..<batch * heads {
            var part = Array(rows[index * size..<(index + 1) * size])
            try apply(
                norm, to: &part, dimension: dimension, gain: vector(gain, index % heads),
                bias: vector(bias, index % heads), kernels: kernels)
            rows.replaceSubrange(index * size..<(index + 1) * size, with: part)
        }
    }

    /// Normalises rows of this length in place.
    func apply(
        _ norm: Norm, to rows: inout [Float], dimension: Int, gain: [Float]? = nil, bias: [Float]? = nil,
        kernels: KernelSet?
    ) throws {
        let epsilon = epsilon(of: norm)
        switch norm {
        case .none: break
        case .rms:
            try RMSNorm(dimension: dimension, gain: gain, epsilon: epsilon, kernels: kernels).apply(to: &rows)
        case .layer:
            try LayerNorm(dimension: dimension, gain: gain, bias: bias, epsilon: epsilon, kernels: kernels)
                .apply(to: &rows)
        }
    }
}

/// What was learned of the norms of queries and keys, by the names of tensors of a file.
struct NormTensors: ParsableArguments {
    @Option(help: ArgumentHelp("Gain [D] or [H, D] of the queries' norm. Default: 1.", valueName: "name"))
    var queryGain: String?

    @Option(help: ArgumentHelp("Bias [D] or [H, D] of the queries' norm, if layer. Default: 0.", valueName: "name"))
    var queryBias: String?

    @Option(help: ArgumentHelp("Gain [D] or [G, D] of the keys' norm. Default: 1.", valueName: "name"))
    var keyGain: String?

    @Option(help: ArgumentHelp("Bias [D] or [G, D] of the keys' norm, if layer. Default: 0.", valueName: "name"))
    var keyBias: String?

    struct Vectors {
        var queryGain, queryBias, keyGain, keyBias: [Float]?
    }

    var named: [NamedOption] {
        [
            NamedOption("--query-gain", queryGain), NamedOption("--query-bias", queryBias),
            NamedOption("--key-gain", keyGain), NamedOption("--key-bias", keyBias),
        ]
    }

    func check(_ norm: Norm) throws {
        for option in named where option.tensor != nil {
            switch norm {
            case .none: throw ValidationError("\(option.name): needs --qk-norm, whose gain or bias it is")
            case .rms where option.name.hasSuffix("bias"):
                throw ValidationError("\(option.name): a norm by the root mean square has no bias, --qk-norm layer has")
            case .rms, .layer: break
            }
        }
    }

    func vectors(_ file: SafetensorsFile, _ shape: AttentionShape) throws -> Vectors {
        func vector(_ name: String?, heads: Int) throws -> [Float]? {
            guard let name else { return nil }
            let meaning = "one number for each channel of a head, or of each head"
            try file.checkShape(
                of: name, [shape.headDimension], [heads, shape.headDimension], meaning: meaning)
            return try file.floats(named: name)
        }
        return Vectors(
            queryGain: try vector(queryGain, heads: shape.queryHeads),
            queryBias: try vector(queryBias, heads: shape.queryHeads),
            keyGain: try vector(keyGain, heads: shape.keyValueHeads),
            keyBias: try vector(keyBias, heads: shape.keyValueHeads))
    }
}
