// SPDX-License-Identifier: Apache-2.0
// TrainingConfiguration.swift - how a model is trained.

import Foundation

public struct TrainingConfiguration: Codable, Sendable, Equatable {
    public enum Decline: String, Codable, Sendable { case cosine, none }

    public var steps = 1000
    /// Sequences of a step, and their length.
    public var batch = 16
    public var length = 64
    /// Parts of a step, each a pass forward and back of its own; gradients are added in their order. What threads share,
    /// and what accumulation is: more slices need less memory.
    public var slices = 2
    /// Slices at work at once; changes no bit.
    public var threads = 1
    public var learningRate = 3e-3
    /// Steps until the learning rate is reached, linearly.
    public var warmup = 50
    public var decline = Decline.cosine
    /// Where the cosine ends, as a share of the learning rate.
    public var floor = 0.1
    public var beta1 = 0.9
    public var beta2 = 0.95
    public var epsilon = 1e-8
    /// Decoupled, of matrices alone.
    public var decay = 0.1
    /// The largest norm of all gradients together; 0: any.
    public var clip = 1.0
    public var seed: UInt64 = 1

    public init() {}

    public func check() throws {
        for (name, value) in [("batch", batch), ("length", length), ("slices", slices), ("threads", threads)]
        where value < 1 { throw LabError("\(name): expected 1 or more, got \(value)") }
        guard steps >= 0, warmup >= 0 else { throw LabError("steps, warmup: expected 0 or more") }
        guard batch % slices == 0 else {
            throw LabError("batch: expected a multiple of the \(slices) slices, got \(batch)")
        }
        for (name, value) in [
            ("learningRate", learningRate), ("floor", floor), ("epsilon", epsilon), ("decay", decay), ("clip", clip),
        ] where !(value >= 0 && value.isFinite) {
            throw LabError("\(name): expected a finite number, 0 or more, got \(value)")
        }
        for (name, value) in [("beta1", beta1), ("beta2", beta2)] where !(value >= 0 && value < 1) {
            throw LabError("\(name): expected 0 to below 1, got \(value)")
        }
    }

    /// The learning rate of a step, counted from 0.
    func rate(at step: Int) -> Double {
        if step < warmup { return learningRate * Double(step + 1) / Double(warmup) }
        guard decline == .cosine, steps > warmup else { return learningRate }
        let progress = min(Double(step - warmup) / Double(steps - warmup), 1)
        return learningRate * (floor + (1 - floor) * 0.5 * (1 + cos(.pi * progress)))
    }

    /// What changes the bits of a run: all but the threads.
    var withoutThreads: TrainingConfiguration {
        var same = self
        same.threads = 1
        return same
    }
}
