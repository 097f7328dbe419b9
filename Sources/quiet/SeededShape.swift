// SPDX-License-Identifier: Apache-2.0
// SeededShape.swift - the options for the dimensions and the sink of a problem that is drawn from a seed.

import ArgumentParser
import QuietAttention

/// Dimensions, key lengths and the sink.
struct SeededShape: ParsableArguments {
    // Unconditional: so that a negative number is refused as a number.
    @Option(parsing: .unconditional, help: "Sequences in the batch.")
    var batch = 1

    @Option(parsing: .unconditional, help: "Heads H of the queries.")
    var queryHeads = 12

    @Option(parsing: .unconditional, help: "Heads G of the keys and values. Default: H.")
    var kvHeads: Int?

    @Option(parsing: .unconditional, help: "Queries L of each sequence. Default: 1024, or 1 to decode.")
    var queries: Int?

    @Option(parsing: .unconditional, help: "Keys S of each sequence. Default: L, or 4096 to decode.")
    var keys: Int?

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp(
            "Keys of each sequence that are not padding, separated by commas. Default: all.", valueName: "n,n,..."),
        transform: KeyLengths.init(parsing:))
    var keyLengths: KeyLengths?

    @Option(parsing: .unconditional, help: "Channels D of a query and of a key.")
    var headDim = 64

    @Option(parsing: .unconditional, help: "Channels E of a value. Default: D.")
    var valueDim: Int?

    @Option(
        help: SinkOption.help("learned           one for each query head, drawn like the inputs"),
        transform: SinkOption.seeded)
    var sink: SinkOption?

    /// Refuses problems without anything to compute, which the library allows.
    func validate() throws {
        for (name, extent) in [
            ("--batch", batch), ("--query-heads", queryHeads), ("--kv-heads", kvHeads), ("--queries", queries),
            ("--keys", keys), ("--head-dim", headDim), ("--value-dim", valueDim),
        ] {
            guard let extent, extent < 1 else { continue }
            throw ValidationError("\(name): expected 1 or more, got \(extent)")
        }
    }

    /// - Parameter decodes: whether few queries meet many keys where nothing else is said.
    func shape(decodes: Bool) throws -> AttentionShape {
        let queries = queries ?? (decodes ? 1 : 1024)
        do throws(AttentionError) {
            return try AttentionShape(
                batch: batch, queryHeads: queryHeads, keyValueHeads: kvHeads, queries: queries,
                keys: keys ?? (decodes ? 4096 : queries), headDimension: headDim, valueDimension: valueDim)
        } catch {
            let options = [
                "queryHeads": "--query-heads", "keyValueHeads": "--kv-heads", "headDimension": "--head-dim",
                "valueDimension": "--value-dim",
            ]
            let name = options[error.argument] ?? "--\(error.argument)"
            throw ValidationError("\(name): expected \(error.expected), got \(error.found)")
        }
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
