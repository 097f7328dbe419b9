// SPDX-License-Identifier: Apache-2.0
// Trainer.swift - steps of training, which may stop after any and go on with the same bits.

import Foundation
import QuietAttention

/// A model, its optimiser and its data.
///
/// A step has `slices` parts. Each is a pass forward and back into a gradient of its own, and these are added in the order of
/// the slices: so the bits do not depend on how many threads there are, and every product runs on one thread.
public final class Trainer {
    public let model: Transformer
    public let configuration: TrainingConfiguration
    public let parameters: FlatBuffer
    let optimiser: AdamW
    /// Losses of all steps so far.
    public internal(set) var losses: [Double] = []
    private let data: any DataSource
    private let total: FlatBuffer
    private let workers: [Worker]

    public var step: Int { losses.count }

    private struct Worker: Sendable {
        let gradients: FlatBuffer
        let workspace = AttentionWorkspace()
    }

    public init(_ model: Transformer, _ data: any DataSource, _ configuration: TrainingConfiguration) throws {
        try configuration.check()
        guard data.vocabulary <= model.configuration.vocabulary else {
            throw LabError("vocabulary: expected \(data.vocabulary) or more, got \(model.configuration.vocabulary)")
        }
        prepareProcess()
        self.model = model
        self.data = data
        self.configuration = configuration
        parameters = model.parameters.firstValues()
        optimiser = AdamW(count: parameters.count)
        total = FlatBuffer(count: parameters.count)
        let size = model.parameters.count
        workers = (0..<min(configuration.threads, configuration.slices)).map { _ in
            Worker(gradients: FlatBuffer(count: size))
        }
    }

    /// The batch of a slice of a step.
    public func batch(step: Int, slice: Int) -> Batch {
        data.batch(
            sequences: configuration.batch / configuration.slices, length: configuration.length,
            random: Random(configuration.seed, 1, step, slice), testing: false)
    }

    /// One step. Returns its loss, in nats per target.
    @discardableResult
    public func advance() throws -> Double {
        let batches = (0..<configuration.slices).map { batch(step: step, slice: $0) }
        let all = batches.reduce(0) { $0 + $1.totalWeight }
        let weight = all > 0 ? Float(1 / all) : 1
        var sum = 0.0
        for wave in stride(from: 0, to: batches.count, by: workers.count) {
            let part = Array(batches[wave..<min(wave + workers.count, batches.count)])
            for (index, loss) in try evaluate(part, weight: weight).enumerated() {
                sum += loss
                let gradients = workers[index].gradients
                if wave + index == 0 { total.copy(gradients) } else { total.add(gradients) }
            }
        }
        let loss = all > 0 ? sum / all : 0
        guard loss.isFinite else { throw LabError("step \(step): the loss is \(loss)") }
        _ = optimiser.update(parameters, total, model.parameters.slots, step: step, configuration)
        losses.append(loss)
        return loss
    }

    /// Losses of slices, each on a thread of its own; gradients are in the workers.
    private func evaluate(_ batches: [Batch], weight: Float) throws -> [Double] {
        let (model, parameters, workers) = (model, parameters, workers)
        let results = Results(count: batches.count)
        @Sendable func work(_ index: Int) {
            results.set(
                index,
                Result { () throws -> Double in
                    let (batch, worker) = (batches[index], workers[index])
                    worker.gradients.clear()
                    let trace = try model.forward(
                        batch.tokens, batch: batch.sequences, parameters, workspace: worker.workspace)
                    let loss = CrossEntropy.evaluate(
                        trace.logits, batch.targets, vocabulary: model.configuration.vocabulary, weight: weight,
                        weights: batch.weights)
                    try model.backward(loss.gradient, trace, parameters, worker.gradients)
                    return loss.sum
                })
        }
        if batches.count == 1 {
            work(0)
        } else {
            DispatchQueue.concurrentPerform(iterations: batches.count, execute: work)
        }
        return try results.values()
    }
}

/// Results of slices, each written once by its own thread.
private final class Results: @unchecked Sendable {
    private let lock = NSLock()
    private var results: [Result<Double, any Error>?]

    init(count: Int) { results = Array(repeating: nil, count: count) }

    func set(_ index: Int, _ result: Result<Double, any Error>) { lock.withLock { results[index] = result } }

    func values() throws -> [Double] { try results.map { try $0!.get() } }
}
