// SPDX-License-Identifier: Apache-2.0
// Lab.swift - the command `lab`.

import ArgumentParser
import COpenBLAS
import Foundation
import Laboratory

@main
struct Lab: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lab", abstract: "Trains small models from scratch and tests claims about attention.",
        subcommands: [Train.self, Evaluate.self, Export.self, RunExperiment.self, MakeReport.self])

    static func main() {
        restart_with_openblas_kernels(CommandLine.unsafeArgv)
        main(nil)
    }
}

struct DataOptions: ParsableArguments {
    @Option(help: "A file; its last tenth is for tests.") var text: String?
    @Option(help: "causal, masked, passkey, or backcopy (made from the text's bigrams).") var objective = "causal"

    func source() throws -> any DataSource {
        if objective == "passkey" { return Passkey() }
        guard let text else { throw ValidationError("--text: a file is needed for \(objective)") }
        let bytes = try ByteText(path: text)
        switch objective {
        case "causal": return CausalText(bytes)
        case "masked": return MaskedText(bytes)
        case "backcopy": return try BigramBackcopy(bytes)
        default: throw ValidationError("--objective: expected causal, masked, passkey or backcopy, got \(objective)")
        }
    }

    func check(length: Int) throws {
        if let text { try ByteText(path: text).check(length: length) }
        if objective == "passkey", length < Passkey().shortest {
            throw ValidationError("--length: a passkey needs \(Passkey().shortest) bytes or more")
        }
    }
}

struct RunOptions: ParsableArguments {
    @OptionGroup var data: DataOptions
    @Option(help: "A JSON file of model settings; fields left out have their defaults.") var model: String?
    @Option(help: "Steps in all.") var steps = 1000
    @Option(help: "Sequences of a step.") var batch = 16
    @Option(help: "Tokens of a sequence.") var length = 64
    @Option(help: "Parts of a step, whose gradients are added.") var slices = 2
    @Option(help: "Slices at work at once; changes no bit.") var threads = 1
    @Option(help: "The learning rate after the warm-up.") var learningRate = 3e-3
    @Option(help: "Of weights and batches.") var seed: UInt64 = 1

    func trainer() throws -> Trainer {
        try data.check(length: length)
        let source = try data.source()
        var c = ModelConfiguration()
        if let model {
            guard let json = FileManager.default.contents(atPath: model) else {
                throw LabError("\(model): cannot be read")
            }
            c = try JSONDecoder().decode(ModelConfiguration.self, from: json)
        } else {
            (c.vocabulary, c.trainedLength, c.causal) = (source.vocabulary, length, data.objective != "masked")
        }
        var t = TrainingConfiguration()
        (t.steps, t.batch, t.length, t.slices, t.threads) = (steps, batch, length, slices, threads)
        (t.learningRate, t.seed, t.warmup) = (learningRate, seed, min(50, steps / 10))
        return try Trainer(try Transformer(c, seed: seed), source, t)
    }
}

struct Train: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Trains a model, or goes on from its checkpoint.",
        discussion: """
            A killed run goes on from its last checkpoint, to the same bits: give the same command again. Losses are printed as
            lines of JSON.
            """)
    @OptionGroup var settings: RunOptions
    @Option(help: "Steps between checkpoints.") var every = 100
    @Option(help: "Stop after this step, as if killed.") var stopAfter: Int?
    @Option(help: "The checkpoint, safetensors.") var output: String

    func run() throws {
        guard every > 0 else { throw ValidationError("--every: expected 1 or more, got \(every)") }
        let start = ContinuousClock.now
        let trainer = try settings.trainer()
        try trainer.run(label: "train", checkpoint: output, every: every) { trainer in
            let seconds = (ContinuousClock.now - start) / .seconds(1)
            print("{\"step\":\(trainer.step),\"loss\":\(trainer.losses[trainer.step - 1]),\"seconds\":\(seconds)}")
            fflush(nil)
            if trainer.step == stopAfter {
                try Checkpoint.save(trainer, to: output)
                throw ExitCode(0)
            }
        }
    }
}

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "First weights and all batches of a run, for another program to do the same.")
    @OptionGroup var settings: RunOptions
    @Option(help: "A safetensors file: tensors model/..., tokens and targets [steps, batch, length].") var output:
        String

    func run() throws { try Checkpoint.export(try settings.trainer(), to: output) }
}

struct Evaluate: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "The loss of a trained model on the text's last tenth.")
    @OptionGroup var data: DataOptions
    @Argument(help: "The checkpoint.") var checkpoint: String
    @Option(help: "Tokens of a sequence.") var length: [Int] = [64]
    @Option(help: "Sequences.") var sequences = 64
    @Option(help: "Which sequences.") var seed: UInt64 = 1
    @Option(help: "Dynamic NTK with this factor.") var ntk: Double?

    func run() throws {
        let (model, parameters) = try Checkpoint.model(at: checkpoint)
        let changed = try model.with { if let ntk { $0.ntkFactor = ntk } }
        let source = try data.source()
        for length in length {
            guard length > 0, sequences > 0 else { throw ValidationError("--length, --sequences: expected 1 or more") }
            try data.check(length: length)
            let result = try changed.evaluate(
                source, sequences: sequences, length: length, seed: seed, parameters: parameters)
            print("{\"length\":\(length),\"loss\":\(result.loss),\"accuracy\":\(result.accuracy)}")
        }
    }
}

struct RunExperiment: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "experiment", abstract: "Runs an experiment; one that was killed goes on.",
        discussion: Experiments.all.map { "\($0.name): \($0.question)" }.joined(separator: "\n"))
    @Argument(help: "Its name.") var name: String
    @Option(help: "Seeds, from 1 on.") var seeds: Int?
    @Option(help: "Steps of training.") var steps: Int?
    @Option(help: "A file, for the experiments on text.") var text: String?
    @Flag(help: "Tiny: shows that it runs, tests nothing.") var quick = false
    @Option(help: "A folder for results.") var output: String

    func run() throws {
        guard let experiment = Experiments.all.first(where: { $0.name == name }) else {
            let names = Experiments.all.map(\.name).joined(separator: ", ")
            throw ValidationError("experiment: expected one of \(names), got \(name)")
        }
        guard (seeds ?? 1) > 0, (steps ?? 1) > 0 else { throw ValidationError("--seeds, --steps: expected 1 or more") }
        let bench = Bench(
            seeds: seeds ?? (quick ? 1 : 5), steps: steps, quick: quick, textPath: text, folder: output)
        try bench.run(experiment)
        for file in try Report.write(folder: output) { print(file) }
    }
}

struct MakeReport: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "report", abstract: "Writes tables and figures of a folder's results again.")
    @Argument(help: "The folder.") var folder: String

    func run() throws { for file in try Report.write(folder: folder) { print(file) } }
}
