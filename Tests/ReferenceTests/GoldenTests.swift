// SPDX-License-Identifier: Apache-2.0
// GoldenTests.swift - the reference against values computed to 50 digits, and against what wrong formulas give.

import AttentionReference
import Foundation
import TestSupport
import Testing

@Suite struct GoldenTests {
    // MARK: - Rows of scores

    /// Scores `x` as attention: one query of 1, keys `x`, scale 1, and the unit matrix as values, so that the output is
    /// the weights.
    private func attention(_ row: Golden.Row) -> ForwardResult<Float> {
        let count = row.x.count
        let unitMatrix = (0..<count * count).map { Float($0 / count == $0 % count ? 1 : 0) }
        let problem = ReferenceProblem(
            queries: 1, keys: count, headDimension: 1, valueDimension: max(1, count), scale: 1,
            sinks: [Float(row.sinkLogit.value)])
        return problem.forward(queries: [1], keys: row.x.floats, values: unitMatrix)
    }

    /// A score in base 2 has a relative error of 2^-23 at most, and so has the largest, from which it is subtracted:
    /// their sum is the relative error of a weight, beside some roundings. Weights below 2^-125 are 0.
    private func tolerances(_ row: Golden.Row) -> [Double] {
        let finite = (row.x.doubles + [row.sinkLogit.value]).filter(\.isFinite).map(abs)
        let largest = finite.max() ?? 0
        return zip(row.x.doubles, row.weights.doubles).map { x, weight in
            weight * (5e-7 + 1.2e-7 * ((x.isFinite ? abs(x) : 0) + largest)) + 0x1p-124
        }
    }

    @Test(arguments: Golden.shared.rows)
    func rowIsRight(row: Golden.Row) throws {
        let result = attention(row)
        let weights = Array(result.output.prefix(row.x.count))
        for (index, tolerance) in tolerances(row).enumerated() {
            try requireClose(
                "weight \(index)", [weights[index]], [row.weights[index].value], tolerance: { _ in tolerance }, row.name
            )
        }
        try requireClose(
            "lse", result.logSumExp, [row.logSumExp.value], tolerance: { 6e-7 * max(1, abs($0)) }, row.name)
        try requireClose(
            "share", result.sinkShare, [row.sinkShare.value],
            tolerance: { $0 == 0 ? 0 : $0 * (5e-7 + 1.2e-7 * abs(row.logSumExp.value)) + 0x1p-124 }, row.name)
    }

    /// Each wrong formula gives values that ``rowIsRight(row:)`` would refuse, in several rows.
    @Test func wrongFormulasWouldFail() {
        var refusals: [String: Int] = [:]
        for row in Golden.shared.rows {
            let weights = attention(row).output.map(Double.init)
            for (name, trap) in row.traps ?? [:] {
                let isRefused = zip(zip(weights, trap.doubles), tolerances(row)).contains { abs($0.0 - $0.1) > $1 }
                refusals[name, default: 0] += isRefused ? 1 : 0
            }
        }
        #expect(refusals.count == 4)
        #expect(refusals.values.allSatisfy { $0 >= 5 }, "\(refusals)")
    }

    // MARK: - Attention

    /// The case, one problem per row, whose scale is the row's.
    private func rowProblems(_ golden: Golden.Attention) -> [ReferenceProblem] {
        let whole = golden.problem
        return (0..<golden.queryCount).map { row in
            var problem = whole
            problem.queries = 1
            problem.firstKeyOffset = whole.firstKeyOffset.map { $0 + row }
            problem.lastKeyOffset = whole.lastKeyOffset.map { $0 + row }
            problem.places = [golden.keyCount - 1]
            problem.scale *= whole.rowFactors?[row] ?? 1
            problem.rowFactors = nil
            problem.bias = whole.bias.map {
                ReferenceBroadcast($0.values.rows(row, 1, golden.keyCount), extents: [1, 1, 1, golden.keyCount])
            }
            return problem
        }
    }

    private func forward(_ golden: Golden.Attention) -> AttentionOutputs {
        var result = AttentionOutputs(output: [], logSumExp: [], sinkShare: [])
        for (problem, query) in zip(rowProblems(golden), golden.queries) {
            let row = problem.forward(
                queries: query.floats, keys: golden.keys.floats, values: golden.values.floats)
            result.output += row.output
            result.logSumExp += row.logSumExp
            result.sinkShare += row.sinkShare
        }
        return result
    }

    @Test(arguments: Golden.shared.attention)
    func attentionIsRight(golden: Golden.Attention) throws {
        let result = forward(golden)
        try requireClose("out", result.output, golden.output.doubles, tolerance: { _ in 5e-7 }, golden.name)
        try requireClose("lse", result.logSumExp, golden.logSumExp.doubles, tolerance: { _ in 6e-7 }, golden.name)
        try requireClose("share", result.sinkShare, golden.sinkShare.doubles, tolerance: { _ in 5e-7 }, golden.name)
    }

    @Test(arguments: Golden.shared.attention.filter { $0.scale == "1/sqrt(d)" && $0.bias == nil })
    func attentionIsRightInOneCall(golden: Golden.Attention) throws {
        let problem = golden.problem
        let result = problem.forward(
            queries: golden.queries.floats, keys: golden.keys.floats, values: golden.values.floats)
        try requireSameBits("out", result.output, forward(golden).output, golden.name)
        try requireSameBits("lse", result.logSumExp, forward(golden).logSumExp, golden.name)
    }

    /// A bias per column alone shifts whole rows: softmax cannot tell, softmax_1 can.
    @Test func alibiByColumnIsNotAlibi() throws {
        let alibi = try #require(Golden.shared.attention.first { $0.name == "softmax1_alibi" })
        let trap = try #require(Golden.shared.attention.first { $0.name == "softmax1_alibi_column_only_TRAP" })
        #expect(relativeError(forward(alibi).output, trap.output.doubles) > 0.01)
    }

    /// A tail of zero keys that is not masked makes softmax_4 of softmax_1.
    @Test func paddedTailIsMasked() throws {
        let golden = Golden.shared.zeroTailPadding
        let (dimension, width) = (golden.keys[0].count, golden.values[0].count)
        let (count, padding) = (golden.keys.count, 3)
        var problem = ReferenceProblem(
            queries: golden.queries.count, keys: count + padding, headDimension: dimension, valueDimension: width,
            sinks: [0])
        let keys = golden.keys.floats + [Float](repeating: 0, count: padding * dimension)
        let values = golden.values.floats + [Float](repeating: 0, count: padding * width)
        let unmasked = problem.forward(queries: golden.queries.floats, keys: keys, values: values)
        try requireClose("unmasked", unmasked.output, golden.trap.doubles, tolerance: { _ in 5e-7 }, "")
        problem.keyLengths = [count]
        let masked = problem.forward(queries: golden.queries.floats, keys: keys, values: values)
        try requireClose("masked", masked.output, golden.output.doubles, tolerance: { _ in 5e-7 }, "")
        #expect(relativeError(masked.output, golden.trap.doubles) > 0.01)
    }
}
