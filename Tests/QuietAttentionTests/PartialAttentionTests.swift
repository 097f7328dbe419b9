// SPDX-License-Identifier: Apache-2.0
// PartialAttentionTests.swift - attention over ranges of keys, merged: the bits of attention over all of them.

import TestSupport
import Testing

@testable import QuietAttention

@Suite struct PartialAttentionTests {
    private static let problem = CacheProblem(tokens: 4200)
    private static let queries = 4190..<4200

    @Test(arguments: CacheNumbers.all, KernelSet.available + KernelSet.emulated)
    func anyCutAtChunksGivesTheWhole(_ numbers: CacheNumbers, _ kernels: KernelSet) throws {
        let problem = CacheProblem(tokens: 2150)
        let queries = problem.queries(2147..<2150)
        let cache = try problem.cache(numbers, kernels: kernels, appending: 0..<2150)
        let sink = AttentionSink.logits([0, -.infinity, 2, -3, 100, -100])
        let attention = try problem.attention(kernels, sink: sink, products: numbers.products)
        for mask in [AttentionMask.causal, .window(1500)] {
            let expected = try attention.attend(queries: queries, cache: cache, mask: mask).bits
            for cut in [[0, 2150], [0, 1024, 2150], [0, 2048, 2150], [0, 1024, 2048, 2150]] {
                let parts = try zip(cut, cut.dropFirst()).map {
                    try attention.partial(queries: queries, cache: cache, keys: $0..<$1, mask: mask)
                }
                let merged = try parts.dropFirst().reduce(parts[0]) { try $0.merged(with: $1) }
                #expect(merged.keys == 0..<2150)
                #expect(try merged.finish(sink: sink).bits == expected, "\(cut)")
            }
        }
    }

    @Test func mergingIsAssociative() throws {
        let problem = Self.problem
        let cache = try problem.cache(appending: 0..<problem.tokens)
        let attention = try problem.attention(threads: 3)
        let queries = problem.queries(Self.queries)
        let parts = try [0..<1024, 1024..<3072, 3072..<4200].map {
            try attention.partial(queries: queries, cache: cache, keys: $0)
        }
        let left = try parts[0].merged(with: parts[1]).merged(with: parts[2])
        let right = try parts[0].merged(with: parts[1].merged(with: parts[2]))
        let expected = try problem.forward(Self.queries).bits
        #expect(try left.finish(sink: .softmax1).bits == expected)
        #expect(try right.finish(sink: .softmax1).bits == expected)
    }

    /// The sink has its weight once, however many parts there are.
    @Test func theSinkCountsOnce() throws {
        let problem = CacheProblem(tokens: 2048) { $0.valueDimension = 1 }
        let zeros = [Float](repeating: 0, count: problem.keys.count)
        var cache = try problem.cache()
        try cache.append(keys: zeros, values: [Float](repeating: 1, count: problem.values.count))
        let attention = try problem.attention()
        let queries = problem.queries(2047..<2048)
        let parts = try [0..<1024, 1024..<2048].map {
            try attention.partial(queries: queries, cache: cache, keys: $0)
        }
        let result = try parts[0].merged(with: parts[1]).finish(sink: .softmaxN(2048))
        #expect(result.sinkShare.allSatisfy { $0 == 0.5 })
        #expect(result.output.allSatisfy { $0 == 0.5 })
    }

    /// Of biases beyond the range of base 2, as masks hold them, parts keep the log-sum-exp, and what a sink of that size weighs.
    @Test(arguments: [-Float.infinity, -1.4e38, -2e38])
    func biasesAsLargeAsFloatGoes(_ sink: Float) throws {
        let problem = CacheProblem(tokens: 1100)
        let cache = try problem.cache(appending: 0..<problem.tokens)
        let queries = problem.queries(1098..<1100)
        let sinks = AttentionSink.logits([Float](repeating: sink, count: problem.queryHeads))
        let attention = try problem.attention(sink: sinks)
        for lowest in [-3.4e38, -2.2e38] as [Float] {
            let bias = try BroadcastTensor([Float](repeating: lowest, count: problem.tokens), keys: problem.tokens)
            let expected = try attention.attend(queries: queries, cache: cache, bias: bias)
            let parts = try [0..<1024, 1024..<1100].map {
                try attention.partial(queries: queries, cache: cache, keys: $0, bias: bias)
            }
            let result = try parts[0].merged(with: parts[1]).finish(sink: sinks)
            #expect(result.bits == expected.bits)
            #expect(expected.logSumExp.allSatisfy { abs($0 - max(lowest, sink)) < 1e33 })
        }
    }

    // MARK: - A shared prefix

    private static let shared = CacheProblem(tokens: 2048 + 100) {
        ($0.headDimension, $0.group, $0.valueDimension) = (PlaceRules.headDimension, 2, 5)
    }

    /// Of each request: the tokens of its branch behind the shared 2078, and how many of its last ones are queries.
    private static let requests = [(tokens: 30, queries: 4), (tokens: 70, queries: 1), (tokens: 0, queries: 2)]

    /// The recipe of ``PartialAttention``, under everything that depends on where a query stands.
    @Test(arguments: PlaceRules.all)
    func requestsAnywhereReadTheirPrefixTogether(_ rules: PlaceRules) throws {
        let problem = Self.shared
        let attention = try rules.attention(problem, threads: 2)
        let prefix = try rules.cache(problem, 0..<2078)
        let end = 2048
        var (branches, positions, ranges) = ([KeyValueCache](), [Int](), [Range<Int>]())
        for request in Self.requests {
            var branch = prefix
            try problem.append(2078..<2078 + request.tokens, to: &branch)
            ranges.append(branch.count - request.queries..<branch.count)
            positions += ranges[ranges.count - 1]
            branches.append(branch)
        }
        // As one tensor: queries of all requests, head by head.
        let tensors = ranges.map { problem.queries($0) }
        let all = (0..<problem.queryHeads).flatMap { head in
            zip(tensors, ranges).flatMap { tensor, range in
                tensor.rows(head * range.count, range.count, problem.headDimension)
            }
        }
        let counts = positions.map { place in min(rules.before ?? place, place) + 1 }
        let places = QueryPlaces(positions: positions, keyCounts: counts)
        let shared = try attention.partial(
            queries: all, cache: prefix, keys: 0..<end, places: places, mask: rules.mask)
        let misplaced = try attention.partial(queries: all, cache: prefix, keys: 0..<end, mask: rules.mask)
        var first = 0
        for (branch, (tensor, range)) in zip(branches, zip(tensors, ranges)) {
            let rows = first..<first + range.count
            first = rows.upperBound
            let own = try attention.partial(
                queries: tensor, cache: branch, keys: end..<branch.count, mask: rules.mask)
            let result = try shared[rows].merged(with: own).finish(sink: rules.sink)
            #expect(try result.bits == attention.attend(queries: tensor, cache: branch, mask: rules.mask).bits)
            // Without places the queries would stand at the end of the prefix.
            if rules.dependsOnPlaces, range.upperBound != prefix.count {
                let error = #expect(throws: AttentionError.self) { _ = try misplaced[rows].merged(with: own) }
                #expect(error?.kind == .partialTerms)
            }
        }
    }

    /// Of n keys in all, each part would count its own.
    @Test func partsThatCountDifferently() throws {
        let problem = Self.shared
        let rules = PlaceRules(description: "log n", mask: .none, after: nil, scaling: .logKeys(base: 8))
        let attention = try rules.attention(problem)
        let (prefix, whole) = (try rules.cache(problem, 0..<2048), try rules.cache(problem, 0..<2148))
        let queries = problem.queries(2147..<2148)
        let own = try attention.partial(queries: queries, cache: whole, keys: 2048..<2148)
        let blind = try attention.partial(
            queries: queries, cache: prefix, places: QueryPlaces(positions: [2147]), mask: .none)
        let error = expectRefusal(.partialTerms, "next.scaling") { _ = try blind.merged(with: own) }
        #expect(error?.description.hasSuffix("places.keyCounts says how many keys there are in all") == true)
        let told = try attention.partial(
            queries: queries, cache: prefix, places: QueryPlaces(positions: [2147], keyCounts: [2148]), mask: .none)
        #expect(
            try told.merged(with: own).finish(sink: .softmax1).bits
                == attention.attend(queries: queries, cache: whole).bits)
    }

    @Test func partsOfOtherRules() throws {
        let problem = Self.shared
        let queries = problem.queries(2147..<2148)
        let plain = PlaceRules.all[0]
        let cache = try plain.cache(problem, 0..<2148)
        let left = try plain.attention(problem).partial(queries: queries, cache: cache, keys: 0..<2048)
        func refuse(_ argument: String, _ attention: CachedAttention, _ cache: KeyValueCache) throws {
            let right = try attention.partial(queries: queries, cache: cache, keys: 2048..<2148)
            expectRefusal(.partialTerms, argument) { _ = try left.merged(with: right) }
        }
        for rules in [CacheProblem.Rules(softcap: 5), CacheProblem.Rules(alibi: .standard)] {
            try refuse("next.attention", problem.attention(rules: rules), cache)
        }
        try refuse(
            "next.attention", CachedAttention(queryHeads: problem.queryHeads, sink: .softmax1, scale: 1), cache)
        let products = try problem.cache(.bfloat16Products, appending: 0..<2148)
        try refuse("next.products", problem.attention(products: .bfloat16), products)
        try refuse("next.scaling", problem.attention(rules: .init(scaling: .logKeys(base: 8))), cache)
        for positions in [PlaceRules.encodings[0], PlaceRules.encodings.last!] {
            let other = PlaceRules(description: "other", positions: positions)
            try refuse("next.cache", problem.attention(), other.cache(problem, 0..<2148))
        }
    }

    /// A sink of log n has the n of all parts, which no part knows by itself.
    @Test func aSinkThatCountsKeys() throws {
        let problem = CacheProblem(tokens: 2048) { $0.valueDimension = 1 }
        let zeros = [Float](repeating: 0, count: problem.keys.count)
        var cache = try problem.cache()
        try cache.append(keys: zeros, values: [Float](repeating: 1, count: problem.values.count))
        let queries = problem.queries(2046..<2048)
        for attention in try [problem.attention(), problem.attention(sink: .logKeys())] {
            let parts = try [0..<1024, 1024..<2048].map {
                try attention.partial(queries: queries, cache: cache, keys: $0)
            }
            let merged = try parts[0].merged(with: parts[1])
            let result = try merged.finish(sink: .logKeys(), keyCounts: [2047, 2048])
            #expect(result.sinkShare.allSatisfy { abs($0 - 0.5) < 1e-6 })
            #expect(
                try result.bits
                    == problem.attention(sink: .logKeys()).attend(queries: queries, cache: cache).bits)
            expectRefusal(.composition, "keyCounts") { _ = try merged.finish(sink: .logKeys()) }
            expectRefusal(.positionCount, "keyCounts") { _ = try merged.finish(sink: .logKeys(), keyCounts: [2048]) }
            expectRefusal(.position, "keyCounts[1]") { _ = try merged.finish(sink: .logKeys(), keyCounts: [1, -1]) }
            // Told once, they are known, and nothing else is taken for them.
            let places = QueryPlaces(positions: [2046, 2047], keyCounts: [2047, 2048])
            let told = try attention.partial(queries: queries, cache: cache, places: places)
            #expect(try told.finish(sink: .logKeys()).bits == result.bits)
            expectRefusal(.position, "keyCounts[0]") { _ = try told.finish(sink: .logKeys(), keyCounts: [1, 2048]) }
            // No key, no sink.
            let none = try merged.finish(sink: .logKeys(), keyCounts: [0, 0])
            #expect(none.sinkShare.allSatisfy { $0 == 0 })
        }
    }

    @Test func requestsReadTheirPrefixTogether() throws {
        let problem = CacheProblem(tokens: 2048 + 30)
        let prefix = try problem.cache(.bfloat16, appending: 0..<2048)
        let attention = try problem.attention(threads: 2)
        let all = 2048..<2078
        let shared = try attention.partial(queries: problem.queries(all), cache: prefix, mask: .none)
        for request in 0..<3 {
            let range = 2048 + 10 * request..<2048 + 10 * (request + 1)
            var branch = prefix
            try problem.append(range, to: &branch)
            let queries = problem.queries(range)
            let own = try attention.partial(queries: queries, cache: branch, keys: 2048..<branch.count)
            let merged = try shared[10 * request..<10 * (request + 1)].merged(with: own)
            #expect(try merged.finish(sink: .softmax1).bits == attention.attend(queries: queries, cache: branch).bits)
        }
    }

    @Test func chunksWithoutAVisibleKey() throws {
        let problem = Self.problem
        var cache = try problem.cache(window: 50, appending: 0..<4000)
        try problem.append(4000..<4200, to: &cache)
        let attention = try problem.attention()
        let queries = problem.queries(Self.queries)
        // Keys that the window has left behind are part of a range that no row sees.
        let part = try attention.partial(queries: queries, cache: cache)
        #expect(try part.finish(sink: .softmax1).bits == problem.forward(Self.queries, mask: .window(50)).bits)
        let nothing = try attention.partial(queries: queries, cache: cache, keys: 0..<2048).finish(sink: .softmaxN(2))
        #expect(nothing.output.allSatisfy { $0 == 0 } && nothing.sinkShare.allSatisfy { $0 == 1 })
        let none = try attention.partial(queries: queries, cache: cache, keys: 1024..<1024)
        #expect(try none.finish(sink: .softmax).logSumExp.allSatisfy { $0 == -.infinity })
    }

    /// The largest score of a chunk whose scores are all NaN is -inf, as of one that a row does not see.
    @Test func scoresThatAreNaN() throws {
        var problem = CacheProblem(tokens: 2100)
        let queries = problem.queries(2090..<2100)
        problem.setKeys(0..<1024, to: .nan)
        for (queries, problem) in [
            (queries, problem), (queries.map { _ in Float.nan }, CacheProblem(tokens: 2100)),
        ] {
            let cache = try problem.cache(appending: 0..<2100)
            let attention = try problem.attention(threads: 2)
            let parts = try [0..<1024, 1024..<2100].map {
                try attention.partial(queries: queries, cache: cache, keys: $0)
            }
            let results = [
                try parts[0].merged(with: parts[1]).finish(sink: .softmax1),
                try attention.attend(queries: queries, cache: cache),
                try problem.attention(threads: 1).attend(queries: queries, cache: cache),
            ]
            for result in results {
                #expect((result.output + result.logSumExp + result.sinkShare).allSatisfy { $0.isNaN })
            }
        }
    }

    @Test func emptyParts() throws {
        let problem = CacheProblem(tokens: 3)
        let cache = try problem.cache()
        let attention = try problem.attention()
        expectRefusal(.cacheRange, "caches[0]") {
            _ = try attention.partial(queries: problem.queries(0..<1), cache: cache)
        }
        #expect(try attention.partial(queries: [], cache: cache).finish(sink: .softmax1).output.isEmpty)
    }

    @Test func rangesThatDoNotFollowEachOther() throws {
        let problem = Self.problem
        let cache = try problem.cache(appending: 0..<problem.tokens)
        let attention = try problem.attention()
        let queries = problem.queries(Self.queries)
        for keys in [0..<1000, 1..<1024, 5120..<5120, 4096..<5120, -1024..<1024] {
            expectRefusal(.keyRange, "keys") { _ = try attention.partial(queries: queries, cache: cache, keys: keys) }
        }
        let left = try attention.partial(queries: queries, cache: cache, keys: 0..<1024)
        let right = try attention.partial(queries: queries, cache: cache, keys: 2048..<4200)
        let error = expectRefusal(.keyRange, "next") { _ = try left.merged(with: right) }
        #expect(error?.description == "next: expected keys from 1024 on, got keys 2048..<4200")
        expectRefusal(.keyRange, "next") { _ = try right.merged(with: left) }
        let other = try attention.partial(queries: problem.queries(0..<1), cache: cache, keys: 1024..<2048)
        expectRefusal(.partialShape, "next") { _ = try left.merged(with: other) }
        expectRefusal(.sinkCount, "sink.logits") { _ = try left.finish(sink: .logits([0])) }
    }
}
