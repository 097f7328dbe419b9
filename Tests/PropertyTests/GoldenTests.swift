// SPDX-License-Identifier: Apache-2.0
// GoldenTests.swift - every kernel set against values computed to 50 digits, and against what wrong formulas give.

import Foundation
import QuietAttention
import TestSupport
import Testing

@Suite struct GoldenTests {
    // MARK: - Rows of scores

    /// Scores `x` as attention: one query of 1, keys `x`, scale 1, and the unit matrix as values, so that the output is
    /// the weights. Scores of -inf come as keys or, `asBias`, as biases that hide a key.
    private func run(_ row: Golden.Row, _ kernels: KernelSet, asBias: Bool) throws -> AttentionResult {
        let count = row.x.count
        let shape = try AttentionShape(
            queryHeads: 1, queries: 1, keys: count, headDimension: 1, valueDimension: max(1, count))
        let scores = row.x.floats
        let bias = try asBias ? BroadcastTensor(scores.map { $0 == -.infinity ? $0 : 0 }, keys: count) : nil
        let attention = try Attention(
            shape, sink: .logits([Float(row.sinkLogit.value)]), scale: 1, bias: bias, kernels: kernels)
        return try attention.forward(
            queries: [1], keys: asBias ? scores.map { $0 == -.infinity ? .nan : $0 } : scores,
            values: (0..<count * count).map { $0 / count == $0 % count ? 1 : 0 })
    }

    /// Scores are rounded in base 2, the sink's too: an error of an exponent is a relative error of the weight. Weights
    /// below 2^-125 are 0.
    private func tolerance(_ row: Golden.Row, _ weight: Double) -> Double {
        let largest = (row.x.doubles + [row.sinkLogit.value]).filter(\.isFinite).map(abs).max() ?? 0
        return weight * (5e-7 + 2.4e-7 * largest) + 0x1p-124
    }

    @Test("rows of scores", arguments: kernelSets, Golden.shared.rows)
    func row(kernels: KernelSet, row: Golden.Row) throws {
        for asBias in [false, true] {
            let result = try run(row, kernels, asBias: asBias)
            let weights = Array(result.output.prefix(row.x.count))
            try requireClose(
                "weights", weights, row.weights.doubles, tolerance: { tolerance(row, $0) }, "\(kernels): \(row)")
            try requireClose(
                "lse", result.logSumExp, [row.logSumExp.value], tolerance: { 6e-7 * max(1, abs($0)) },
                "\(kernels): \(row)")
            try requireClose(
                "sink share", result.sinkShare, [row.sinkShare.value], tolerance: { tolerance(row, $0) },
                "\(kernels): \(row)")
        }
    }

    /// Each wrong formula gives weights that ``row(kernels:row:)`` would refuse.
    @Test("wrong formulas are told apart", arguments: kernelSets)
    func traps(kernels: KernelSet) throws {
        var refusals: [String: Int] = [:]
        for row in Golden.shared.rows {
            let weights = try run(row, kernels, asBias: false).output
            for (name, trap) in row.traps ?? [:] {
                let isRefused = zip(weights, trap.doubles).contains { abs(Double($0) - $1) > tolerance(row, $1) }
                refusals[name, default: 0] += isRefused ? 1 : 0
            }
        }
        #expect(refusals.count == 4 && refusals.values.allSatisfy { $0 >= 5 }, "\(refusals)")
    }

    // MARK: - Attention

    /// Where the scale depends on the row, as it does for log n scaling, each row is a call of its own.
    private func run(_ golden: Golden.Attention, _ kernels: KernelSet) throws -> AttentionOutputs {
        var outputs = AttentionOutputs(output: [], logSumExp: [], sinkShare: [])
        let isOneCall = golden.scale == "1/sqrt(d)"
        for rows in isOneCall ? [0..<golden.queryCount] : (0..<golden.queryCount).map({ $0..<$0 + 1 }) {
            // A causal row stands at its last key: the keys behind it are left out of its call.
            let keyCount = isOneCall ? golden.keyCount : golden.visibleKeys[rows.lowerBound]
            let shape = try AttentionShape(
                queryHeads: 1, queries: rows.count, keys: keyCount, headDimension: golden.headDimension,
                valueDimension: golden.valueDimension)
            let attention = try Attention(
                shape, sink: .logits([Float(golden.sink.value)]), mask: mask(golden),
                scale: scale(golden, visibleKeys: golden.visibleKeys[rows.lowerBound]),
                bias: try bias(golden), kernels: kernels)
            let result = try attention.forward(
                queries: golden.queries[rows].floats, keys: golden.keys[..<keyCount].floats,
                values: golden.values[..<keyCount].floats)
            outputs.output += result.output
            outputs.logSumExp += result.logSumExp
            outputs.sinkShare += result.sinkShare
        }
        return outputs
    }

    private func mask(_ golden: Golden.Attention) -> AttentionMask {
        switch golden.mask {
        case "none": .none
        case "causal_bottom_right": .causal
        case "causal_window_2": .window(2)
        default: fatalError("unknown mask \(golden.mask)")
        }
    }

    private func scale(_ golden: Golden.Attention, visibleKeys: Int) -> Double? {
        let root = Double(golden.headDimension).squareRoot()
        return switch golden.scale {
        case "1/sqrt(d)": nil
        case "log512(n)/sqrt(d)": log(Double(visibleKeys)) / log(512) / root
        case "max(1,log_4(n))/sqrt(d)": max(1, log(Double(visibleKeys)) / log(4)) / root
        default: fatalError("unknown scale \(golden.scale)")
        }
    }

    private func bias(_ golden: Golden.Attention) throws -> BroadcastTensor<Float>? {
        guard let name = golden.bias else { return nil }
        let values = (0..<golden.queryCount * golden.keyCount).map { index in
            let (query, key) = (index / golden.keyCount, index % golden.keyCount)
            return switch name {
            case "-(i-j)/4": Float(key - query) / 4
            case "+j/4 (column only)": Float(key) / 4
            default: fatalError("unknown bias \(name)")
            }
        }
        return try BroadcastTensor(values, queries: golden.queryCount, keys: golden.keyCount)
    }

    @Test("attention", arguments: kernelSets, Golden.shared.attention)
    func attention(kernels: KernelSet, golden: Golden.Attention) throws {
        let result = try run(golden, kernels)
        try requireClose(
            "out", result.output, golden.output.doubles, tolerance: { _ in 4e-7 }, "\(kernels): \(golden)")
        try requireClose(
            "lse", result.logSumExp, golden.logSumExp.doubles, tolerance: { 6e-7 * max(1, abs($0)) },
            "\(kernels): \(golden)")
        try requireClose(
            "sink share", result.sinkShare, golden.sinkShare.doubles, tolerance: { _ in 4e-7 }, "\(kernels): \(golden)")
    }

    /// A column-only bias is ALiBi under softmax, which does not mind shifts; under softmax_1 it is not.
    @Test("a column-only ALiBi bias is told apart", arguments: kernelSets)
    func columnOnlyBias(kernels: KernelSet) throws {
        let right = try #require(Golden.shared.attention.first { $0.name == "softmax1_alibi" })
        let trap = try #require(Golden.shared.attention.first { $0.name == "softmax1_alibi_column_only_TRAP" })
        #expect(relativeError(try run(right, kernels).output, trap.output.doubles) > 0.01)
    }

    /// Five keys are no multiple of any vector: zeros in the rest of it would be three sinks more.
    @Test("zeros behind the keys are no keys", arguments: kernelSets)
    func zeroTailPadding(kernels: KernelSet) throws {
        let golden = Golden.shared.zeroTailPadding
        for (keyCount, isPadded) in [(5, false), (8, false), (8, true)] {
            let shape = try AttentionShape(
                queryHeads: 1, queries: 2, keys: keyCount, headDimension: 4, valueDimension: 3)
            let attention = try Attention(
                shape, sink: .softmax1, mask: isPadded ? .none.keyLengths([5]) : .none, kernels: kernels)
            let padding = keyCount - 5
            let result = try attention.forward(
                queries: golden.queries.floats,
                keys: golden.keys.floats + [Float](repeating: 0, count: 4 * padding),
                values: golden.values.floats + [Float](repeating: 0, count: 3 * padding))
            let expected = keyCount == 8 && !isPadded ? golden.trap : golden.output
            try requireClose(
                "out", result.output, expected.doubles, tolerance: { _ in 2e-7 },
                "\(kernels), \(keyCount) keys, padded: \(isPadded)")
        }
    }
}
