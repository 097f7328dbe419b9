// SPDX-License-Identifier: Apache-2.0
// PlaceRules.swift - rules for scores that depend on where a query stands, and what the reference gives for queries anywhere.

import AttentionReference
import TestSupport

@testable import QuietAttention

/// One combination of what depends on a query's place or on the keys that it sees.
struct PlaceRules: Sendable, CustomStringConvertible {
    var description: String
    var mask = AttentionMask.causal
    /// The mask's keys around a row's own; nil: no bound.
    var before: Int?
    var after: Int? = 0
    var scaling = ScoreScaling.constant
    var alibi: ALiBi?
    var positions = PositionCase("none", nil)
    var sink = AttentionSink.softmax1
    var numbers = CacheNumbers.float32

    /// How far results may be from the formulas, relative in the 2-norm: weights of products of bfloat16 have 8 bits, and so
    /// have queries, keys and values.
    var tolerance: Double { numbers.products == .float32 ? 3e-6 : 1e-2 }

    static let headDimension = 6

    /// Whether parts for queries elsewhere would be wrong.
    var dependsOnPlaces: Bool {
        alibi != nil || positions.embedding != nil || before != nil || after != nil || !scaling.isConstant
    }

    /// Every encoding as caches take it: for sequences of at most so many tokens.
    static func encodings(length: Int) -> [PositionCase] {
        PositionCase.all(headDimension: headDimension).map { positions in
            var positions = positions
            if positions.name == "dynamic NTK" {
                positions.embedding?.scaling = .dynamic(factor: 2, trainedLength: 40, length: length)
            }
            if case .longrope(let short, let long, let factor, let trained, _, nil) = positions.embedding?.scaling {
                positions.embedding?.scaling = .longrope(
                    shortFactor: short, longFactor: long, factor: factor, trainedLength: trained, length: length)
            }
            return positions
        }
    }

    static let encodings = encodings(length: 4000)

    /// Each alone, then all together.
    static let all: [PlaceRules] =
        [
            PlaceRules(description: "causal"),
            PlaceRules(description: "window", mask: .window(70), before: 69),
            PlaceRules(description: "both sides", mask: .window(before: 1200, after: 3), before: 1200, after: 3),
            PlaceRules(description: "ALiBi", alibi: .standard),
            PlaceRules(description: "ALiBi, all keys", mask: .none, after: nil, alibi: .standard),
            PlaceRules(description: "log n", scaling: .logKeys(base: 8)),
            PlaceRules(description: "clipped log n", scaling: .clippedLogKeys(base: 600)),
            PlaceRules(description: "kappa log n", scaling: .logKeysPerDimension(kappa: 0.5)),
            PlaceRules(description: "scalable softmax", scaling: .scalableSoftmax([0.25, 0.5, 0.125, 0.75])),
            PlaceRules(description: "a sink of log n", sink: .logKeys(offset: -1)),
        ]
        + encodings.map { PlaceRules(description: "\($0)", positions: $0) }
        + [
            PlaceRules(description: "products of bfloat16", numbers: .bfloat16Products),
            PlaceRules(
                description: "products of turned rows", positions: encodings[0], sink: .logKeys(offset: -1),
                numbers: .bfloat16Products),
            PlaceRules(
                description: "products under a window", mask: .window(70), before: 69, scaling: .logKeys(base: 8),
                alibi: .standard, numbers: .bfloat16Products),
            PlaceRules(
                description: "everything", mask: .window(1500), before: 1499, scaling: .logKeys(base: 8),
                alibi: .standard, positions: encodings[0], sink: .logKeys()),
        ]

    func attention(_ problem: CacheProblem, _ kernels: KernelSet? = nil, threads: Int = 1) throws -> CachedAttention {
        try problem.attention(
            kernels, sink: sink, rules: .init(scaling: scaling, alibi: alibi), products: numbers.products,
            threads: threads)
    }

    func cache(
        _ problem: CacheProblem, _ range: Range<Int>, _ kernels: KernelSet? = nil, window: Int? = nil
    ) throws -> KeyValueCache {
        var cache = try KeyValueCache(
            keyValueHeads: problem.keyValueHeads, headDimension: problem.headDimension,
            valueDimension: problem.valueDimension, storage: numbers.storage, window: window,
            positions: positions.positions, queryKeyNorm: positions.norm, products: numbers.products,
            kernels: kernels)
        try problem.append(range, to: &cache)
        return cache
    }

    // MARK: - Reference

    /// Queries `range` of a problem that stand at `places`, over all of its tokens.
    ///
    /// - Parameter counts: n of each query; nil: the keys that it sees.
    private func reference(
        _ problem: CacheProblem, _ places: [Int], counts: [Int]?, allowed: [Bool]? = nil
    ) throws -> ReferenceProblem {
        let heads = problem.queryHeads
        var reference = ReferenceProblem(
            queryHeads: heads, keyValueHeads: problem.keyValueHeads, queries: places.count, keys: problem.tokens,
            headDimension: problem.headDimension, valueDimension: problem.valueDimension,
            sinks: try sink.logits(queryHeads: heads))
        let diagonal = problem.tokens - places.count
        reference.firstKeyOffset = before.map { diagonal - $0 }
        reference.lastKeyOffset = after.map { diagonal + $0 + 1 }
        reference.places = places
        reference.products = numbers.products == .float32 ? .float32 : .bfloat16
        reference.allowed = allowed.map { ReferenceBroadcast($0, extents: [1, 1, places.count, problem.tokens]) }
        reference.alibiSlopes = try alibi.map { _ in try ALiBi.slopes(queryHeads: heads) }
        let counts = counts.map { given in (0..<heads).flatMap { _ in given } } ?? reference.visibleKeyCounts
        reference.rowFactors = counts.enumerated().map { row, count in
            scaling.factor(
                keys: count, headDimension: problem.headDimension, item: 0, head: row / places.count,
                query: row % places.count)
        }
        if sink.countsKeys {
            reference.rowConstants = counts.map {
                $0 == 0 ? -.infinity : Float(ElementaryFunctions.logarithm(Double($0)))
            }
        }
        return reference
    }

    /// Bit for bit, of queries `range`.
    func expected(
        _ problem: CacheProblem, _ range: Range<Int>, places: [Int], counts: [Int]? = nil, keyPositions: [Int]? = nil,
        allowed: [Bool]? = nil
    ) throws -> AttentionResult {
        let reference = try reference(problem, places, counts: counts, allowed: allowed)
        let result = reference.forward(
            queries: rows(problem.queries(range), places, problem) {
                positions.prepared($0, positions: $1, headDimension: $2, length: 0, .queries)
            },
            keys: rows(problem.keys, keyPositions ?? Array(0..<problem.tokens), problem) {
                positions.prepared($0, positions: $1, headDimension: $2, length: 0, .keys)
            },
            values: problem.values)
        return AttentionResult(output: result.output, logSumExp: result.logSumExp, sinkShare: result.sinkShare)
    }

    /// By the formulas, in Double.
    func oracle(
        _ problem: CacheProblem, _ range: Range<Int>, places: [Int], counts: [Int]? = nil
    ) throws -> ForwardResult<Double> {
        try reference(problem, places, counts: counts).oracle(
            queries: rows(problem.queries(range), places, problem) {
                positions.oracle($0, positions: $1, headDimension: $2, length: 0, .queries).map(Float.init)
            },
            keys: rows(problem.keys, Array(0..<problem.tokens), problem) {
                positions.oracle($0, positions: $1, headDimension: $2, length: 0, .keys).map(Float.init)
            },
            values: problem.values)
    }

    /// `[heads][places][headDimension]`, head by head.
    private func rows(
        _ tensor: [Float], _ places: [Int], _ problem: CacheProblem, _ prepare: ([Float], [Int], Int) -> [Float]
    ) -> [Float] {
        let count = places.count * problem.headDimension
        return stride(from: 0, to: tensor.count, by: count).flatMap {
            prepare(Array(tensor[$0..<$0 + count]), places, problem.headDimension)
        }
    }
}
