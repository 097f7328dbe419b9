// SPDX-License-Identifier: Apache-2.0
// DiagnosticsTests.swift - diagnostics of rows against their formulas in Double, on random cases and on golden rows.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct DiagnosticsTests {
    private let epsilon = 0.01
    private let leadingKeys = 3

    private func requireClose(
        _ name: String, _ actual: Double, _ expected: Double, _ tolerance: Double, _ context: String
    ) throws {
        let isClose = expected.isNaN ? actual.isNaN : abs(actual - expected) <= tolerance
        try require(isClose, "\(name) is \(actual), expected \(expected) within \(tolerance), in \(context)")
    }

    /// A weight has a relative error of some 1e-7 times its score's size: `unit` is that, with room for sums.
    private func compare(_ row: RowDiagnostics, _ textbook: TextbookRow, _ context: String) throws {
        try require(row.visibleKeys == textbook.scores.count, "\(row.visibleKeys) visible keys, in \(context)")
        let unit = 4e-7 * (4 + textbook.largestScore)
        try requireClose("sink share", row.sinkShare, textbook.sinkShare, unit, context)
        try requireClose("entropy", row.entropy, textbook.entropy, 4 * unit, context)
        try requireClose("largest score", row.largestScore, textbook.largestScore, unit, context)
        guard !textbook.scores.isEmpty else {
            try require(
                row.entropy == 0 && row.keyEntropy == 0 && row.largestWeight == 0 && row.heaviestKey == nil,
                "\(row) in \(context)")
            return try require(row.l1OverL2.isNaN && row.shareBelowEpsilon.isNaN, "\(row) in \(context)")
        }
        try requireClose("largest weight", row.largestWeight, textbook.weights.max()!, unit, context)
        let heaviest = try #require(
            row.heaviestKey.flatMap { textbook.keys.firstIndex(of: $0) }, "\(row) in \(context)")
        try requireClose("heaviest key", textbook.scores[heaviest], textbook.scores.max()!, unit, context)
        let leading = zip(textbook.keys, textbook.weights).reduce(0) { $0 + ($1.0 < leadingKeys ? $1.1 : 0) }
        try requireClose("leading weight", row.leadingWeight, leading, unit, context)
        try requireClose("key entropy", row.keyEntropy, textbook.keyEntropy, 4 * unit, context)
        try requireClose("l1 over l2", row.l1OverL2, textbook.l1OverL2, unit, context)
        try requireClose("mean over maximum", row.meanOverMaximum, textbook.meanOverMaximum, unit, context)
        let bounds = textbook.shareBelow(epsilon * (1 - 1e-4))...textbook.shareBelow(epsilon * (1 + 1e-4))
        try require(bounds.contains(row.shareBelowEpsilon), "\(row.shareBelowEpsilon) in \(context)")
        let (top, median) = (textbook.largestScore, textbook.medianScore)
        let ratio = top == 0 ? 1 : top / median
        try requireClose(
            "top to median", row.scoreTopToMedian, ratio, top == 0 ? 0 : ratio * unit * (1 / top + 1 / median), context)
        try require(row.entropy >= 0 && row.entropy <= log(Double(row.visibleKeys + 1)) + 1e-6, "\(row) in \(context)")
        try require(
            row.keyEntropy >= 0 && row.keyEntropy <= log(Double(row.visibleKeys)) + 1e-6, "\(row) in \(context)")
    }

    @Test("random cases", arguments: kernelSets)
    func formulas(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: 12) { problem in
            let inputs = problem.inputs
            let attention = try problem.attention(inputs, kernels: kernels)
            let rows = try problem.diagnostics(inputs, attention, epsilon: epsilon, leadingKeys: leadingKeys)
            let expected = problem.textbookRows(inputs)
            try require(rows.count == expected.count, "\(rows.count) rows")
            for (index, row) in rows.enumerated() {
                try compare(row, expected[index], "row \(index), \(kernels)")
            }
            // The forward pass has the same sink share, rounded to Float.
            let shares = try problem.run(inputs, attention).sinkShare
            for (row, share) in zip(rows, shares) {
                try requireClose("share of forward", Double(share), row.sinkShare, 1e-6, "\(kernels)")
            }
        }
    }

    /// Softcap, ALiBi, row factors and sinks that grow with the keys move the sink's share as in the forward pass.
    @Test("score rules", arguments: kernelSets)
    func scoreRules(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: 20) { original in
            var problem = original
            problem.softcap = problem.seed.isMultiple(of: 2) ? 1.5 : nil
            problem.hasALiBi = problem.seed.isMultiple(of: 3)
            problem.scaling = .allCases[Int(problem.seed % 6)]
            problem.normaliser = problem.seed.isMultiple(of: 5) ? .softmaxLogKeys : .softmax
            let inputs = problem.inputs
            let attention = try problem.attention(inputs, kernels: kernels)
            let rows = try problem.diagnostics(inputs, attention, epsilon: epsilon)
            let result = try problem.run(inputs, attention)
            for (index, row) in rows.enumerated() {
                try requireClose("sink share", row.sinkShare, Double(result.sinkShare[index]), 3e-6, "row \(index)")
            }
        }
    }

    @Test func otherNormalisersAreRefused() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1)
        for normaliser in [AttentionNormaliser.sigmoid(), .softpick(), .clippedSoftmax(gamma: .fixed(-0.1))] {
            #expect {
                _ = try Attention(shape, sink: normaliser.usualSink, normaliser: normaliser).diagnostics(
                    queries: [1], keys: [1])
            } throws: {
                ($0 as? AttentionError)?.kind == .composition
            }
        }
    }

    /// Blocks, parts of rows, grouped heads and windows.
    static var manyParts: AttentionCase {
        var problem = AttentionCase(queries: 150, keys: 1100, headDimension: 24) {
            ($0.batch, $0.keyValueHeads, $0.group) = (2, 2, 2)
            ($0.sink, $0.geometry) = (.mixed, .window(300))
        }
        problem.bias = .excluding
        return problem
    }

    /// Every kernel set, and as many threads as there are parts to hand out.
    static var waysToRun: [(kernels: KernelSet, threads: Int)] {
        kernelSets.map { ($0, 1) } + [(kernelSets[0], 2), (kernelSets[0], 3)]
    }

    @Test("every kernel set and number of threads gives the same bits")
    func sameBits() throws {
        let problem = Self.manyParts
        let inputs = problem.inputs
        var results: Set<String> = []
        for (kernels, threads) in Self.waysToRun {
            let attention = try problem.attention(inputs, kernels: kernels, threads: threads)
            results.insert("\(try problem.diagnostics(inputs, attention, epsilon: epsilon, leadingKeys: 70))")
        }
        #expect(results.count == 1)
        let expected = problem.textbookRows(inputs)
        let rows = try problem.diagnostics(
            inputs, problem.attention(inputs, kernels: kernelSets[0]), epsilon: epsilon,
            leadingKeys: leadingKeys)
        for index in stride(from: 0, to: rows.count, by: 37) { try compare(rows[index], expected[index], "\(index)") }
    }

    // MARK: - Golden rows

    private func diagnostics(_ x: [Float], sink: Float, kernels: KernelSet) throws -> RowDiagnostics {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: x.count, headDimension: 1)
        return try Attention(shape, sink: .logits([sink]), scale: 1, kernels: kernels)
            .diagnostics(queries: [1], keys: x)[0]
    }

    @Test("golden entropies", arguments: kernelSets, Golden.shared.rows)
    func goldenEntropies(kernels: KernelSet, golden: Golden.Row) throws {
        let row = try diagnostics(golden.x.floats, sink: Float(golden.sinkLogit.value), kernels: kernels)
        let finite = golden.x.doubles.filter(\.isFinite)
        let unit = 4e-7 * (4 + (finite.map(abs).max() ?? 0))
        try requireClose("entropy", row.entropy, golden.entropyWithSink.value, unit, golden.name)
        // Of weights that sum to 1 - p_sink: -sum p ln p = (1 - p_sink) (H - ln(1 - p_sink)).
        let keyShare = 1 - row.sinkShare
        let raw = keyShare == 0 ? 0 : keyShare * (row.keyEntropy - log(keyShare))
        try requireClose("raw entropy", raw, golden.rawEntropy.value, unit, golden.name)
        try requireClose("share", row.sinkShare, golden.sinkShare.value, unit, golden.name)
        #expect(row.visibleKeys == finite.count)
    }

    @Test("equal scores", arguments: kernelSets)
    func equalScores(kernels: KernelSet) throws {
        for count in [1, 5, 64, 65, 1500] {
            let row = try diagnostics([Float](repeating: -3, count: count), sink: -.infinity, kernels: kernels)
            #expect(abs(row.keyEntropy - log(Double(count))) < 1e-12 && abs(row.entropy - row.keyEntropy) < 1e-12)
            #expect(row.sinkShare == 0 && abs(row.largestWeight * Double(count) - 1) < 1e-12)
            #expect(row.l1OverL2 == 1 && row.meanOverMaximum == 1 && row.scoreTopToMedian == 1)
            // One more of the same kind: n + 1 equal shares.
            let quiet = try diagnostics([Float](repeating: 0, count: count), sink: 0, kernels: kernels)
            #expect(abs(quiet.entropy - log(Double(count + 1))) < 1e-12)
            #expect(abs(quiet.sinkShare * Double(count + 1) - 1) < 1e-12)
            #expect(quiet.largestScore == 0 && quiet.scoreTopToMedian == 1)
        }
    }

    /// Sinks so far above that every weight of a key vanishes: what is said of the keys alone does not.
    @Test("overwhelming sinks", arguments: kernelSets)
    func overwhelmingSinks(kernels: KernelSet) throws {
        let quiet = try diagnostics([1, 2, 3], sink: 5000, kernels: kernels)
        let plain = try diagnostics([1, 2, 3], sink: -.infinity, kernels: kernels)
        #expect(quiet.sinkShare == 1 && quiet.entropy == 0 && quiet.largestWeight == 0)
        #expect(quiet.keyEntropy == plain.keyEntropy && quiet.l1OverL2 == plain.l1OverL2)
        #expect(quiet.shareBelowEpsilon == 1)
    }

    @Test("NaN stays in its row", arguments: kernelSets)
    func notANumber(kernels: KernelSet) throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 3, keys: 3, headDimension: 1)
        let rows = try Attention(shape, sink: .softmax1, mask: .causal, scale: 1, kernels: kernels)
            .diagnostics(queries: [1, 1, 1], keys: [1, 2, .nan])
        #expect(rows.map(\.visibleKeys) == [1, 2, 3])
        #expect(rows[1].entropy > 0 && rows[2].entropy.isNaN && rows[2].sinkShare.isNaN && rows[2].largestScore.isNaN)
        let infinite = try diagnostics([1, .infinity], sink: 0, kernels: kernels)
        #expect(infinite.visibleKeys == 2 && infinite.keyEntropy.isNaN)
        let head = HeadDiagnostics(rows)
        #expect(head.rows == 3 && head.entropy.isNaN && head.largestScore.isNaN)
    }

    // MARK: - Heads

    @Test func headsAreMeansOverRowsThatSeeAKey() throws {
        // The first two rows of each head see no key.
        let shape = try AttentionShape(batch: 2, queryHeads: 2, queries: 5, keys: 3, headDimension: 4)
        let attention = try Attention(shape, sink: .softmax1, mask: .causal)
        var generator = SeededGenerator(seed: 1)
        let (q, k) = (generator.normals(shape.queryCount), generator.normals(shape.keyCount))
        let rows = try attention.diagnostics(queries: q, keys: k)
        let heads = try attention.headDiagnostics(queries: q, keys: k)
        #expect(heads.count == 2 && heads.allSatisfy { $0.rows == 6 })
        for (head, diagnostics) in heads.enumerated() {
            let own: [RowDiagnostics] = (rows[head * 5..<head * 5 + 5] + rows[head * 5 + 10..<head * 5 + 15])
                .filter { $0.visibleKeys > 0 }
            #expect(own.count == 6)
            #expect(abs(diagnostics.entropy - own.reduce(0) { $0 + $1.entropy } / 6) < 1e-12)
            #expect(abs(diagnostics.sinkShare - own.reduce(0) { $0 + $1.sinkShare } / 6) < 1e-12)
            #expect(diagnostics.largestScore == own.map(\.largestScore).max())
            #expect(diagnostics.smallestSinkShare == own.map(\.sinkShare).min())
            #expect(diagnostics.largestSinkShare == own.map(\.sinkShare).max())
        }
        let none = HeadDiagnostics([RowDiagnostics]())
        #expect(none.rows == 0 && none.entropy.isNaN && none.largestScore.isNaN)
    }

    @Test func packedSequences() throws {
        let packed = try AttentionShape(packed: [0, 3, 3, 8], queryHeads: 2, headDimension: 4)
        var generator = SeededGenerator(seed: 2)
        let (q, k) = (generator.normals(packed.queryCount), generator.normals(packed.keyCount))
        let rows = try Attention(packed, sink: .softmax1, mask: .causal).diagnostics(queries: q, keys: k)
        for range in [0..<3, 3..<8] {
            let shape = try AttentionShape(queryHeads: 2, queries: range.count, keys: range.count, headDimension: 4)
            let alone = try Attention(shape, sink: .softmax1, mask: .causal, layout: .batchSequenceHeads).diagnostics(
                queries: q.rows(range.lowerBound, range.count, 8), keys: k.rows(range.lowerBound, range.count, 8))
            for head in 0..<2 {
                #expect(
                    Array(rows[head * 8 + range.lowerBound..<head * 8 + range.upperBound])
                        == Array(alone[head * range.count..<(head + 1) * range.count]))
            }
        }
        #expect(try Attention(packed, sink: .softmax1).headDiagnostics(queries: q, keys: k).map(\.rows) == [8, 8])
    }

    @Test func errorsAndEmptyWork() throws {
        let attention = try Attention(
            AttentionShape(queryHeads: 1, queries: 2, keys: 3, headDimension: 2), sink: .softmax1)
        func kind(_ queries: Int, _ keys: Int, _ epsilon: Double) -> AttentionError.Kind? {
            do {
                _ = try attention.diagnostics(
                    queries: [Float](repeating: 0, count: queries), keys: [Float](repeating: 0, count: keys),
                    epsilon: epsilon)
                return nil
            } catch {
                return error.kind
            }
        }
        #expect(kind(3, 6, 0) == .elementCount && kind(4, 5, 0) == .elementCount)
        #expect(kind(4, 6, -1) == .epsilon && kind(4, 6, .nan) == .epsilon && kind(4, 6, .infinity) == .epsilon)
        #expect(kind(4, 6, 0) == nil)
        let none = try Attention(AttentionShape(queryHeads: 2, queries: 0, keys: 3, headDimension: 2), sink: .softmax1)
        #expect(try none.diagnostics(queries: [], keys: [Float](repeating: 0, count: 12)).isEmpty)
        let keyless = try Attention(
            AttentionShape(queryHeads: 1, queries: 2, keys: 0, headDimension: 2), sink: .softmax1)
        let rows = try keyless.diagnostics(queries: [0, 0, 0, 0], keys: [])
        #expect(rows.map(\.sinkShare) == [1, 1] && rows.map(\.visibleKeys) == [0, 0])
    }
}
