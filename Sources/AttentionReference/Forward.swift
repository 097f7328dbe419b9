// SPDX-License-Identifier: Apache-2.0
// Forward.swift - the forward pass in Float: the definition of every bit that the kernels give.

extension ReferenceProblem {
    /// The forward pass, operation by operation as every kernel set does it, and so with the same bits.
    /// Documentation/Numerics.md gives the reasons.
    ///
    /// Edge cases: A row that sees no key has output 0, logSumExp = sink, and sinkShare 1, or 0 where the sink is
    /// -infinity. A key that a row does not see is not read for it. A visible score of -infinity weighs exactly 0.
    /// NaN or +infinity in a visible score makes the row NaN and no other; NaN in a visible value makes its column of
    /// the row NaN. In int8, NaN or infinity anywhere in a visible key or value makes the row NaN.
    ///
    /// - Parameters:
    ///   - queries: [batch, queryHeads, queries, headDimension].
    ///   - keys: [batch, keyValueHeads, keys, headDimension].
    ///   - values: [batch, keyValueHeads, keys, valueDimension].
    public func forward(queries: [Float], keys: [Float], values: [Float]) -> ForwardResult<Float> {
        var result = ForwardResult<Float>(output: [], logSumExp: [], sinkShare: [])
        forEachRow(queries: queries, keys: keys, values: values) { row in
            let solved = solved(row, scores(row).finished)
            result.output += solved.output
            result.logSumExp.append(solved.logSumExp)
            result.sinkShare.append(solved.sinkShare)
        }
        return result
    }

    /// What forward keeps of each row for backward, in the order [batch, queryHeads, queries]: a weight of softmax is
    /// `exp2(t[j] - reference) * factor`. 0 and 0 for a row of a softmax that sees no key.
    public func weightNumbers(
        queries: [Float], keys: [Float], values: [Float]
    ) -> (references: [Float], factors: [Float]) {
        var (references, factors): ([Float], [Float]) = ([], [])
        forEachRow(queries: queries, keys: keys, values: values) { row in
            let solved = solved(row, scores(row).finished)
            references.append(solved.reference)
            factors.append(solved.factor)
        }
        return (references, factors)
    }

    /// The forward pass of a row, whose finished scores these are.
    func solved(_ row: Row, _ scores: [Float]) -> SolvedRow {
        let c = row.constant
        switch normaliser {
        case .softmax:
            let sums = sums(row, scores, .softmax)
            let totals = (sums ?? emptySums).totals(sink: row.sink + c)
            var result = SolvedRow(.softmax, sums ?? emptySums, factor: totals.factor, outputFactor: totals.factor)
            (result.logSumExp, result.sinkShare) = (sums == nil ? row.sink + c : totals.logSumExp, totals.sinkShare)
            return result
        case .clippedSoftmax(let zeta):
            // Two passes: a weight is clipped after it has been divided, which takes the sum of all.
            let first = sums(row, scores, .softmax)
            let totals = (first ?? emptySums).totals(sink: row.sink)
            let reference = finiteReference((first ?? emptySums).maximum)
            let clipped = RowNormaliser.clippedSoftmax(
                maximum: reference, factor: totals.factor, gamma: c, zeta: zeta)
            let second = sums(row, scores, clipped) ?? emptySums
            var result = SolvedRow(clipped, second, factor: totals.factor, outputFactor: 1)
            result.reference = reference
            (result.logSumExp, result.sinkShare) = (first == nil ? row.sink : totals.logSumExp, totals.sinkShare)
            return result
        case .sigmoid: return solved(row, scores, .sigmoid(bias: c))
        case .softpick: return solved(row, scores, .softpick(epsilon: c))
        case .reluSquared: return solved(row, scores, .reluSquared(divisor: c))
        case .normalisedReluSquared: return solved(row, scores, .normalisedReluSquared(sink: c))
        }
    }

    /// By a normaliser that has neither sink nor log-sum-exp.
    private func solved(_ row: Row, _ scores: [Float], _ normaliser: RowNormaliser) -> SolvedRow {
        let sums = sums(row, scores, normaliser) ?? OnlineSums(normaliser, valueDimension: valueDimension)
        let factor = normaliser.factor(sum: treeSum(sums.lanes))
        return SolvedRow(normaliser, sums, factor: factor, outputFactor: factor)
    }

    /// What a row that sees no key has of a softmax.
    private var emptySums: OnlineSums { OnlineSums(.softmax, valueDimension: valueDimension) }

    /// The sums over all keys that the row sees, chunk by chunk; nil if it sees none.
    private func sums(_ row: Row, _ scores: [Float], _ normaliser: RowNormaliser) -> OnlineSums? {
        var state: OnlineSums?
        for first in stride(from: 0, to: keys, by: keyChunk) {
            let range = first..<min(first + keyChunk, keys)
            guard let chunk = chunkSums(row, scores, normaliser, keys: range) else { continue }
            if state == nil { state = chunk } else { state?.merge(chunk) }
        }
        return state
    }

    /// The state of the row after one chunk of keys, from the empty state; nil if it sees none of them.
    private func chunkSums(
        _ row: Row, _ scores: [Float], _ normaliser: RowNormaliser, keys chunk: Range<Int>
    ) -> OnlineSums? {
        var state = OnlineSums(
            normaliser, valueDimension: valueDimension, isBiased: row.bias != nil, products: products)
        var seesAny = false
        for first in stride(from: chunk.lowerBound, to: chunk.upperBound, by: keyBlock) {
            let block = first..<min(first + keyBlock, chunk.upperBound)
            guard row.isVisible[block].contains(true) else { continue }
            seesAny = true
            scores.withUnsafeBufferPointer { scores in
                row.isVisible.withUnsafeBufferPointer { isVisible in
                    let values = row.int8.map { BlockValues.int8($0.values, first: $0.first + first) }
                    state.add(
                        scores: scores.baseAddress! + first, isVisible: isVisible.baseAddress! + first,
                        values: values ?? .floats(row.values + first * valueDimension), count: block.count)
                }
            }
        }
        return seesAny ? state : nil
    }

    /// The scores of the keys that the row sees, and 0 for the others:
    ///
    ///     capped[j]   = unit cap(scale factor q.k[j])
    ///     finished[j] = capped[j] - unit slope |position - j| + unit bias[j]
    ///
    /// unit is log2(e) for normalisers that take powers, so that a weight is a power of two, which is cheaper and more
    /// accurate than a power of e; otherwise 1. Whatever multiplies every product is in the query already, but with products
    /// of bfloat16, where it multiplies their sum.
    func scores(_ row: Row) -> (capped: [Float], finished: [Float]) {
        let unitFloat: Float = normaliser.takesScores ? 1 : log2eFloat
        let factor = scale * row.factor
        let queryFactor = Float(softcap.map { factor / $0 } ?? (normaliser.takesScores ? factor : factor * log2e))
        let query = (0..<headDimension).map { row.query[$0] * queryFactor }
        let product: (Int) -> Float
        if let int8 = row.int8 {
            let query = FifteenBits(query)
            product = { int8.keys.dot(query, row: int8.first + $0) }
        } else if products == .bfloat16 {
            product = { pairDot(row.query, row.keys + $0 * headDimension, count: headDimension) * queryFactor }
        } else {
            product = { dot(query, row.keys + $0 * headDimension, count: headDimension) }
        }
        var capped = [Float](repeating: 0, count: keys)
        var finished = capped
        for j in 0..<keys where row.isVisible[j] {
            var score = product(j)
            if let softcap { score = ReferenceMath.tanh(score, scale: softcap * unit) }
            capped[j] = score
            if alibiSlopes != nil { score = fma(-(row.slope * unitFloat), distance(row.position, j), score) }
            if let bias = row.bias { score = WideScores.biased(score, bias: bias[j], unit: unitFloat) }
            finished[j] = score
        }
        return (capped, finished)
    }

    /// What scores in natural units are multiplied by: log2(e) where weights are powers of two, otherwise 1.
    var unit: Double { normaliser.takesScores ? 1 : log2e }

    /// |position - key| in Float, rounded for the key's block: exact below 2^24.
    func distance(_ position: Int, _ key: Int) -> Float {
        let blockFirst = key / keyBlock * keyBlock
        return abs(Float(position - blockFirst) - Float(key - blockFirst))
    }
}

/// The sum of a[d] b[d]. In every block of 128 channels, every fourth one belongs to the same chain of fused multiply-adds
/// from 0; the four chains are added in pairs, and the blocks in turn. One long chain would round its growing sum once per
/// channel.
func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Float {
    func chain(_ first: Int, _ end: Int) -> Float {
        var sum: Float = 0
        var d = first
        while d < end {
            sum = fma(a[d], b[d], sum)
            d += 4
        }
        return sum
    }
    var sum: Float = 0
    for first in stride(from: 0, to: count, by: channelBlock) {
        let end = min(first + channelBlock, count)
        let block = (chain(first, end) + chain(first + 1, end)) + (chain(first + 2, end) + chain(first + 3, end))
        sum = first == 0 ? block : sum + block
    }
    return sum
}

/// A row after its forward pass.
struct SolvedRow {
    let normaliser: RowNormaliser
    let output: [Float]
    var logSumExp: Float = 0
    var sinkShare: Float = 0
    /// What scores are compared with; for softmax and softpick the row's largest, for clipped softmax that of its softmax.
    var reference: Float
    /// What weights are multiplied by last; for clipped softmax before they are clipped.
    let factor: Float

    /// - Parameter outputFactor: What the sums of the output are multiplied by.
    init(_ normaliser: RowNormaliser, _ sums: OnlineSums, factor: Float, outputFactor: Float) {
        self.normaliser = normaliser
        output = sums.output.map { $0 * outputFactor }
        reference = finiteReference(sums.maximum)
        self.factor = factor
    }
}
