// SPDX-License-Identifier: Apache-2.0
// SeededShape.swift - the options for the dimensions and the sink of a problem that is drawn from a seed.

import ArgumentParser
import QuietAttention

/// Dimensions, key lengths and the sink.
struct SeededShape: ParsableArguments {
    @Option(help: "Sequences in the batch.")
    var batch = 1

    @Option(help: "Heads H of the queries.")
    var queryHeads = 12

    @Option(help: "Heads G of the keys and values. Default: H.")
    var kvHeads: Int?

    @Option(help: "Queries L of each sequence. Default: 1024, or 1 to decode.")
    var queries: Int?

    @Option(help: "Keys S of each sequence. Default: L, or 4096 to decode.")
    var keys: Int?

    @Option(
        help: ArgumentHelp(
            "Keys of each sequence that are not padding, separated by commas. Default: all.", valueName: "n,n,..."),
        transform: KeyLengths.init(parsing:))
    var keyLengths: KeyLengths?

    @Option(help: "Channels D of a query and of a key.")
    var headDim = 64

    @Option(help: "Channels E of a value. Default: D.")
    var valueDim: Int?

    @Option(
        help: SinkOption.help("learned           one for each query head, drawn like the inputs"),
        transform: SinkOption.seeded)
    var sink: SinkOption?

    /// - Parameter decodes: whether few queries meet many keys where nothing else is said.
    func shape(decodes: Bool) throws -> AttentionShape {
        let queries = queries ?? (decodes ? 1 : 1024)
        return try AttentionShape(
            batch: batch, queryHeads: queryHeads, keyValueHeads: kvHeads, queries: queries,
            keys: keys ?? (decodes ? 4096 : queries), headDimension: headDim, valueDimension: valueDim)
    }
}

/// `<n>,<n>,...`, one for each sequence.
struct KeyLengths: CustomStringConvertible {
    let lengths: [Int]

    init(parsing text: String) throws {
        let words = text.split(separator: ",", omittingEmptySubsequences: false)
        lengths = words.compactMap { Int($0) }
        guard lengths.count == words.count else { throw ValidationError("expected numbers separated by commas") }
    }

    func check(_ shape: AttentionShape) throws {
        guard lengths.count == shape.batch, lengths.allSatisfy((0...shape.keys).contains) else {
            throw ValidationError(
                "--key-lengths: expected a number from 0 to \(shape.keys) for each of \(shape.batch) sequences, got \(description)"
            )
        }
    }

    var description: String { lengths.map(String.init).joined(separator: ",") }
}
