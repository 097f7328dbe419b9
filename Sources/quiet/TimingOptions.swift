// SPDX-License-Identifier: Apache-2.0
// TimingOptions.swift - what is timed, over which seeded inputs, and for how long: options of quiet bench and of quiet-ring bench.

import ArgumentParser
import QuietAttention

struct TimingOptions: ParsableArguments {
    enum Pass: String, CaseIterable, ExpressibleByArgument {
        case forward, decode, backward
    }

    @Option(help: "What to time.")
    var pass = Pass.forward

    @OptionGroup var problem: SeededShape

    @OptionGroup(title: "Norms") var norms: NormOptions

    @OptionGroup(title: "Positions") var position: PositionOptions

    @OptionGroup(title: "Scores and weights") var scores: ScoreOptions

    @OptionGroup var machine: MachineOptions

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("How long to time; some runs at least.", valueName: "s"))
    var seconds = 1.0

    @Option(parsing: .unconditional, help: "Seed of the inputs.")
    var seed: UInt64 = 1

    @Flag(help: "Print the JSON object on one line.")
    var json = false

    var shape: AttentionShape { get throws { try problem.shape(decodes: pass == .decode) } }

    var options: AttentionOptions {
        AttentionOptions(norms: norms, position: position, scores: scores, machine: machine)
    }

    func validate() throws {
        guard seconds > 0, seconds <= 86_400 else {
            throw ValidationError("--seconds: expected more than 0 and at most 86400, got \(seconds)")
        }
        let shape = try usage { try self.shape }
        try problem.keyLengths?.check(shape)
        try position.check(headDimension: shape.headDimension)
        try scores.check(sink: problem.sink)
        try norms.check()
    }
}
