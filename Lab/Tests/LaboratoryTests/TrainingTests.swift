// SPDX-License-Identifier: Apache-2.0
// TrainingTests.swift - the same bits however a run is cut up, and files that cannot be gone on from.

import Foundation
import Safetensors
import Testing

@testable import Laboratory

@Suite final class TrainingTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("lab-\(UUID().uuidString)").path

    init() throws { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    private func finished(_ trainer: Trainer) throws -> Trainer {
        while trainer.step < trainer.configuration.steps { try trainer.advance() }
        return trainer
    }

    @Test(arguments: 0...5) func stopsAndGoesOnWithTheSameBits(_ step: Int) throws {
        let path = folder + "/run.safetensors"
        let whole = try finished(smallTrainer())
        let first = try smallTrainer()
        for _ in 0..<step { try first.advance() }
        try Checkpoint.save(first, to: path)
        let second = try smallTrainer()
        try Checkpoint.restore(second, from: path)
        _ = try finished(second)
        #expect(second.losses.map(\.bitPattern) == whole.losses.map(\.bitPattern))
        #expect(second.parameters.array.map(\.bitPattern) == whole.parameters.array.map(\.bitPattern))
    }

    /// 3 slices on 1, 2 and 3 threads, of a model whose attention has learned sinks and scales.
    @Test func threadsChangeNoBit() throws {
        let model = smallModel { ($0.sink, $0.scaling, $0.activation) = (.learned, .scalable, .swiglu) }
        let runs = try [1, 2, 3].map { threads in
            try finished(smallTrainer(model, smallTraining { $0.threads = threads })).parameters.array.map(\.bitPattern)
        }
        #expect(runs[0] == runs[1])
        #expect(runs[0] == runs[2])
    }

    /// Attention by products of bfloat16: other losses, and nearly the same.
    @Test func productsOfBFloat16TrainAlike() throws {
        let losses = try [ModelConfiguration.Products.float32, .bfloat16].map { products in
            try finished(smallTrainer(smallModel { $0.products = products })).losses
        }
        #expect(losses[0] != losses[1])
        for (plain, rounded) in zip(losses[0], losses[1]) { #expect(abs(plain - rounded) < 0.01 * plain) }
    }

    /// Gradients of slices sum to those of the whole batch, but for rounding.
    @Test func slicesAreAccumulation() throws {
        func gradients(_ model: Transformer, _ batch: Batch) throws -> [Float] {
            try lossAndGradients(model, batch, model.parameters.firstValues()).1.array
        }
        let model = try Transformer(smallModel(), seed: 3)
        let (a, b) = (
            SmallText().batch(sequences: 2, length: 8, random: Random(1), testing: false),
            SmallText().batch(sequences: 2, length: 8, random: Random(2), testing: false)
        )
        let both = Batch(sequences: 4, tokens: a.tokens + b.tokens, targets: a.targets + b.targets)
        let (ga, gb, whole) = (try gradients(model, a), try gradients(model, b), try gradients(model, both))
        for index in whole.indices { #expect(abs(whole[index] - (ga[index] + gb[index]) / 2) < 1e-5) }
    }

    @Test func damagedCheckpointsAreErrorsAndChangeNothing() throws {
        let path = folder + "/run.safetensors"
        let trainer = try smallTrainer()
        try trainer.advance()
        try Checkpoint.save(trainer, to: path)
        let data = try #require(FileManager.default.contents(atPath: path))
        let target = try smallTrainer()
        let before = target.parameters.array
        func refuse(_ damaged: Data) throws {
            try damaged.write(to: URL(fileURLWithPath: path))
            #expect(throws: (any Error).self) { try Checkpoint.restore(target, from: path) }
            #expect(target.parameters.array == before)
            #expect(target.step == 0)
        }
        for length in [0, 7, 8, 100, data.count / 2, data.count - 1] { try refuse(data.prefix(length)) }
        let text = String(decoding: data.prefix(4000), as: UTF8.self)
        for (old, new) in [
            ("\"step\":\"1\"", "\"step\":\"2\""), ("laboratory 1", "laboratory 9"), ("lastNorm", "lostNorm"),
        ] {
            try #require(text.contains(old) || String(decoding: data, as: UTF8.self).contains(old))
            var damaged = data
            damaged.replaceSubrange(try #require(damaged.range(of: Data(old.utf8))), with: Data(new.utf8))
            try refuse(damaged)
        }
        try data.write(to: URL(fileURLWithPath: path))
        let others = [
            try smallTrainer(smallModel { $0.sink = .softmax1 }),
            try smallTrainer(smallModel(), smallTraining { $0.seed = 9 }),
        ]
        for other in others { #expect(throws: LabError.self) { try Checkpoint.restore(other, from: path) } }
        try Checkpoint.restore(target, from: path)
        #expect(target.step == 1)
        #expect(throws: (any Error).self) { try Checkpoint.restore(target, from: folder + "/none") }
    }

    /// Against AdamW written out once, of one weight with decay, two steps.
    @Test func adamW() throws {
        let c = smallTraining { ($0.learningRate, $0.warmup, $0.decline, $0.clip) = (0.1, 0, .none, 0) }
        let (weight, gradient) = (FlatBuffer(count: 1), FlatBuffer(count: 1))
        weight.base[0] = 2
        let slot = Slot(name: "w", shape: [1], offset: 0, decays: true)
        let optimiser = AdamW(count: 1)
        var (w, m, v) = (2.0, 0.0, 0.0)
        for (step, g) in [0.5, -0.25].enumerated() {
            gradient.base[0] = Float(g)
            #expect(optimiser.update(weight, gradient, [slot], step: step, c) == abs(g))
            (m, v) = (0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g)
            let (cm, cv) = (1 - pow(0.9, Double(step + 1)), 1 - pow(0.95, Double(step + 1)))
            w = w * (1 - 0.1 * 0.1) - 0.1 * (m / cm) / ((v / cv).squareRoot() + 1e-8)
        }
        #expect(abs(Double(weight.base[0]) - w) < 1e-6)
        // A gradient of norm 4 is clipped to 1: the first moment is a tenth of that.
        let clipping = AdamW(count: 1)
        gradient.base[0] = 4
        _ = clipping.update(weight, gradient, [slot], step: 0, smallTraining { $0.clip = 1 })
        #expect(abs(clipping.first.base[0] - 0.1) < 1e-7)
    }

    @Test func ratesWarmUpAndFall() {
        let c = smallTraining { ($0.steps, $0.warmup, $0.learningRate, $0.floor) = (110, 10, 1, 0.1) }
        #expect(abs(c.rate(at: 4) - 0.5) < 1e-12)
        #expect(abs(c.rate(at: 10) - 1) < 1e-12)
        #expect(abs(c.rate(at: 60) - 0.55) < 1e-12)
        #expect(abs(c.rate(at: 110) - 0.1) < 1e-12)
    }

    @Test func senselessSettingsAreErrors() {
        for change: (inout TrainingConfiguration) -> Void in [
            { $0.batch = 0 }, { $0.slices = 4 }, { $0.threads = 0 }, { $0.learningRate = .nan }, { $0.beta1 = 1 },
        ] { #expect(throws: LabError.self) { _ = try smallTrainer(smallModel(), smallTraining(change)) } }
        for change: (inout ModelConfiguration) -> Void in [
            { $0.heads = 3 }, { $0.heads = 0 }, { $0.vocabulary = 5 }, { $0.deviation = -1 }, { $0.trainedLength = 1 },
            { $0.layers = -1 },
        ] { #expect(throws: LabError.self) { _ = try smallTrainer(smallModel(change)) } }
        #expect(throws: LabError.self) {
            try JSONDecoder().decode(ModelConfiguration.self, from: Data("{\"layer\":3}".utf8))
        }
    }
}
