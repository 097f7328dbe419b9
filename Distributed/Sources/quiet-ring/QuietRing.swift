// SPDX-License-Identifier: Apache-2.0
// QuietRing.swift - quiet-ring: the command line, and how a run ends on all ranks.

import ArgumentParser
import QuietAttention
import Ring
import Safetensors

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// A command that all ranks run together.
protocol RingCommand: ParsableCommand {
    var ranks: RankOptions { get }
    var machine: MachineOptions { get }

    func run(_ world: World) throws
}

/// How ranks wait for each other.
struct RankOptions: ParsableArguments {
    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("A rank that does not answer for so long is reported, and all end.", valueName: "s"))
    var patience = 60.0

    func validate() throws {
        guard patience > 0, patience <= 86_400 else {
            throw ValidationError("--patience: expected more than 0 and at most 86400 seconds, got \(patience)")
        }
    }
}

@main
struct QuietRing: ParsableCommand {
    static let version = "0.1.0"

    static let configuration = CommandConfiguration(
        commandName: "quiet-ring",
        abstract: "Attention over a sequence that several processes share, with the bits of one.",
        discussion: """
            Started by MPI, one process per socket or machine:
              mpirun -np 4 quiet-ring attend in.safetensors --output out.safetensors
            Each process, a rank, has a part of the queries, keys and values; keys and values go round a ring while ranks \
            compute. Rank 0 writes results and reports. A fault on one rank ends all of them, with status 1, or 64 for a \
            command line that cannot be used.
            """,
        version: version,
        subcommands: [Attend.self, Bench.self, Links.self])

    static func main() {
        prepareStandardStreams()
        let world: World
        do { world = try ending(after: 60) { try World() } } catch {
            _ = writeAll("quiet-ring: \(error)\n", to: STDERR_FILENO)
            endProcess(1)
        }
        do {
            let command = try parse(world)
            world.patience = command.ranks.patience
            try command.run(world)
            // All are done, or none is.
            try world.agree(Statement())
            ending(after: UInt32(command.ranks.patience.rounded(.up))) { world.end() }
        } catch let end as Disagreement {
            finish(world, end)
        } catch {
            _ = writeAll("quiet-ring: rank \(world.rank): \(error)\n", to: STDERR_FILENO)
            world.abort(1)
        }
    }

    /// The command, once all ranks were started alike.
    private static func parse(_ world: World) throws -> any RingCommand {
        var (statement, command) = (Statement(), (any RingCommand)?.none)
        do {
            let parsed = try parseAsRoot()
            guard let parsed = parsed as? any RingCommand else { throw CleanExit.helpRequest(parsed) }
            command = parsed
            let kernels = try parsed.machine.kernelSet ?? Attention.preferredKernels()
            statement.facts = [
                ("version", version), ("MPI", World.library), ("kernels", kernels.name),
                ("arguments", CommandLine.arguments.dropFirst().joined(separator: " ")),
            ]
        } catch {
            let code = exitCode(for: error)
            statement.failure = code == .success || code == .validationFailure ? fullMessage(for: error) : "\(error)"
            statement.status = code.rawValue
        }
        try world.agree(statement)
        return command!
    }

    /// Ends every rank with the same status; rank 0 says why.
    private static func finish(_ world: World, _ end: Disagreement) -> Never {
        if world.rank == 0 {
            let isHelp = end.status == 0
            let rank = world.size > 1 && !isHelp ? "rank \(end.rank): " : ""
            _ = writeAll(
                isHelp ? end.reason + "\n" : "quiet-ring: \(rank)\(end.reason)\n",
                to: isHelp ? STDOUT_FILENO : STDERR_FILENO)
        }
        ending(after: 60) { world.end() }
        endProcess(end.status)
    }
}

/// Not `exit`, which commands have a method of.
private func endProcess(_ status: Int32) -> Never { exit(status) }

extension Attention {
    /// The kernel set that is used where none is named.
    static func preferredKernels() throws -> KernelSet {
        try Attention(AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1), sink: .softmax1).kernels
    }
}
