// SPDX-License-Identifier: Apache-2.0
// Support.swift - small models and texts, and a trainer with losses of its own.

import Foundation
import QuietAttention

@testable import Laboratory

let sampleText = try! ByteText(
    Array(String(repeating: "in the beginning was the word, and the word was with all of them. ", count: 40).utf8))

/// A model of two layers, width 16, 2 heads of 8.
func smallModel(_ change: (inout ModelConfiguration) -> Void = { _ in }) -> ModelConfiguration {
    var c = ModelConfiguration()
    (c.dimension, c.heads, c.keyValueHeads, c.hidden, c.deviation, c.trainedLength) = (16, 2, 1, 24, 0.2, 8)
    c.vocabulary = 128
    change(&c)
    return c
}

func smallTraining(_ change: (inout TrainingConfiguration) -> Void = { _ in }) -> TrainingConfiguration {
    var t = TrainingConfiguration()
    (t.steps, t.batch, t.length, t.slices, t.warmup) = (6, 6, 12, 3, 2)
    change(&t)
    return t
}

/// Text with a vocabulary of 128.
struct SmallText: DataSource {
    let vocabulary = 128
    func batch(sequences: Int, length: Int, random: Laboratory.Random, testing: Bool) -> Batch {
        CausalText(sampleText).batch(sequences: sequences, length: length, random: random, testing: testing)
    }
}

func smallTrainer(
    _ model: ModelConfiguration = smallModel(), _ training: TrainingConfiguration = smallTraining()
) throws -> Trainer { try Trainer(try Transformer(model, seed: 3), SmallText(), training) }

/// The loss of a batch and its gradient in all parameters.
func lossAndGradients(_ model: Transformer, _ batch: Batch, _ parameters: FlatBuffer) throws -> (Double, FlatBuffer) {
    let trace = try model.forward(batch.tokens, batch: batch.sequences, parameters, workspace: AttentionWorkspace())
    let targets = Double(batch.targets.count { $0 >= 0 })
    let loss = CrossEntropy.evaluate(
        trace.logits, batch.targets, vocabulary: model.configuration.vocabulary, weight: Float(1 / targets))
    let gradients = FlatBuffer(count: parameters.count)
    try model.backward(loss.gradient, trace, parameters, gradients)
    return (loss.sum / targets, gradients)
}
