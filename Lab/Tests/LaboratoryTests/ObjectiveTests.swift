// SPDX-License-Identifier: Apache-2.0
// ObjectiveTests.swift - what data asks of a model, that it can be learned, and that experiments run and report.

import Foundation
import Testing

@testable import Laboratory

@Suite struct ObjectiveTests {
    @Test func causalTargetsAreTheNextBytes() throws {
        let text = try ByteText((0...255).map(UInt8.init), testShare: 0.25)
        for testing in [false, true] {
            let batch = CausalText(text).batch(sequences: 40, length: 20, random: Random(1), testing: testing)
            #expect(zip(batch.tokens, batch.targets).allSatisfy { $1 == $0 + 1 })
            // Training and test are apart.
            #expect(batch.targets.allSatisfy { testing ? $0 >= 192 : $0 < 192 })
        }
    }

    @Test func maskedTargetsAreHidden() throws {
        let text = try ByteText([UInt8](repeating: 65, count: 5000))
        let batch = MaskedText(text).batch(sequences: 200, length: 64, random: Random(2), testing: false)
        let hidden = batch.targets.indices.filter { batch.targets[$0] >= 0 }
        #expect(abs(Double(hidden.count) / 12800 - 0.15) < 0.015)
        #expect(hidden.allSatisfy { batch.targets[$0] == 65 })
        #expect(abs(Double(hidden.count { batch.tokens[$0] == 256 }) / Double(hidden.count) - 0.8) < 0.04)
        #expect(batch.targets.indices.allSatisfy { batch.targets[$0] >= 0 || batch.tokens[$0] == 65 })
    }

    @Test func passkeysStandInTheText() throws {
        let batch = Passkey(digits: 4).batch(sequences: 20, length: 64, random: Random(3), testing: false)
        for start in stride(from: 0, to: batch.tokens.count, by: 64) {
            let targets = batch.targets[start..<start + 64]
            #expect(targets.dropLast(4).allSatisfy { $0 == -1 })
            let key = targets.suffix(4).map { UInt8($0) }
            let text = String(decoding: batch.tokens[start..<start + 64].map { UInt8($0) }, as: UTF8.self)
            #expect(text.contains(" key " + String(decoding: key, as: UTF8.self) + "."))
            #expect(text.contains(" key? " + String(decoding: key.dropLast(), as: UTF8.self)))
        }
    }

    @Test func digitsWeighAsMuchAsText() throws {
        let data = PositionExtrapolation.Mixture(text: CausalText(sampleText), passkey: Passkey(digits: 3))
        let batch = data.batch(sequences: 8, length: 32, random: Random(4), testing: false)
        #expect(batch.weights.count == batch.targets.count)
        var (text, digits) = (batch, batch)
        for place in batch.targets.indices {
            if place < 4 * 32 { digits.targets[place] = -1 } else { text.targets[place] = -1 }
        }
        #expect(digits.targets.count { $0 >= 0 } == 4 * 3)
        #expect(text.totalWeight == 4 * 32)
        #expect(abs(digits.totalWeight - text.totalWeight) < 1e-3)
    }

    @Test func backcopiesFollowTriggers() throws {
        let data = try BigramBackcopy(sampleText, symbols: 15)
        let batch = data.batch(sequences: 30, length: 40, random: Random(4), testing: false)
        var copies = 0
        for index in batch.tokens.indices {
            if index % 40 == 0 { #expect(batch.tokens[index] == BigramBackcopy.begin) }
            guard (1...3).contains(batch.tokens[index]) else { continue }
            #expect(batch.targets[index] == batch.tokens[index - 1])
            copies += 1
        }
        #expect(copies > 100)
    }

    @Test func batchesDependOnSeedAndStepAlone() throws {
        let (a, b) = (try smallTrainer(), try smallTrainer())
        try a.advance()
        #expect(a.batch(step: 4, slice: 1) == b.batch(step: 4, slice: 1))
        #expect(a.batch(step: 4, slice: 1) != b.batch(step: 4, slice: 2))
        #expect(a.batch(step: 4, slice: 1) != b.batch(step: 5, slice: 1))
    }

    /// Each objective is learned: far below the loss of guessing all tokens alike, in a few hundred steps.
    @Test(arguments: ["causal", "masked", "backcopy", "passkey"]) func isLearned(_ objective: String) throws {
        let data: any DataSource =
            switch objective {
            case "causal": CausalText(sampleText)
            case "masked": MaskedText(sampleText)
            case "backcopy": try BigramBackcopy(sampleText)
            default: Passkey(digits: 1)
            }
        let model = smallModel {
            ($0.vocabulary, $0.causal, $0.dimension) = (data.vocabulary, objective != "masked", 32)
        }
        let training = smallTraining {
            ($0.steps, $0.batch, $0.length, $0.slices, $0.learningRate) = (200, 8, 32, 1, 1e-2)
            if objective == "passkey" { $0.steps = 400 }
        }
        let trainer = try Trainer(try Transformer(model, seed: 1), data, training)
        try trainer.run(label: objective, isQuiet: true)
        let end = trainer.losses.suffix(20).reduce(0, +) / 20
        // Guessing a digit costs log 10 = 2.30; the text repeats one sentence, whose bytes have an entropy of 2.67 by themselves.
        #expect(end < (objective == "passkey" ? 1.5 : 2.4), "\(objective): \(end)")
        #expect(end < trainer.losses[0] / 2)
    }

    /// Shares by the law, and a claim of before: the report has the claim of now, which holds; then of a share that breaks it.
    @Test(arguments: [1.0, 1.02]) func reportsJudgeAnew(_ factor: Double) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("lab-\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        var measurement = Measurement()
        for n in [64, 128, 256, 512, 1024] {
            let shares = (n - 31...n).map { keys in 1 / Double(keys + 1) }
            let law: Double = shares.reduce(0, +) / 32
            measurement.numbers["sink share, untrained, n \(n)"] = n == 256 ? factor * law : law
        }
        var outcome = Outcome(
            experiment: "sinkshare", question: "", method: "", machine: "", commit: "abc", date: "", command: "",
            settings: [:], variants: ["s = 0"])
        outcome.runs = [.init(variant: "s = 0", seed: 1, seconds: 1, measurement: measurement)]
        outcome.verdicts = [Verdict("a claim of before", false, "")]
        try outcome.write(folder + "/sinkshare.json")
        _ = try Report.write(folder: folder)
        let again = try Outcome.read(folder + "/sinkshare.json")
        #expect(again.verdicts.first?.holds == (factor == 1))
        #expect(again.commit == "abc")
        let report = try String(contentsOfFile: folder + "/report.md", encoding: .utf8)
        #expect(!report.contains("a claim of before"))
    }

    @Test(arguments: Experiments.all.map(\.name)) func quickExperimentsReport(_ name: String) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("lab-\(UUID().uuidString)").path
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let experiment = try #require(Experiments.all.first { $0.name == name })
        let bench = Bench(seeds: 1, steps: 2, quick: true, textPath: nil, folder: folder)
        try bench.run(experiment)
        let first = try Outcome.read("\(folder)/\(name).json")
        // All runs are there: nothing is run again.
        try bench.run(experiment)
        let twice = try Outcome.read("\(folder)/\(name).json")
        #expect(first.runs.map(\.seconds) == twice.runs.map(\.seconds))
        #expect(first.runs.count == experiment.variants.count)
        let files = try Report.write(folder: folder)
        #expect(files.contains("\(folder)/report.html"))
        for file in files {
            let text = try String(contentsOfFile: file, encoding: .utf8)
            #expect(!text.isEmpty)
            if file.hasSuffix(".svg") {
                #expect(text.hasPrefix("<svg"))
                #expect(!text.contains("nan") && !text.contains("inf\""))
            }
        }
        let other = Bench(seeds: 1, steps: 3, quick: true, textPath: nil, folder: folder)
        #expect(throws: LabError.self) { try other.run(experiment) }
    }
}
