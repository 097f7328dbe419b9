// SPDX-License-Identifier: Apache-2.0
// HeadMapTests.swift - maps of heads against their definition in Double, and where keys are counted from.

import Foundation
import QuietAttention
import SeededInputs
import TestSupport
import Testing

/// A map by its definition: from the weights of all rows.
private struct TextbookMap {
    var weights, sinkShares: [Double]
    var rowCounts: [Int]
    var byDistance: [Int: Double] = [:]
    let rows: Int

    init(_ problem: AttentionCase, _ inputs: AttentionInputs, head: Int, bands: (rows: Int, keys: Int)) {
        let all = problem.textbookRows(inputs)
        weights = [Double](repeating: 0, count: bands.rows * bands.keys)
        sinkShares = [Double](repeating: 0, count: bands.rows)
        rowCounts = [Int](repeating: 0, count: bands.rows)
        for item in 0..<problem.batch {
            let length = problem.padsQueries ? problem.keys : inputs.keyLengths?[item] ?? problem.keys
            for query in 0..<problem.queries {
                let row = all[(item * problem.queryHeads + head) * problem.queries + query]
                if row.keys.isEmpty { continue }
                let band = query * bands.rows / problem.queries
                rowCounts[band] += 1
                sinkShares[band] += row.sinkShare
                for (key, weight) in zip(row.keys, row.weights) {
                    weights[band * bands.keys + key * bands.keys / problem.keys] += weight
                    byDistance[length - problem.queries + query - key, default: 0] += weight
                }
            }
        }
        rows = rowCounts.reduce(0, +)
        for band in 0..<bands.rows {
            sinkShares[band] /= Double(rowCounts[band])
            for key in 0..<bands.keys { weights[band * bands.keys + key] /= Double(rowCounts[band]) }
        }
    }

    func weight(_ distances: ClosedRange<Int>) -> Double {
        byDistance.reduce(0) { $0 + (distances.contains($1.key) ? $1.value : 0) } / Double(rows)
    }
}

@Suite struct HeadMapTests {
    private func maps(
        _ problem: AttentionCase, _ inputs: AttentionInputs, bands: (rows: Int, keys: Int), kernels: KernelSet,
        threads: Int = 1
    ) throws -> [HeadMap] {
        try problem.attention(inputs, kernels: kernels, threads: threads).headMaps(
            queries: problem.laidOut(inputs.queries, rows: problem.queries, width: problem.headDimension),
            keys: problem.laidOut(inputs.keys, rows: problem.keys, width: problem.headDimension),
            rowBands: bands.rows, keyBands: bands.keys)
    }

    private func areClose(_ actual: [Double], _ expected: [Double], _ tolerance: Double) -> Bool {
        actual.count == expected.count
            && zip(actual, expected).allSatisfy { $0.isNaN ? $1.isNaN : abs($0 - $1) <= tolerance }
    }

    @Test("random cases", arguments: kernelSets)
    func formulas(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: 16) { problem in
            let inputs = problem.inputs
            let bands = [(1, 1), (3, 5), (7, 2), (48, 48)][Int(problem.seed % 4)]
            let found = try maps(problem, inputs, bands: bands, kernels: kernels)
            try require(found.count == problem.queryHeads, "\(found.count) maps")
            let diagnostics = try problem.attention(inputs, kernels: kernels).headDiagnostics(
                queries: problem.laidOut(inputs.queries, rows: problem.queries, width: problem.headDimension),
                keys: problem.laidOut(inputs.keys, rows: problem.keys, width: problem.headDimension))
            for (head, map) in found.enumerated() {
                let own = (rows: max(1, min(bands.0, problem.queries)), keys: max(1, min(bands.1, problem.keys)))
                try require((map.rowBands, map.keyBands) == own, "\(map.rowBands) x \(map.keyBands) bands")
                let expected = TextbookMap(problem, inputs, head: head, bands: own)
                try require(map.rowCounts == expected.rowCounts && map.undefinedRows == 0, "rows \(map.rowCounts)")
                // As far as weights of large scores are off in DiagnosticsTests.
                let tolerance = 4e-7 * (4 + (diagnostics[head].rows > 0 ? diagnostics[head].largestScore : 0))
                try require(areClose(map.weights, expected.weights, tolerance), "\(map.weights)")
                try require(areClose(map.sinkShares, expected.sinkShares, tolerance), "\(map.sinkShares)")
                for band in map.weightByDistance {
                    try require(abs(band.weight - expected.weight(band.distances)) <= tolerance, "\(band)")
                }
                let found = map.weightByDistance.reduce(0) { $0 + $1.weight }
                let all = expected.rows == 0 ? 0 : expected.weight(Int.min...Int.max)
                try require(abs(found - all) <= tolerance, "\(found) of \(all) by distance")
                try require("\(map.diagnostics)" == "\(diagnostics[head])", "\(map.diagnostics)")
            }
        }
    }

    @Test("bands of distances follow each other")
    func distances() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 40, keys: 40, headDimension: 1)
        let ones = [Float](repeating: 1, count: 40)
        let map = try Attention(shape, sink: .softmax).headMaps(queries: ones, keys: ones)[0]
        #expect(
            map.weightByDistance.map(\.distances) == [
                -63 ... -32, -31 ... -16, -15 ... -8, -7 ... -4, -3 ... -2, -1 ... -1, 0...0, 1...1, 2...3, 4...7,
                8...15,
                16...31, 32...63,
            ])
        let weights = map.weightByDistance.map(\.weight)
        #expect(abs(weights[6] - 1.0 / 40) < 1e-9 && abs(weights[7] - 39.0 / 1600) < 1e-9 && weights[5] == weights[7])
        #expect(map.rowBands == 40 && map.keyBands == 40 && map.weights.allSatisfy { abs($0 - 0.025) < 1e-9 })
    }

    @Test("every kernel set and number of threads gives the same bits")
    func sameBits() throws {
        let problem = DiagnosticsTests.manyParts
        let inputs = problem.inputs
        var results: Set<[HeadMap]> = []
        for (kernels, threads) in DiagnosticsTests.waysToRun {
            results.insert(try maps(problem, inputs, bands: (20, 30), kernels: kernels, threads: threads))
        }
        #expect(results.count == 1)
        for map in try #require(results.first) {
            for (band, share) in map.sinkShares.enumerated() {
                let row = map.weights[band * 30..<band * 30 + 30].reduce(share, +)
                #expect(abs(row - 1) < 1e-6)
            }
        }
    }

    /// Keys that no row sees are not packed, a thousand and more of them: all keys count from the first nevertheless.
    @Test("windows far behind the first key", arguments: kernelSets)
    func farWindows(kernels: KernelSet) throws {
        let (queries, keys, window) = (10, 3000, 20)
        let shape = try AttentionShape(queryHeads: 1, queries: queries, keys: keys, headDimension: 1)
        let attention = try Attention(shape, sink: .softmax, mask: .window(window), scale: 1, kernels: kernels)
        let q = [Float](repeating: 1, count: queries)
        let k = (0..<keys).map { $0 == 2985 ? Float(9) : 0 }
        let rows = try attention.diagnostics(queries: q, keys: k, leadingKeys: 2986)
        for row in rows {
            #expect(row.heaviestKey == 2985)
            // Keys up to 2985 of those that each row sees.
            #expect(row.leadingWeight > 0.99 && row.leadingWeight <= 1)
        }
        #expect(try attention.diagnostics(queries: q, keys: k, leadingKeys: 960).allSatisfy { $0.leadingWeight == 0 })
        let map = try attention.headMaps(queries: q, keys: k, rowBands: 1, keyBands: 1000)[0]
        #expect(map.weights[995] > 0.99 && map.weights[..<985].allSatisfy { $0 == 0 })
        #expect(map.weightByDistance.map(\.distances) == [0...0, 1...1, 2...3, 4...7, 8...15, 16...31])
    }

    /// Each sequence has bands of its own.
    @Test func packedSequences() throws {
        let shape = try AttentionShape(packed: [0, 4, 6], keyOffsets: [0, 2, 10], queryHeads: 1, headDimension: 1)
        let map = try Attention(shape, sink: .softmax, scale: 1).headMaps(
            queries: [1, 1, 1, 1, 1, 1], keys: [30, 0] + [0, 0, 0, 0, 0, 0, 0, 30], rowBands: 2, keyBands: 4)[0]
        #expect(map.rowCounts == [3, 3])
        // Two rows of the first sequence on its first key, one of the second on its last.
        for band in 0..<2 {
            let row = Array(map.weights[band * 4..<band * 4 + 4])
            #expect(areClose(row, [2.0 / 3, 0, 0, 1.0 / 3], 1e-6), "\(row)")
        }
    }

    @Test func rowsWithoutWeights() throws {
        let shape = try AttentionShape(queryHeads: 2, queries: 3, keys: 2, headDimension: 1)
        let attention = try Attention(shape, sink: .softmax1, mask: .causal, scale: 1)
        let maps = try attention.headMaps(queries: [1, 1, 1, 1, .nan, 1], keys: [1, 1, 1, 1])
        // The first row sees no key.
        #expect(maps[0].rowCounts == [0, 1, 1] && maps[1].rowCounts == [0, 0, 1])
        #expect(maps.map(\.undefinedRows) == [0, 1])
        #expect(maps[0].sinkShares[0].isNaN && maps[0].weights[0].isNaN)
        #expect(maps[1].diagnostics.entropy.isNaN && maps[1].weights[4] == maps[0].weights[4])
        let none = try Attention(AttentionShape(queryHeads: 1, queries: 0, keys: 0, headDimension: 1), sink: .softmax1)
            .headMaps(queries: [], keys: [])
        #expect(none[0].weights.count == 1 && none[0].rowCounts == [0] && none[0].weightByDistance.isEmpty)
    }

    @Test func bandsOutOfRange() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 1)
        for (rows, keys) in [(0, 1), (1, 0), (-1, 5), (1025, 1), (1, 1025)] {
            #expect {
                _ = try Attention(shape, sink: .softmax).headMaps(
                    queries: [1], keys: [1], rowBands: rows, keyBands: keys)
            } throws: {
                ($0 as? AttentionError)?.kind == .bands
            }
        }
    }
}
