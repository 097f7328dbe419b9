// SPDX-License-Identifier: Apache-2.0
// PositionTensors.swift - the options for what a file tells of positions, by the names of its tensors.

import ArgumentParser
import QuietAttention
import Safetensors

/// Where queries and keys stand, and numbers of rotary embeddings that are as many as pairs.
struct PositionTensors: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Positions m of the queries, integers [L], [1, L] or [batch, L]. Default: in order.", valueName: "name"))
    var queryPositions: String?

    @Option(
        help: ArgumentHelp(
            "Positions n of the keys, integers [S], [1, S] or [batch, S]. --position-offset moves both.",
            valueName: "name"))
    var keyPositions: String?

    @Option(
        help: ArgumentHelp(
            "theta [r/2], one's own angles (inverse frequencies), in place of base and scaling.", valueName: "name"))
    var ropeThetas: String?

    @Option(help: ArgumentHelp("`short_factor` [r/2] of longrope.", valueName: "name"))
    var ropeShortFactor: String?

    @Option(help: ArgumentHelp("`long_factor` [r/2] of longrope.", valueName: "name"))
    var ropeLongFactor: String?

    var named: [NamedOption] {
        [
            NamedOption("--query-positions", queryPositions), NamedOption("--key-positions", keyPositions),
            NamedOption("--rope-thetas", ropeThetas), NamedOption("--rope-short-factor", ropeShortFactor),
            NamedOption("--rope-long-factor", ropeLongFactor),
        ]
    }

    func check(_ position: PositionOptions) throws {
        if position.positions == .none, let option = named.first(where: { $0.tensor != nil }) {
            throw ValidationError("\(option.name): needs --positions: nothing is rotated without it")
        }
        guard (queryPositions == nil) == (keyPositions == nil) else {
            throw ValidationError("--query-positions and --key-positions need each other")
        }
        guard ropeThetas == nil || position.ropeScaling.isNone else {
            throw ValidationError("--rope-thetas: expected no --rope-scaling, in whose place the angles stand")
        }
        let hasBoth = ropeShortFactor != nil && ropeLongFactor != nil
        let hasOne = ropeShortFactor != nil || ropeLongFactor != nil
        guard position.ropeScaling.needsLists ? hasBoth : !hasOne else {
            throw ValidationError("--rope-scaling longrope, --rope-short-factor and --rope-long-factor need each other")
        }
    }

    func lists(_ file: SafetensorsFile) throws -> RopeLists {
        func list(_ name: String?) throws -> [Double]? {
            guard let name else { return nil }
            let shape = try file.tensor(named: name).shape
            guard shape.count == 1 else {
                throw Failure(
                    "tensor \(quoted(name)): expected the shape [r/2], a number for each pair of channels, got "
                        + shown(shape: shape))
            }
            return try file.doubles(named: name)
        }
        return RopeLists(
            shortFactor: try list(ropeShortFactor), longFactor: try list(ropeLongFactor), thetas: try list(ropeThetas))
    }

    func read(_ file: SafetensorsFile, _ shape: AttentionShape) throws -> AttentionTensors.Positions? {
        guard let queryPositions, let keyPositions else { return nil }
        func integers(_ name: String, _ rows: Int, _ meaning: String) throws -> [Int] {
            // [1, L] of a single item is [batch, L].
            let shared = shape.batch == 1 ? [] : [[1, rows]]
            try file.checkShape(of: name, [[rows]] + shared + [[shape.batch, rows]], meaning: meaning)
            return try file.integers(named: name)
        }
        return AttentionTensors.Positions(
            queries: try integers(queryPositions, shape.queries, "the position of each query"),
            keys: try integers(keyPositions, shape.keys, "the position of each key"))
    }
}
