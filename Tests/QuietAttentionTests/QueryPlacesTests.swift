// SPDX-License-Identifier: Apache-2.0
// QueryPlacesTests.swift - queries that are not the last tokens of a cache: where they stand, and how many keys they see.

import AttentionReference
import TestSupport
import Testing

@testable import QuietAttention

@Suite struct QueryPlacesTests {
    /// Beyond a chunk, and not at the end of a page.
    private static let problem = CacheProblem(tokens: 1100) {
        ($0.headDimension, $0.group, $0.valueDimension) = (PlaceRules.headDimension, 2, 5)
    }

    /// In no order, two of them at one position, before the first token and behind the last one.
    private static let places = [1099, 64, 63, 700, 700, 1023, 1024, -3, 0, 1500, 1100, 5]
    private static let range = 1000..<1012

    @Test(arguments: PlaceRules.all)
    func anywhereEqualsTheReference(_ rules: PlaceRules) throws {
        let problem = Self.problem
        let expected = try rules.expected(problem, Self.range, places: Self.places)
        let oracle = try rules.oracle(problem, Self.range, places: Self.places)
        let queries = problem.queries(Self.range)
        for kernels in KernelSet.available {
            let cache = try rules.cache(problem, 0..<1100, kernels)
            for threads in [1, 3] {
                let result = try rules.attention(problem, kernels, threads: threads).attend(
                    queries: queries, cache: cache, places: QueryPlaces(positions: Self.places), mask: rules.mask)
                try requireSameBits("out", result.output, expected.output, "\(kernels): \(rules)")
                try requireSameBits("lse", result.logSumExp, expected.logSumExp, "\(kernels): \(rules)")
                try requireSameBits("sink share", result.sinkShare, expected.sinkShare, "\(kernels): \(rules)")
            }
        }
        #expect(relativeError(expected.output, oracle.output) < rules.tolerance)
    }

    /// Each query alone, as the last one of an attention without a cache over the keys up to its own.
    @Test(arguments: PlaceRules.all.filter { $0.after == 0 })
    func anywhereEqualsAttentionWithoutACache(_ rules: PlaceRules) throws {
        let problem = Self.problem
        let cache = try rules.cache(problem, 0..<1100)
        let places = Self.places.filter { (0..<1100).contains($0) }
        let queries = problem.queries(0..<places.count)
        let result = try rules.attention(problem).attend(
            queries: queries, cache: cache, places: QueryPlaces(positions: places), mask: rules.mask)
        for (query, place) in places.enumerated() {
            let shape = try AttentionShape(
                queryHeads: problem.queryHeads, keyValueHeads: problem.keyValueHeads, queries: 1, keys: place + 1,
                headDimension: problem.headDimension, valueDimension: problem.valueDimension)
            func first(_ tensor: [Float], _ width: Int) -> [Float] {
                (0..<problem.keyValueHeads).flatMap { head -> ArraySlice<Float> in
                    let start = head * problem.tokens * width
                    return tensor[start..<start + (place + 1) * width]
                }
            }
            let alone = try Attention(
                shape, sink: rules.sink, mask: rules.mask, scaling: rules.scaling, alibi: rules.alibi,
                positions: rules.positions.positions, queryKeyNorm: rules.positions.norm,
                products: rules.numbers.products, threads: 1
            ).forward(
                queries: problem.queries(query..<query + 1), keys: first(problem.keys, problem.headDimension),
                values: first(problem.values, problem.valueDimension))
            #expect(result.bits(ofQuery: query, of: places.count) == alone.bits(ofQuery: 0, of: 1), "position \(place)")
        }
    }

    /// Places that say what holds anyway change nothing, of one cache or of several with different numbers of queries.
    @Test(arguments: PlaceRules.all.suffix(1) + PlaceRules.all.prefix(2))
    func placesThatSayWhatHolds(_ rules: PlaceRules) throws {
        let problem = Self.problem
        let caches = [
            try rules.cache(problem, 0..<1100), try rules.cache(problem, 0..<70), try rules.cache(problem, 0..<9),
        ]
        let attention = try rules.attention(problem, threads: 2)
        let queries = problem.queries(5..<13)
        let expected = try attention.attend(queries: queries, cache: caches[0], mask: rules.mask).bits
        let places = QueryPlaces(positions: Array(1092..<1100), keyCounts: nil)
        #expect(
            try attention.attend(queries: queries, cache: caches[0], places: places, mask: rules.mask).bits == expected)

        let packed = problem.queries(0..<9, layout: .batchSequenceHeads)
        let offsets = [0, 2, 2, 9]
        let whole = try attention.attend(queries: packed, caches: caches, queryOffsets: offsets, mask: rules.mask)
        let each = QueryPlaces(positions: [1098, 1099] + Array(2..<9))
        let placed = try attention.attend(
            queries: packed, caches: caches, queryOffsets: offsets, places: each, mask: rules.mask)
        #expect(placed.bits == whole.bits)

        // One list for all caches, or one for each.
        let batch = (0..<3).flatMap { _ in problem.queries(0..<2) }
        let shared = try attention.attend(
            queries: batch, caches: caches, places: QueryPlaces(positions: [8, 3]), mask: rules.mask)
        let spelledOut = try attention.attend(
            queries: batch, caches: caches, places: QueryPlaces(positions: [8, 3, 8, 3, 8, 3]), mask: rules.mask)
        #expect(shared.bits == spelledOut.bits)
        let last = try attention.attend(
            queries: problem.queries(0..<2), cache: caches[2], places: QueryPlaces(positions: [8, 3]), mask: rules.mask)
        #expect(Array(shared.output.suffix(last.output.count)) == last.output)
    }

    /// n as told, in factors and sinks and weights.
    @Test func countsThatAreTold() throws {
        let problem = Self.problem
        let counts = [7, 5000, 0, 1]
        for rules in PlaceRules.all where !rules.scaling.isConstant || rules.sink.countsKeys {
            let places = [1099, 500, 501, 0]
            let result = try rules.attention(problem).attend(
                queries: problem.queries(0..<4), cache: try rules.cache(problem, 0..<1100),
                places: QueryPlaces(positions: places, keyCounts: counts), mask: rules.mask)
            let expected = try rules.expected(problem, 0..<4, places: places, counts: counts)
            #expect(result.bits == expected.bits, "\(rules)")
        }
    }

    /// A window of the cache counts from where queries stand; what it has left behind is refused.
    @Test func windowsOfCaches() throws {
        let problem = Self.problem
        let rules = PlaceRules(description: "window", mask: .window(70), before: 69, positions: PlaceRules.encodings[0])
        let cache = try rules.cache(problem, 0..<1100, window: 70)
        let places = [1099, 1140, 1100, 1168, 1500]
        let attention = try rules.attention(problem)
        let result = try attention.attend(
            queries: problem.queries(0..<5), cache: cache, places: QueryPlaces(positions: places), mask: .none)
        let expected = try PlaceRules(
            description: "no end", before: 69, after: nil, positions: PlaceRules.encodings[0]
        ).expected(problem, 0..<5, places: places)
        #expect(result.bits == expected.bits)
        #expect(result.sinkShare[4] == 1)
        var left = cache
        for _ in 0..<3 { try problem.append(0..<100, to: &left) }
        expectRefusal(.cacheRange, "caches[0]") {
            _ = try attention.attend(
                queries: problem.queries(0..<2), cache: left, places: QueryPlaces(positions: [1399, 1000]))
        }
    }

    @Test func placesThatMakeNoSense() throws {
        let problem = Self.problem
        let frozen = PlaceRules.all.first { $0.description == "dynamic NTK" }!
        let cache = try frozen.cache(problem, 0..<1100)
        let attention = try frozen.attention(problem)
        func refuse(_ kind: AttentionError.Kind, _ argument: String, _ places: QueryPlaces) {
            expectRefusal(kind, argument) {
                _ = try attention.attend(queries: problem.queries(0..<2), cache: cache, places: places)
            }
        }
        refuse(.positionCount, "places.positions", QueryPlaces(positions: [1]))
        refuse(.positionCount, "places.positions", QueryPlaces(positions: [1, 2, 3]))
        refuse(.positionCount, "places.keyCounts", QueryPlaces(positions: [1, 2], keyCounts: [1]))
        refuse(.position, "places.keyCounts[1]", QueryPlaces(positions: [1, 2], keyCounts: [1, -1]))
        refuse(.position, "places.positions[0]", QueryPlaces(positions: [.max, 2]))
        refuse(.position, "places.positions[1]", QueryPlaces(positions: [0, -(1 << 40) - 1]))
        refuse(.position, "places.positions", QueryPlaces(positions: [0, 4000]))
        let rules = PlaceRules.all[0]
        let far = try rules.attention(problem).attend(
            queries: problem.queries(0..<2), cache: rules.cache(problem, 0..<1100),
            places: QueryPlaces(positions: [1 << 40, -(1 << 40)]), mask: .window(before: .max, after: 0))
        #expect(far.sinkShare[0] < 1 && far.sinkShare[1] == 1)
    }
}
