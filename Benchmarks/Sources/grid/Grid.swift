// SPDX-License-Identifier: Apache-2.0
// Grid.swift - the table of shapes as JSON: our kernels beside the unfused baseline, and ranks of attention matrices.

import ArgumentParser
import AttentionGrid
import COpenBLAS
import Foundation

@main
struct Grid: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "grid", abstract: "Measures attention beside its unfused baseline; prints JSON.",
        subcommands: [Measure.self, Rank.self], defaultSubcommand: Measure.self)

    static func main() {
        restart_with_openblas_kernels(CommandLine.unsafeArgv)
        main(nil)
    }

    static func printJSON(_ value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }
}

struct Measure: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Time, GFLOP/s, fraction of the peak, ratio to OpenBLAS.")

    @Option(help: "The file of shapes.") var shapes: String
    @Option(help: "Threads.") var threads = 1
    @Option(help: "Seconds that one shape may take; three turns are always made.") var seconds = 3.0
    @Argument(help: "Names of shapes; none: all.") var names: [String] = []

    private struct Table: Encodable {
        var threads: Int
        var readGbytesPerS: Double
        /// Of products of bfloat16 by an instruction for them: which, and its peak.
        var bfloat16Unit: String?
        var bfloat16PeakGflops: Double?
        var rows: [GridRow]
    }

    func validate() throws {
        guard threads >= 1 else { throw ValidationError("--threads must be 1 or more") }
    }

    func run() throws {
        let all = try GridShape.load(from: URL(filePath: shapes))
        let wanted = names.isEmpty ? all : all.filter { names.contains($0.name) }
        var rows: [GridRow] = []
        for shape in wanted {
            FileHandle.standardError.write(Data("\(shape) ...\n".utf8))
            rows.append(try row(GridProblem(shape, threads: threads)))
        }
        try Grid.printJSON(
            Table(
                threads: threads, readGbytesPerS: Ceilings.read(threads: threads),
                bfloat16Unit: Ceilings.bfloat16Unit,
                bfloat16PeakGflops: (0..<10).compactMap { _ in Ceilings.bfloat16(threads: threads) }.max(), rows: rows))
    }

    private func row(_ problem: GridProblem) throws -> GridRow {
        let calls = try problem.callsPerTurn()
        let end = ContinuousClock.now + .seconds(seconds)
        var turns: [Turn] = []
        while turns.count < 3 || ContinuousClock.now < end { turns.append(try problem.turn(calls: calls)) }
        return GridRow(problem, turns: turns)
    }
}

struct Rank: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Numerical and effective rank of seeded attention matrices.")

    @Option(help: "Keys and queries, 1 to 1024.") var sequences = [128, 512]
    @Option(help: "Head dimensions.") var dimensions = [8, 64]

    func run() throws {
        try Grid.printJSON(
            sequences.flatMap { sequence in
                try dimensions.flatMap { try RankRow.all(sequence: sequence, headDimension: $0) }
            })
    }
}
