// SPDX-License-Identifier: Apache-2.0
// PartialTerms.swift - what the states of a part depend on beside queries, keys and values: parts merge where these agree.

/// The rules of scores, and where each query stands.
struct PartialTerms: Sendable {
    let scale: Double
    let softcap: Double?
    let alibi: ALiBi?
    let products: AttentionProducts
    let positions: AttentionPositions
    let norm: QueryKeyNorm?
    /// Whether scores have a bias, and so a wider range, in some part.
    private(set) var isBiased: Bool
    /// What each row's scale is multiplied by, `[queryHeads][queries]`; empty: 1.
    private(set) var factors: [Double]
    /// The position of each query.
    private(set) var places: [Int]
    /// Whether scores, or which keys are seen, depend on the places.
    let dependsOnPlaces: Bool
    /// The keys that each query sees in all, as the caller told; nil: not told.
    private(set) var keyCounts: [Int]?

    /// - Parameter problem: of one cache.
    init(_ scores: CheckedScores, _ problem: CachedProblem, _ cache: KeyValueCache, mask: AttentionMask) {
        (scale, softcap, alibi) = (scores.scale, scores.rules.softcap, scores.rules.alibi)
        (products, positions, norm) = (cache.products, cache.encoding, cache.queryKeyNorm)
        isBiased = problem.bias != nil
        let plan = problem.sequences.first
        factors = problem.scores.factors(heads: problem.shape.queryHeads, queries: problem.shape.queries)
        (places, keyCounts) = (plan?.positions ?? [], plan?.keyCounts)
        dependsOnPlaces =
            cache.encoding.embedding != nil || alibi != nil || mask.within(window: cache.window).isBand
    }

    /// Those of some of the queries.
    subscript(range: Range<Int>) -> PartialTerms {
        var part = self
        let queries = places.count
        part.factors = stride(from: 0, to: factors.count, by: max(queries, 1)).flatMap { start in
            factors[start + range.lowerBound..<start + range.upperBound]
        }
        part.places = Array(places[range])
        part.keyCounts = keyCounts.map { Array($0[range]) }
        return part
    }

    /// What both parts together depend on.
    ///
    /// - Throws: ``AttentionError`` of kind `partialTerms` when they were not computed by the same rules, or not for
    ///   queries at the same positions where something depends on these.
    func merged(with next: PartialTerms) throws(AttentionError) -> PartialTerms {
        func refusal(_ argument: String, _ expected: String, _ found: String) -> AttentionError {
            AttentionError(.partialTerms, "next.\(argument)", expected: expected, found: found)
        }
        guard (scale, softcap) == (next.scale, next.softcap), alibi == next.alibi else {
            throw refusal("attention", "the scale, softcap and ALiBi of the part before", "others")
        }
        guard products == next.products else {
            throw refusal("products", "\(products.rawValue), as of the part before", next.products.rawValue)
        }
        guard positions == next.positions, norm == next.norm else {
            throw refusal("cache", "the positions and the norm of the cache of the part before", "others")
        }
        if dependsOnPlaces, next.dependsOnPlaces,
            let index = places.indices.first(where: { places[$0] != next.places[$0] })
        {
            throw refusal(
                "places.positions[\(index)]", "\(places[index]), where the query stood for the part before",
                "\(next.places[index])")
        }
        if let index = firstDifference(factors, next.factors) {
            throw refusal(
                "scaling", "the factor \(factors.isEmpty ? 1 : factors[index]) in row \(index), as of the part before",
                "\(next.factors.isEmpty ? 1 : next.factors[index]): places.keyCounts says how many keys there are in all"
            )
        }
        if let keyCounts, let nextCounts = next.keyCounts, keyCounts != nextCounts {
            throw refusal("places.keyCounts", "\(keyCounts)", "\(nextCounts)")
        }
        var both = dependsOnPlaces ? self : next
        both.keyCounts = keyCounts ?? next.keyCounts
        return both
    }

    private func firstDifference(_ left: [Double], _ right: [Double]) -> Int? {
        (0..<max(left.count, right.count)).first { (left.isEmpty ? 1 : left[$0]) != (right.isEmpty ? 1 : right[$0]) }
    }

    /// The natural logarithms of the keys that queries see in all, -inf for none.
    ///
    /// - Parameter given: by the caller of `finish`; nil: what parts were told of.
    func logKeys(_ given: [Int]?) throws(AttentionError) -> [Float] {
        guard let counts = given ?? keyCounts else {
            throw AttentionError(
                .composition, "keyCounts",
                expected: "the keys that each query sees in all, of which the sink takes the logarithm",
                found: "none")
        }
        guard counts.count == places.count else {
            throw AttentionError(
                .positionCount, "keyCounts", expected: "\(places.count), one per query", found: "\(counts.count)")
        }
        for (query, count) in counts.enumerated() {
            guard count >= 0, keyCounts.map({ $0[query] == count }) ?? true else {
                throw AttentionError(
                    .position, "keyCounts[\(query)]",
                    expected: keyCounts.map { "\($0[query]), of which the parts were told" } ?? "0 or more",
                    found: "\(count)")
            }
        }
        return counts.map { $0 == 0 ? -.infinity : Float(ElementaryFunctions.logarithm(Double($0))) }
    }
}

extension KernelScores {
    /// What the scale of the first batch item's rows is multiplied by, `[heads][queries]`; empty: 1.
    func factors(heads: Int, queries: Int) -> [Double] {
        guard let factors = rowFactors else { return [] }
        return (0..<heads).flatMap { head in
            (0..<queries).map { factors.values[head * factors.strides.heads + $0 * factors.strides.queries] }
        }
    }
}
