// SPDX-License-Identifier: Apache-2.0
// ScoreTensors.swift - the options for what a file tells of keys and scores, by the names of its tensors.

import ArgumentParser
import QuietAttention
import Safetensors

/// The sink, which keys rows see, and what is added to scores or multiplied with them.
struct ScoreTensors: ParsableArguments {
    @Option(
        help: SinkOption.help("tensor=<name>     one for each query head, a tensor [H] of the file"),
        transform: SinkOption.inFile)
    var sink: SinkOption?

    @Option(
        help: ArgumentHelp(
            "Of the keys of --mask, rows see those where this is not 0.",
            discussion: """
                [batch, H, L, S]  BOOL, integers; any but S may be 1; the first
                                  may be left out
                """,
            valueName: "name"))
    var allowed: String?

    @Option(
        help: ArgumentHelp(
            "x becomes x + b, after softcap and ALiBi; b = -inf hides the key.",
            discussion: """
                [batch, H, L, S]  floats; any but S may be 1; the first may be
                                  left out
                """,
            valueName: "name"))
    var bias: String?

    @Option(
        // Unconditional: so that a negative number is refused as a number.
        parsing: .unconditional,
        help: ArgumentHelp(
            "So many keys of each batch item are no padding: numbers, or the name of integers [batch].",
            valueName: "n,n,...|name"))
    var keyLengths: String?

    @Option(
        help: ArgumentHelp(
            "Where rows stand under --key-lengths: for --mask, --alibi and --positions.",
            discussion: """
                keys              row i of an item of n keys at key i + n - L,
                                  the last one at its last key: the default
                both              at key i + S - L whatever n, for queries that
                                  are padded as keys are
                """,
            valueName: "padding"),
        transform: PaddingOption.init(parsing:))
    var padding = PaddingOption.keys

    @Option(help: ArgumentHelp("ALiBi with these slopes m [H], in place of --alibi.", valueName: "name"))
    var alibiSlopes: String?

    @Option(
        help: ArgumentHelp(
            "The factors of rows, in place of --scaling.",
            discussion: """
                [batch, H, L]     floats; any may be 1; the first may be left out
                """,
            valueName: "name"))
    var rowFactors: String?

    @Option(
        help: ArgumentHelp(
            "Scalable softmax with these s [H], s[h] log n, in place of --scaling.", valueName: "name"))
    var ssmax: String?

    var named: [NamedOption] {
        [
            NamedOption("--allowed", allowed), NamedOption("--bias", bias), NamedOption("--key-lengths", keyLengths),
            NamedOption("--alibi-slopes", alibiSlopes), NamedOption("--row-factors", rowFactors),
            NamedOption("--ssmax", ssmax), NamedOption("--padding", padding == .keys ? nil : padding.rawValue),
        ]
    }

    func check(_ scores: ScoreOptions) throws {
        guard padding == .keys || keyLengths != nil else {
            throw ValidationError("--padding: expected --key-lengths beside it: without them nothing is padded")
        }
        for (option, tensor) in [("--row-factors", rowFactors), ("--ssmax", ssmax)] where tensor != nil {
            guard scores.scaling.description == ScalingOption.none.description else {
                throw ValidationError(
                    "\(option): expected no --scaling, in whose place it stands, got \(scores.scaling)")
            }
        }
        guard rowFactors == nil || ssmax == nil else {
            throw ValidationError("--ssmax: expected no --row-factors beside it: one factor for each row")
        }
        guard alibiSlopes == nil || !scores.alibi else {
            throw ValidationError("--alibi-slopes: expected no --alibi, which has the published slopes")
        }
    }

    fileprivate func read(_ file: SafetensorsFile, _ shape: AttentionShape) throws -> AttentionTensors {
        func perHead(_ name: String, _ meaning: String) throws -> [Float] {
            try file.floats(named: name, shape: [shape.queryHeads], "\(meaning) for each query head")
        }
        var tensors = AttentionTensors(
            keyLengths: try keyLengths.map { try Self.lengths($0, file, shape) }, padding: padding.library)
        if let allowed {
            let extents = try file.sharedShape(of: allowed, shape, keys: shape.keys)
            tensors.allowed = try BroadcastTensor(file.booleans(named: allowed), extents)
        }
        if let bias {
            let extents = try file.sharedShape(of: bias, shape, keys: shape.keys)
            // Masks of F64 hold its least number: beyond Float's range it counts as the end of that.
            let largest = Double(Float.greatestFiniteMagnitude)
            let values = try file.doubles(named: bias).map {
                $0.isFinite ? Float(min(max($0, -largest), largest)) : Float($0)
            }
            tensors.bias = try BroadcastTensor(values, extents)
        }
        tensors.alibi = try alibiSlopes.map { .slopes(try perHead($0, "a slope")) }
        if let rowFactors {
            let extents = try file.sharedShape(of: rowFactors, shape, keys: nil)
            tensors.scaling = .table(try BroadcastTensor(file.floats(named: rowFactors).map(Double.init), extents))
        }
        if let ssmax { tensors.scaling = .scalableSoftmax(try perHead(ssmax, "a factor").map(Double.init)) }
        return tensors
    }

    private static func lengths(_ text: String, _ file: SafetensorsFile, _ shape: AttentionShape) throws -> [Int] {
        if let list = try? KeyLengths(parsing: text) { return list.lengths }
        try file.checkShape(of: text, [shape.batch], meaning: "a number of keys for each batch item")
        return try file.integers(named: text)
    }
}

/// What is padded, as it is written.
enum PaddingOption: String, CaseIterable {
    case keys, both

    var library: AttentionMask.Padding { self == .keys ? .keys : .queriesAndKeys }
}

/// What was given beside queries, keys and values; nil: nothing.
struct AttentionTensors {
    struct Positions {
        let queries, keys: [Int]
    }

    var keyLengths: [Int]?
    var padding = AttentionMask.Padding.keys
    var allowed: BroadcastTensor<Bool>?
    var bias: BroadcastTensor<Float>?
    var alibi: ALiBi?
    var scaling: ScoreScaling?
    var positions: Positions?
    var rope = RopeLists()
}

extension AttentionTensors {
    init(
        _ file: SafetensorsFile, _ scores: ScoreTensors, _ positions: PositionTensors, _ shape: AttentionShape
    ) throws {
        self = try scores.read(file, shape)
        self.positions = try positions.read(file, shape)
        rope = try positions.lists(file)
    }
}

extension BroadcastTensor {
    /// - Parameter extents: `[batch, heads, queries, keys]`.
    fileprivate init(_ values: [Element], _ extents: [Int]) throws {
        try self.init(values, batch: extents[0], heads: extents[1], queries: extents[2], keys: extents[3])
    }
}
