// SPDX-License-Identifier: Apache-2.0
// GradientTests.swift - every gradient against finite differences.

import Testing

@testable import Laboratory

/// Whole models of two layers, each with some of what layers can be.
private let twins: [(name: String, model: ModelConfiguration)] = [
    ("softmax, RMSNorm, GELU, RoPE", smallModel()),
    (
        "learned sinks, SwiGLU, scalable softmax",
        smallModel { ($0.sink, $0.activation, $0.scaling) = (.learned, .swiglu, .scalable) }
    ),
    (
        "softmax_1, LayerNorm, post-norm, gate per head",
        smallModel { ($0.sink, $0.norm, $0.placement, $0.gate) = (.softmax1, .layer, .post, .head) }
    ),
    ("ALiBi, gate per element, scale 1", smallModel { ($0.positions, $0.gate, $0.scale) = (.alibi, .element, 1) }),
    (
        "masked, no positions, no feed-forward",
        smallModel { ($0.causal, $0.positions, $0.hidden, $0.sink) = (false, .none, 0, .learned) }
    ),
    ("ReLU, a group per head", smallModel { ($0.activation, $0.keyValueHeads) = (.relu, 2) }),
]

/// What the twin does not have: central differences of the model's own loss in Float.
private let others: [(name: String, model: ModelConfiguration)] = [
    ("norms of queries and keys", smallModel { $0.queryKeyNorm = true }),
    ("CoCA strict, s = log n", smallModel { ($0.positions, $0.sink) = (.collinearStrict, .logKeys) }),
    ("CoCA slack", smallModel { $0.positions = .collinearSlack }),
    ("clipped softmax", smallModel { $0.clipGamma = -0.03 }),
    ("log n", smallModel { $0.scaling = .logKeys }),
    ("clipped log n, dynamic NTK", smallModel { ($0.scaling, $0.ntkFactor) = (.clippedLogKeys, 2) }),
]

@Suite struct GradientTests {
    private let batch = SmallText().batch(sequences: 2, length: 12, random: Random(5), testing: false)

    /// The twin's loss is the model's, and so are its finite differences in Double: two directions for every tensor.
    @Test(arguments: twins.indices) func doubleTwin(_ index: Int) throws {
        let model = try Transformer(twins[index].model, seed: 3)
        let parameters = start(model)
        let twin = DoubleTwin(model, parameters)
        let (loss, gradients) = try lossAndGradients(model, batch, parameters)
        #expect(abs(loss - twin.loss(batch)) < 1e-5 * loss, "\(twins[index].name)")
        for slot in model.parameters.slots {
            for direction in directions(slot) {
                func loss(_ step: Double) -> Double {
                    var moved = twin
                    moved.tensors[slot.name] = zip(twin.tensors[slot.name]!, direction).map { $0 + step * $1 }
                    return moved.loss(batch)
                }
                let expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
                let found = zip(gradients[slot], direction).reduce(0) { $0 + Double($1.0) * $1.1 }
                #expect(
                    abs(found - expected) <= 2e-4 * abs(expected) + 1e-5 * norm(gradients[slot]) + 1e-6,
                    "\(twins[index].name): \(slot.name) \(found) \(expected)")
            }
        }
    }

    /// The loss of Float is right to about 1e-7, and so a difference over 2e-2 to about 1e-5; tolerance 1e-2 of the gradient.
    @Test(arguments: others.indices) func centralDifferences(_ index: Int) throws {
        let model = try Transformer(others[index].model, seed: 3)
        let parameters = start(model)
        let (_, gradients) = try lossAndGradients(model, batch, parameters)
        for slot in model.parameters.slots {
            let values = parameters[slot]
            for direction in directions(slot) {
                let length = direction.reduce(0) { $0 + $1 * $1 }.squareRoot()
                func loss(_ step: Double) throws -> Double {
                    parameters[slot] = zip(values, direction).map { $0 + Float(step * $1 / length) }
                    defer { parameters[slot] = values }
                    return try lossAndGradients(model, batch, parameters).0
                }
                let expected = (try loss(0.005) - loss(-0.005)) / 0.01
                let found = zip(gradients[slot], direction).reduce(0) { $0 + Double($1.0) * $1.1 } / length
                #expect(
                    abs(found - expected) <= 1e-2 * norm(gradients[slot]) + 2e-4,
                    "\(others[index].name): \(slot.name) \(found) \(expected)")
            }
        }
    }

    @Test func crossEntropyLeavesOutRowsWithoutTarget() {
        let result = CrossEntropy.evaluate([1, 2, 3, 100, -100, 0], [2, -1], vocabulary: 3, weight: 1)
        #expect(abs(result.sum - 0.40760596) < 1e-6)
        #expect(result.gradient[3...].allSatisfy { $0 == 0 })
        #expect(abs(result.gradient[0...2].reduce(0, +)) < 1e-6)
    }

    /// A row that counts for 3 is three of the same rows.
    @Test func crossEntropyWeighsRows() {
        let once = CrossEntropy.evaluate([1, 2, 3], [0], vocabulary: 3, weight: 0.5)
        let rows = CrossEntropy.evaluate(
            [1, 2, 3, 1, 2, 3], [0, 0], vocabulary: 3, weight: 0.5, weights: [3, 0])
        #expect(abs(rows.sum - 3 * once.sum) < 1e-6)
        for index in 0..<3 { #expect(abs(rows.gradient[index] - 3 * once.gradient[index]) < 1e-6) }
        #expect(rows.gradient[3...].allSatisfy { $0 == 0 })
    }

    /// Gains, sinks and scales away from where they start, or a wrong factor of theirs would be hidden.
    private func start(_ model: Transformer) -> FlatBuffer {
        let parameters = model.parameters.firstValues()
        var random = Random(11)
        for slot in model.parameters.slots where !slot.decays {
            parameters[slot] = parameters[slot].map { $0 + 0.3 * Float(random.normal()) }
        }
        return parameters
    }

    private func directions(_ slot: Slot) -> [[Double]] {
        var random = Random(13, slot.offset)
        return (0..<2).map { _ in (0..<slot.count).map { _ in random.normal() } }
    }

    private func norm(_ values: [Float]) -> Double { values.reduce(0) { $0 + Double($1) * Double($1) }.squareRoot() }
}
