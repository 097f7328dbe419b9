// SPDX-License-Identifier: Apache-2.0
// AttentionOptions.swift - the options that attend and bench share, and how their values are written.

import ArgumentParser
import QuietAttention

/// On which threads and with which kernels.
struct MachineOptions: ParsableArguments {
    @Option(
        // Unconditional: so that a negative number is refused as a number.
        parsing: .unconditional,
        help: "Threads to use at most, 1 to 1024. Default: the CPUs this process may run on.")
    var threads: Int?

    @Option(help: ArgumentHelp("auto, or a kernel set that `quiet info` lists.", valueName: "set"))
    var kernels = "auto"

    /// The kernel set asked for; nil: the library's choice.
    var kernelSet: KernelSet? {
        get throws {
            if kernels == "auto" { return nil }
            do { return try KernelSet(named: kernels) } catch { throw ValidationError("--\(error)") }
        }
    }

    func validate() throws {
        if let threads, !(1...1024).contains(threads) {
            throw ValidationError("--threads: expected 1 to 1024, got \(threads)")
        }
        _ = try kernelSet
    }
}

/// Arguments of an attention that options and tensors make together.
struct AttentionArguments {
    let rules: ScoreRules
    let mask: AttentionMask
    let positions: AttentionPositions
    let queryKeyNorm: QueryKeyNorm?
}

/// What is done to queries, keys and scores, on which machine: the groups of options together.
///
/// Not a group of groups: an unoptimised parser of arguments checks each level of them many times over.
struct AttentionOptions {
    let norms: NormOptions
    let position: PositionOptions
    let scores: ScoreOptions
    let machine: MachineOptions

    /// The attention that the options ask for.
    func attention(
        _ shape: AttentionShape, sink: AttentionSink?, tensors: AttentionTensors, queryKeyNorm: QueryKeyNorm?,
        products: AttentionProducts = .float32, layout: AttentionLayout? = nil
    ) throws -> Attention {
        let given = try arguments(shape, sink: sink, tensors: tensors, queryKeyNorm: queryKeyNorm)
        return try Attention(
            shape, rules: given.rules, mask: given.mask, bias: tensors.bias, positions: given.positions,
            queryKeyNorm: queryKeyNorm, products: products, layout: layout, threads: machine.threads,
            kernels: try machine.kernelSet)
    }

    /// What the options come to together with what was given beside them.
    func arguments(
        _ shape: AttentionShape, sink: AttentionSink?, tensors: AttentionTensors, queryKeyNorm: QueryKeyNorm?
    ) throws -> AttentionArguments {
        var mask = scores.mask.mask
        if let lengths = tensors.keyLengths { mask = mask.keyLengths(lengths, padding: tensors.padding) }
        if let allowed = tensors.allowed { mask = mask.allowing(allowed) }
        var positions = try position.library(keys: shape.keys, lists: tensors.rope)
        if let named = tensors.positions { positions = positions.identifiers(queries: named.queries, keys: named.keys) }
        var rules = scores.rules(queryHeads: shape.queryHeads, sink: sink)
        if let scaling = tensors.scaling { rules.scaling = scaling }
        if let alibi = tensors.alibi { rules.alibi = alibi }
        return AttentionArguments(rules: rules, mask: mask, positions: positions, queryKeyNorm: queryKeyNorm)
    }

    /// The scaling as it was written, or what a tensor of the file holds in its place.
    func scaling(_ attention: Attention) -> String {
        switch attention.scaling {
        case .table: "row factors"
        case .scalableSoftmax where scores.scaling.description == ScalingOption.none.description: "ssmax"
        default: scores.scaling.description
        }
    }

    private func alibi(_ attention: Attention) -> String {
        attention.alibi.map { $0 == .standard ? "standard" : "slopes" } ?? "none"
    }

    /// Shape and options, as members of a JSON object.
    func members(_ attention: Attention, sink: SinkOption?) -> [(name: String, value: JSONValue)] {
        attention.shape.members + [
            ("mask", .string("\(scores.mask)")),
            ("sink", .string(SinkOption.description(sink, attention.normaliser))),
            ("scale", .number(attention.scale)),
            ("scaling", .string(scaling(attention))),
            ("softcap", attention.softcap.map(JSONValue.number) ?? .string("none")),
            ("alibi", .string(alibi(attention))),
            ("normaliser", .string("\(scores.normaliser)")),
            ("positions", .string(position.summary)),
            ("qk_norm", .string(norms.qkNorm.rawValue)),
            ("products", .string(attention.products.rawValue)),
        ]
    }
}

extension AttentionShape {
    /// The dimensions, as members of a JSON object.
    var members: [(name: String, value: JSONValue)] {
        [
            ("batch", .integer(batch)), ("query_heads", .integer(queryHeads)), ("kv_heads", .integer(keyValueHeads)),
            ("queries", .integer(queries)), ("keys", .integer(keys)), ("head_dim", .integer(headDimension)),
            ("value_dim", .integer(valueDimension)),
        ]
    }
}

/// Runs `body`; what the library refuses there came from the command line.
func usage<Result>(_ body: () throws -> Result) throws -> Result {
    do {
        return try body()
    } catch let error as AttentionError where error.kind != .memory {
        throw ValidationError(error.description)
    }
}

/// `none`, `causal`, `window=<w>` or `window=<before>,<after>`.
enum MaskOption: Equatable {
    case none, causal
    case window(Int)
    case around(before: Int, after: Int)

    init(parsing text: String) throws {
        switch text {
        case "none": self = .none
        case "causal": self = .causal
        default:
            let sides = text.value(of: "window")?.split(separator: ",", omittingEmptySubsequences: false)
            let keys = (sides ?? []).compactMap { Int($0) }
            if keys.count == sides?.count, keys.count == 1, keys[0] >= 1 {
                self = .window(keys[0])
            } else if keys.count == sides?.count, keys.count == 2, keys.allSatisfy({ $0 >= 0 }) {
                self = .around(before: keys[0], after: keys[1])
            } else {
                throw ValidationError(
                    "expected none, causal, window=<w> with w of 1 or more, or window=<before>,<after> with 0 or more")
            }
        }
    }

    var mask: AttentionMask {
        switch self {
        case .none: .none
        case .causal: .causal
        case .window(let width): .window(width)
        case .around(let before, let after): .window(before: before, after: after)
        }
    }
}

extension MaskOption: CustomStringConvertible {
    var description: String {
        switch self {
        case .none: "none"
        case .causal: "causal"
        case .window(let width): "window=\(width)"
        case .around(let before, let after): "window=\(before),\(after)"
        }
    }
}

/// `softmax`, `softmax1`, `n=<real>`, `log-keys[=<c>]`, or one logit per query head: `tensor=<name>` of a file, or `learned`, drawn.
struct SinkOption: CustomStringConvertible {
    /// As it was written.
    let description: String
    /// Nil: one logit per query head.
    private let uniform: AttentionSink?
    /// The tensor that holds the logits, for commands that read a file.
    private let tensor: String

    static let softmax1 = SinkOption(description: "softmax1", uniform: .softmax1, tensor: "")

    /// What help says of the option.
    ///
    /// - Parameter perHead: the line for one logit per query head.
    static func help(_ perHead: String) -> ArgumentHelp {
        ArgumentHelp(
            "The logit s of softmax, clipped or not.",
            discussion: """
                softmax           -inf: there is no sink
                softmax1          0, the default
                n=<real>          log of that number, softmax_n
                log-keys[=<c>]    log n + c of the n keys that a row sees, c = 0
                \(perHead)
                """,
            valueName: "sink")
    }

    /// For commands that read a file.
    static func inFile(_ text: String) throws -> SinkOption {
        if let sink = try common(text) { return sink }
        guard let name = text.value(of: "tensor") else {
            throw ValidationError("expected softmax, softmax1, n=<real>, log-keys[=<c>] or tensor=<name>")
        }
        return SinkOption(description: text, uniform: nil, tensor: name)
    }

    /// For commands that make their inputs.
    static func seeded(_ text: String) throws -> SinkOption {
        if let sink = try common(text) { return sink }
        guard text == "learned" else {
            throw ValidationError("expected softmax, softmax1, n=<real>, log-keys[=<c>] or learned")
        }
        return SinkOption(description: text, uniform: nil, tensor: "")
    }

    private static func common(_ text: String) throws -> SinkOption? {
        switch text {
        case "softmax": return SinkOption(description: text, uniform: .softmax, tensor: "")
        case "softmax1": return .softmax1
        case "log-keys": return SinkOption(description: text, uniform: .logKeys(), tensor: "")
        default:
            if let offset = text.numbers(of: "log-keys", count: 1)?.first {
                return SinkOption(description: text, uniform: .logKeys(offset: Float(offset)), tensor: "")
            }
            guard let number = text.value(of: "n") else { return nil }
            guard let n = Double(number), n >= 0, n.isFinite else {
                throw ValidationError("expected n=<real> with a finite number of 0 or more")
            }
            return SinkOption(description: text, uniform: .softmaxN(n), tensor: "")
        }
    }

    /// What stands in reports.
    static func description(_ option: SinkOption?, _ normaliser: AttentionNormaliser) -> String {
        option?.description ?? (normaliser.hasSink ? softmax1.description : "none")
    }

    /// The sink; `logits` are asked for if there is one logit per query head, with the name of their tensor.
    func sink(logits: (String) throws -> [Float]) rethrows -> AttentionSink {
        try uniform ?? .logits(logits(tensor))
    }
}

extension AttentionNormaliser {
    /// The sink where the command line names none: softmax_1, or none beside normalisers that have no denominator for it.
    var defaultSink: AttentionSink { hasSink ? .softmax1 : .softmax }
}

extension CaseIterable where Self: RawRepresentable<String> {
    /// The case of that name.
    init(parsing text: String) throws {
        guard let value = Self(rawValue: text) else {
            let names = Self.allCases.map(\.rawValue)
            throw ValidationError("expected \(names.dropLast().joined(separator: ", ")) or \(names[names.count - 1])")
        }
        self = value
    }
}

extension String {
    /// What stands behind "name=".
    func value(of name: String) -> String? {
        hasPrefix(name + "=") ? String(dropFirst(name.count + 1)) : nil
    }
}
