// SPDX-License-Identifier: Apache-2.0
// Forward.swift - the forward pass in Float: the definition of every bit that the kernels give.

extension ReferenceProblem {
    /// The forward pass, operation by operation as every kernel set does it, and so with the same bits.
    /// Documentation/Numerics.md gives the reasons.
    ///
    /// Edge cases: A row that sees no key has output 0, logSumExp = sink, and sinkShare 1, or 0 where the sink is
    /// -infinity. A key that a row does not see is not read for it. A visible score of -infinity weighs exactly 0.
    /// NaN or +infinity in a visible score makes the row NaN and no other; NaN in a visible value makes its column of
    /// the row NaN.
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
        var state: OnlineSoftmax?
        for first in stride(from: 0, to: keys, by: keyChunk) {
            guard let chunk = softmax(row, scores, keys: first..<min(first + keyChunk, keys)) else { continue }
            if state == nil { state = chunk } else { state?.merge(chunk) }
        }
        if let state { return state.finish(sink: row.sink) }
        let nothing = [Float](repeating: 0, count: valueDimension)
        return (nothing, row.sink, row.sink == -.infinity ? 0 : 1)
    }

    /// The state of the row after one chunk of keys, from the empty state; nil if it sees none of them.
    private func softmax(_ row: Row, _ scores: [Float], keys chunk: Range<Int>) -> OnlineSoftmax? {
        var state = OnlineSoftmax(valueDimension: valueDimension)
        var seesAny = false
        for first in stride(from: chunk.lowerBound, to: chunk.upperBound, by: keyBlock) {
            let block = first..<min(first + keyBlock, chunk.upperBound)
            guard row.isVisible[block].contains(true) else { continue }
            seesAny = true
            scores.withUnsafeBufferPointer { scores in
                row.isVisible.withUnsafeBufferPointer { isVisible in
                    state.add(
                        scores: scores.baseAddress! + first, isVisible: isVisible.baseAddress! + first,
                        values: row.values + first * valueDimension, count: block.count)
                }
            }
        }
        return seesAny ? state : nil
    }

    /// t[j] = log2(e) (scale q.k[j] + bias[j]) for the keys that the row sees, and 0 for the others. Scores are in base
    /// 2 so that a weight is a power of two, which is cheaper and more accurate than a power of e.
    private func scores(_ row: Row) -> [Float] {
        let factor = Float(scale * log2e)
        let query = (0..<headDimension).map { row.query[$0] * factor }
        var scores = [Float](repeating: 0, count: keys)
        for j in 0..<keys where row.isVisible[j] {
            var score = dot(query, row.keys + j * headDimension, count: headDimension)
            if let bias = row.bias { score = fma(bias[j], log2eFloat, score) }
            scores[j] = score
        }
        return scores
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
