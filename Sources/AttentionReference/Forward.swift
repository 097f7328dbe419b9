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
            let (output, logSumExp, sinkShare) = forward(row)
            result.output += output
            result.logSumExp.append(logSumExp)
            result.sinkShare.append(sinkShare)
        }
        return result
    }

    private func forward(_ row: Row) -> (output: [Float], logSumExp: Float, sinkShare: Float) {
        let scores = scores(row)
        let nothing = [Float](repeating: 0, count: valueDimension)
        switch normaliser {
        case .softmax:
            let sink = row.sink + row.constant
            return sums(row, scores, .softmax)?.finish(sink: sink) ?? (nothing, sink, sink == -.infinity ? 0 : 1)
        case .clippedSoftmax(let zeta):
            // Two passes: a weight is clipped after it has been divided, which takes the sum of all.
            guard let first = sums(row, scores, .softmax) else {
                return (nothing, row.sink, row.sink == -.infinity ? 0 : 1)
            }
            let (factor, logSumExp, sinkShare) = first.totals(sink: row.sink)
            let clipped = RowNormaliser.clippedSoftmax(
                maximum: first.finiteReference(first.maximum), factor: factor, gamma: row.constant, zeta: zeta)
            return (sums(row, scores, clipped)?.finish() ?? nothing, logSumExp, sinkShare)
        case .sigmoid: return (sums(row, scores, .sigmoid(bias: row.constant))?.finish() ?? nothing, 0, 0)
        case .softpick: return (sums(row, scores, .softpick(epsilon: row.constant))?.finish() ?? nothing, 0, 0)
        case .reluSquared: return (sums(row, scores, .reluSquared(divisor: row.constant))?.finish() ?? nothing, 0, 0)
        case .normalisedReluSquared:
            return (sums(row, scores, .normalisedReluSquared(sink: row.constant))?.finish() ?? nothing, 0, 0)
        }
    }

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
        var state = OnlineSums(normaliser, valueDimension: valueDimension)
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

    /// The finished scores of the keys that the row sees, and 0 for the others:
    ///
    ///     t[j] = unit (cap(scale factor q.k[j]) - slope |position - j| + bias[j])
    ///
    /// unit is log2(e) for normalisers that take powers, so that a weight is a power of two, which is cheaper and more
    /// accurate than a power of e; otherwise 1. Whatever multiplies every product is in the query already.
    private func scores(_ row: Row) -> [Float] {
        let unit: Double = normaliser.takesScores ? 1 : log2e
        let unitFloat: Float = normaliser.takesScores ? 1 : log2eFloat
        let factor = scale * row.factor
        let queryFactor = Float(softcap.map { factor / $0 } ?? (normaliser.takesScores ? factor : factor * log2e))
        let query = (0..<headDimension).map { row.query[$0] * queryFactor }
        let product: (Int) -> Float
        if let int8 = row.int8 {
            let query = FifteenBits(query)
            product = { int8.keys.dot(query, row: int8.first + $0) }
        } else {
            product = { dot(query, row.keys + $0 * headDimension, count: headDimension) }
        }
        var scores = [Float](repeating: 0, count: keys)
        for j in 0..<keys where row.isVisible[j] {
            var score = product(j)
            if let softcap { score = ReferenceMath.tanh(score, scale: softcap * unit) }
            if alibiSlopes != nil { score = fma(-(row.slope * unitFloat), distance(row.position, j), score) }
            if let bias = row.bias { score = fma(bias[j], unitFloat, score) }
            scores[j] = score
        }
        return scores
    }

    /// |position - key| in Float, rounded for the key's block: exact below 2^24.
    private func distance(_ position: Int, _ key: Int) -> Float {
        let blockFirst = key / keyBlock * keyBlock
        return abs(Float(position - blockFirst) - Float(key - blockFirst))
    }
}

/// The sum of a[d] b[d]. In every block of 128 channels, every fourth one belongs to the same chain of fused multiply-adds
/// from 0; the four chains are added in pairs, and the blocks in turn. One long chain would round its growing sum once per
/// channel.
private func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Float {
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
