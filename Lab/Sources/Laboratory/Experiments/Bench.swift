// SPDX-License-Identifier: Apache-2.0
// Bench.swift - runs experiments: every finished run is kept as JSON, every unfinished one as a checkpoint.

import Foundation

public final class Bench {
    public let seeds: Int
    public let steps: Int?
    public let quick: Bool
    let textPath: String?
    let folder: String
    private var loaded: ByteText?

    public init(seeds: Int, steps: Int?, quick: Bool, textPath: String?, folder: String) {
        (self.seeds, self.steps, self.quick, self.textPath, self.folder) = (seeds, steps, quick, textPath, folder)
    }

    /// The text that was given; without one, in quick runs alone, sentences drawn from a few words.
    public func text() throws -> ByteText {
        if let loaded { return loaded }
        let text: ByteText
        if let textPath {
            text = try ByteText(path: textPath)
        } else {
            guard quick else { throw LabError("--text: this experiment needs a text") }
            var random = Random(7)
            let words = "the of and in a light water earth day night man said was made called seed fruit great god"
                .split(
                    separator: " ")
            text = try ByteText(
                Array((0..<8000).map { _ in words[random.below(words.count)] }.joined(separator: " ").utf8))
        }
        loaded = text
        return text
    }

    /// Trains to the end, from the checkpoint of this variant and seed if there is one.
    public func train(
        _ model: ModelConfiguration, _ data: any DataSource, _ training: TrainingConfiguration, _ variant: String,
        observe: (Trainer) throws -> Void = { _ in }
    ) throws -> Trainer {
        let path = "\(folder)/\(file(variant, training.seed)).safetensors"
        let trainer = try Trainer(try Transformer(model, seed: training.seed), data, training)
        try trainer.run(
            label: "\(variant), seed \(training.seed)", checkpoint: quick ? nil : path, every: 250, observe: observe)
        try? FileManager.default.removeItem(atPath: path)
        return trainer
    }

    private func file(_ variant: String, _ seed: UInt64) -> String {
        variant.map { $0.isLetter || $0.isNumber ? String($0) : "-" }.joined() + "-\(seed)"
    }

    public func run(_ experiment: any Experiment) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let path = "\(folder)/\(experiment.name).json"
        var outcome = try resumed(path, experiment)
        for seed in 1...UInt64(seeds) {
            for variant in experiment.variants
            where !outcome.runs.contains(where: { $0.variant == variant && $0.seed == seed }) {
                let start = Date()
                let measurement = try experiment.measure(variant, seed: seed, self)
                outcome.runs.append(
                    .init(
                        variant: variant, seed: seed, seconds: Date().timeIntervalSince(start), measurement: measurement
                    ))
                try outcome.write(path)
            }
        }
        outcome.verdicts = quick ? [] : experiment.tests(outcome)
        try outcome.write(path)
    }

    /// The runs that are done already, if they were made with these settings.
    private func resumed(_ path: String, _ experiment: any Experiment) throws -> Outcome {
        let settings = [
            "steps": steps.map { "\($0)" } ?? "default", "quick": "\(quick)", "text": textPath ?? "none",
        ]
        var outcome = Outcome(
            experiment: experiment.name, question: experiment.question, method: experiment.method,
            machine: Machine.name, commit: Machine.commit, date: ISO8601DateFormatter().string(from: Date()),
            command: CommandLine.arguments.dropFirst().joined(separator: " "), settings: settings,
            variants: experiment.variants)
        guard FileManager.default.fileExists(atPath: path) else { return outcome }
        let old = try Outcome.read(path)
        guard old.settings == settings else {
            func named(_ settings: [String: String]) -> String {
                settings.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
            }
            throw LabError(
                "\(path): was made with \(named(old.settings)), and not with \(named(settings)): choose another folder")
        }
        outcome.runs = old.runs
        return outcome
    }
}

/// Where results come from.
enum Machine {
    static var name: String {
        let info = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
        func field(_ name: String) -> String? {
            info.split(separator: "\n").first { $0.hasPrefix(name) }?.split(separator: ":").last?
                .trimmingCharacters(in: .whitespaces)
        }
        let model = field("model name") ?? "unknown CPU"
        let numbers = [field("cpu family").map { "family \($0)" }, field("model\t").map { "model \($0)" }]
        return ([model] + numbers.compactMap { $0 }).joined(separator: ", ")
            + ", \(ProcessInfo.processInfo.activeProcessorCount) CPUs, one used"
    }

    static var commit: String {
        let git = Process()
        git.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        git.arguments = ["git", "rev-parse", "--short=12", "HEAD"]
        let pipe = Pipe()
        git.standardOutput = pipe
        git.standardError = FileHandle.nullDevice
        guard (try? git.run()) != nil else { return "unknown" }
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        git.waitUntilExit()
        let text = String(decoding: output, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        return text.isEmpty ? "unknown" : text
    }
}
