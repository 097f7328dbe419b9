// SPDX-License-Identifier: Apache-2.0
// Evaluation.swift - the loss of a model on data it was not trained on.

import QuietAttention

public struct Evaluation: Sendable, Codable, Equatable {
    /// Nats per target.
    public var loss: Double
    /// The share of targets that are the likeliest token.
    public var accuracy: Double
    /// The share of sequences in which all are.
    public var wholeAccuracy: Double
}

extension Transformer {
    /// The loss on `sequences` sequences of a length, a few at a time.
    public func evaluate(
        _ data: any DataSource, sequences: Int, length: Int, seed: UInt64, parameters: FlatBuffer
    ) throws -> Evaluation {
        prepareProcess()
        let workspace = AttentionWorkspace()
        var (sum, targets, correct, whole) = (0.0, 0, 0, 0)
        for sequence in 0..<sequences {
            let batch = data.batch(
                sequences: 1, length: length, random: Random(seed, 2, length, sequence), testing: true)
            let logits = try forward(batch.tokens, batch: 1, parameters, workspace: workspace).logits
            let result = CrossEntropy.evaluate(
                logits, batch.targets, vocabulary: configuration.vocabulary, weight: 0)
            let here = batch.targets.count { $0 >= 0 }
            sum += result.sum
            targets += here
            correct += result.correct
            whole += result.correct == here ? 1 : 0
        }
        return Evaluation(
            loss: sum / Double(max(targets, 1)), accuracy: Double(correct) / Double(max(targets, 1)),
            wholeAccuracy: Double(whole) / Double(max(sequences, 1)))
    }

    /// The same model with other options, such as dynamic NTK: parameters fit as long as tensors are the same.
    public func with(_ change: (inout ModelConfiguration) -> Void) throws -> Transformer {
        var other = configuration
        change(&other)
        let model = try Transformer(other, seed: 0)
        guard model.parameters.slots == parameters.slots else {
            throw LabError("the changed model has other tensors")
        }
        return model
    }
}
