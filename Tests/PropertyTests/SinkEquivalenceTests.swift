// SPDX-License-Identifier: Apache-2.0
// SinkEquivalenceTests.swift - the sink as what it is equal to: zero keys, extra logits, a gate after softmax.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct SinkEquivalenceTests {
    // MARK: - Zero vectors before the keys

    /// The case with `count` zero keys and values before its own, which every row sees, and no sink.
    private func prefixed(
        _ shape: AttentionCase, _ inputs: AttentionInputs, count: Int, ghostKey: Float = 0, ghostBias: Float = 0
    ) -> (AttentionCase, AttentionInputs) {
        var (prefixed, result) = (shape, inputs)
        prefixed.keys += count
        prefixed.sink = .none
        result.keys = withPrefix(
            inputs.keys, ghostKey, count, heads: shape.batch * shape.keyValueHeads, shape.headDimension)
        result.values = withPrefix(
            inputs.values, 0, count, heads: shape.batch * shape.keyValueHeads, shape.valueDimension)
        let problem = (0..<shape.batch * shape.queryHeads).map {
            shape.headProblem(inputs, item: $0 / shape.queryHeads, head: $0 % shape.queryHeads)
        }
        // What rows see is spelled out: causal masks and windows would not let every row see the ghosts.
        (prefixed.geometry, prefixed.keyLengths, prefixed.allowed, prefixed.bias) = (.none, .none, .random, .normal)
        result.keyLengths = nil
        var (allowed, bias): ([Bool], [Float]) = ([], [])
        for head in problem {
            for query in 0..<shape.queries {
                let visible = Set(head.visibleKeys(query))
                allowed += [Bool](repeating: true, count: count) + (0..<shape.keys).map(visible.contains)
                bias += [Float](repeating: ghostBias, count: count)
                bias += head.bias?.rows(query, 1, shape.keys) ?? [Float](repeating: 0, count: shape.keys)
            }
        }
        let extents = [shape.batch, shape.queryHeads, shape.queries, prefixed.keys]
        result.allowed = (allowed, extents)
        result.bias = (bias, extents)
        return (prefixed, result)
    }

    private func withPrefix(_ tensor: [Float], _ value: Float, _ count: Int, heads: Int, _ width: Int) -> [Float] {
        let rows = tensor.count / heads / width
        return (0..<heads).flatMap {
            [Float](repeating: value, count: count * width) + tensor.rows($0 * rows, rows, width)
        }
    }

    private func agree(_ a: AttentionOutputs, _ b: AttentionOutputs) -> Bool {
        zip(a.output, b.output).allSatisfy { isClose(Double($0), Double($1), relative: 1e-5, absolute: 3e-6) }
            && zip(a.logSumExp, b.logSumExp).allSatisfy {
                isClose(Double($0), Double($1), relative: 2e-6, absolute: 2e-6)
            }
    }

    @Test("n zero vectors before the keys under softmax are softmax_n", arguments: kernelSets)
    func zeroPrefix(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var shape = original
            let count = 1 + Int(shape.seed % 3)
            shape.sink = .count(quarters: 4 * count)
            let inputs = shape.inputs
            let (other, otherInputs) = prefixed(shape, inputs, count: count)
            let quiet = try shape.run(inputs, kernels: kernels)
            let ghosts = try other.run(otherInputs, kernels: kernels)
            try require(agree(quiet, ghosts), "\(count) ghosts: lse \(quiet.logSumExp), \(ghosts.logSumExp)")
        }
    }

    /// Causal alignment shows every row the ghost if there are as many keys as queries; a window does not.
    @Test("the prefix under causal masks, and what breaks it", arguments: kernelSets)
    func zeroPrefixConditions(kernels: KernelSet) throws {
        for (queries, keys) in [(6, 6), (1, 9), (5, 70), (33, 1025)] {
            let shape = AttentionCase(queries: queries, keys: keys, headDimension: 8) {
                ($0.geometry, $0.sink) = (.causal, .one)
            }
            let inputs = shape.inputs
            let quiet = try shape.run(inputs, kernels: kernels)
            var (ghost, ghostInputs) = prefixed(shape, inputs, count: 1)
            (ghost.geometry, ghostInputs.allowed, ghostInputs.bias) = (.causal, nil, nil)
            #expect(agree(quiet, try ghost.run(ghostInputs, kernels: kernels)))

            // Not the same: a key of a projection or LayerNorm with a bias, an ALiBi bias on the ghost, ...
            let (biased, biasedInputs) = prefixed(shape, inputs, count: 1, ghostKey: 0.5)
            #expect(!agree(quiet, try biased.run(biasedInputs, kernels: kernels)))
            let (alibi, alibiInputs) = prefixed(shape, inputs, count: 1, ghostBias: -0.5)
            #expect(!agree(quiet, try alibi.run(alibiInputs, kernels: kernels)))
            // ... a window that hides the ghost, a ghost that is counted twice.
            ghost.geometry = .window(2)
            var narrow = shape
            narrow.geometry = .window(2)
            if keys > 2 {
                #expect(
                    !agree(try narrow.run(inputs, kernels: kernels), try ghost.run(ghostInputs, kernels: kernels)))
            }
            let (two, twoInputs) = prefixed(shape, inputs, count: 2)
            #expect(!agree(quiet, try two.run(twoInputs, kernels: kernels)))
        }
    }

    /// Rotations leave the zero vector where it is, and scores depend on differences of positions only.
    @Test("the prefix with rotary positions", arguments: kernelSets)
    func zeroPrefixWithRotations(kernels: KernelSet) throws {
        let shape = AttentionCase(queries: 12, keys: 12, headDimension: 8) { ($0.geometry, $0.sink) = (.causal, .one) }
        let inputs = shape.inputs
        var rotated = inputs
        rotated.queries = rotate(inputs.queries, from: 0)
        rotated.keys = rotate(inputs.keys, from: 0)
        var shifted = inputs
        shifted.queries = rotate(inputs.queries, from: 1)
        shifted.keys = rotate(inputs.keys, from: 1)
        var (ghost, ghostInputs) = prefixed(shape, shifted, count: 1)
        (ghost.geometry, ghostInputs.allowed, ghostInputs.bias) = (.causal, nil, nil)
        #expect(agree(try shape.run(rotated, kernels: kernels), try ghost.run(ghostInputs, kernels: kernels)))
        #expect(!agree(try shape.run(rotated, kernels: kernels), try shape.run(inputs, kernels: kernels)))
    }

    /// Pairs (2j, 2j + 1) of row i turned by (first + i) * 100^(-j / 4).
    private func rotate(_ tensor: [Float], from first: Int) -> [Float] {
        var result = tensor
        for index in stride(from: 0, to: tensor.count, by: 2) {
            let angle = Double(first + index / 8) * pow(100, -Double(index % 8 / 2) / 4)
            let (x, y) = (Double(tensor[index]), Double(tensor[index + 1]))
            result[index] = Float(x * cos(angle) - y * sin(angle))
            result[index + 1] = Float(x * sin(angle) + y * cos(angle))
        }
        return result
    }

    // MARK: - Extra logits

    /// Several sinks per head are one: s = log sum e^s_k. Here they are extra keys of zero vectors with biases s_k.
    @Test("several sinks collapse to their log-sum-exp", arguments: kernelSets)
    func collapsedSinks(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var generator = SeededGenerator(seed: original.seed)
            let logits = (0..<generator.next(in: 1...4)).map { _ in 3 * generator.nextNormal() }
            let sum = logits.reduce(0.0) { $0 + exp(Double($1)) }
            var inputs = original.inputs
            let shape = original.with(sinks: inputs.sinks.map { _ in Float(log(sum)) }, &inputs)
            let one = try shape.run(inputs, kernels: kernels)

            var (other, otherInputs) = prefixed(shape, inputs, count: logits.count)
            for row in 0..<shape.rowCount {
                for (index, logit) in logits.enumerated() {
                    otherInputs.bias!.values[row * other.keys + index] = logit
                }
            }
            other.bias = .normal
            try require(agree(one, try other.run(otherInputs, kernels: kernels)), "sinks \(logits)")
        }
    }

    // MARK: - A gate after softmax

    @Test("O_1 = O_0 sigmoid(lse_0 - s), lse_1 = log(e^lse_0 + e^s)", arguments: kernelSets)
    func gate(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { shape in
            var inputs = shape.inputs
            let sinks = inputs.sinks
            let result = try shape.run(inputs, kernels: kernels)
            let plain = try shape.with(sinks: sinks.map { _ in -.infinity }, &inputs).run(inputs, kernels: kernels)
            for row in 0..<shape.rowCount {
                let sink = Double(sinks[row / shape.queries % shape.queryHeads])
                let lse = Double(plain.logSumExp[row])
                let gate = sink == -.infinity ? 1 : lse == -.infinity ? 0 : 1 / (1 + exp(sink - lse))
                let larger = max(lse, sink)
                let expected = larger == -.infinity ? larger : larger + log1p(exp(min(lse, sink) - larger))
                // Both sides round scores and sinks of some hundreds: 2^-23 times them is the error of an exponent.
                let relative = 1e-6 + 4e-7 * (abs(sink.isFinite ? sink : 0) + abs(lse.isFinite ? lse : 0))
                try require(
                    expected == Double(result.logSumExp[row])
                        || isClose(Double(result.logSumExp[row]), expected, relative: 1e-6, absolute: 1e-6),
                    "row \(row): lse \(result.logSumExp[row]), expected \(expected)")
                try require(
                    isClose(
                        Double(result.sinkShare[row]), sink == -.infinity ? 0 : 1 - gate, relative: relative,
                        absolute: 2e-7),
                    "row \(row): share \(result.sinkShare[row]), expected \(1 - gate)")
                for d in row * shape.valueDimension..<(row + 1) * shape.valueDimension {
                    try require(
                        isClose(
                            Double(result.output[d]), Double(plain.output[d]) * gate, relative: relative,
                            absolute: 1e-36),
                        "row \(row): \(result.output[d]), expected \(plain.output[d]) * \(gate)")
                }
            }
        }
    }

    /// Flash-Attention-Softmax-N's oracle: where all queries, keys and values are w, all is known.
    @Test("closed form for constant tensors", arguments: kernelSets, [0.0, 1, 1e-3, 1e-6, 4])
    func closedForm(kernels: KernelSet, n: Double) throws {
        for w in [-1.5, -0.25, 0.5, 2.0] {
            for sign in [-1.0, 1.0] {
                let shape = try AttentionShape(queryHeads: 1, queries: 4, keys: 70, headDimension: 6)
                let scale = sign * 0.5
                let attention = try Attention(
                    shape, sink: .softmaxN(n), mask: .causal, scale: scale, kernels: kernels)
                let tensor = [Float](repeating: Float(w), count: 70 * 6)
                let result = try attention.forward(queries: Array(tensor[..<24]), keys: tensor, values: tensor)
                for row in 0..<4 {
                    let visible = Double(row + 1 + 70 - 4)
                    let expected = w * visible / (n * exp(-w * w * 6 * scale) + visible)
                    #expect(isClose(Double(result.output[row * 6]), expected, relative: 2e-6), "w \(w), row \(row)")
                }
            }
        }
    }
}
