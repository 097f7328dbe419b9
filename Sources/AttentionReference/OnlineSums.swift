// SPDX-License-Identifier: Apache-2.0
// OnlineSums.swift - attention over keys that come in blocks: the sums of one row, and the three things done to them.

/// Keys that share one rescaling of a row: keys 0 to 63, 64 to 127 and so on, whatever part of them the row sees.
let keyBlock = 64
/// Keys that are summed from an empty state: keys 0 to 1023, 1024 to 2047 and so on.
let keyChunk = 1024
/// Channels of query and key whose products are summed from 0.
let channelBlock = 128
/// The same of int8 keys, whose products have room for so many in 32 bits.
let integerChannelBlock = 512

/// The values of a block.
enum BlockValues {
    /// [count][valueDimension].
    case floats(UnsafePointer<Float>)
    /// From row `first` on.
    case int8(Int8Rows, first: Int)
}

/// What is known of a row after some of its keys: with scores t in base 2 and, for softmax, p[j] = 2^(t[j] - maximum),
///
///     sum of lanes = sum_j p[j],   output[d] = sum_j p[j] v[j][d]
///
/// The maximum keeps every p at 1 or below. The sink is not part of it: it joins once, in ``totals(sink:)``. Other
/// normalisers (``RowNormaliser``) have other weights p; the maximum is 0 for those that need none.
struct OnlineSums {
    let normaliser: RowNormaliser
    /// Whether the maximum is one of ``WideScores``.
    let isBiased: Bool
    let products: ReferenceProducts
    /// The largest score; for softmax -infinity before there is one, or where all are -infinity; for others 0 and up.
    var maximum: Float
    /// Key j is counted in lane j mod 16: 16 short sums instead of a long one.
    var lanes = [Float](repeating: 0, count: laneCount)
    /// Not yet divided by the sum.
    var output: [Float]

    /// The empty state.
    init(
        _ normaliser: RowNormaliser, valueDimension: Int, isBiased: Bool = false, products: ReferenceProducts = .float32
    ) {
        (self.normaliser, self.isBiased, self.products) = (normaliser, isBiased, products)
        maximum = normaliser.isSoftmax ? -.infinity : 0
        output = [Float](repeating: 0, count: valueDimension)
    }

    /// Adds the visible keys of one block, of which there is at least one.
    ///
    /// - Parameters:
    ///   - scores: t[j], of up to 64 keys. Only those of visible keys count.
    ///   - values: Only those of visible keys are read.
    mutating func add(
        scores: UnsafePointer<Float>, isVisible: UnsafePointer<Bool>, values: BlockValues, count: Int
    ) {
        // 1. The new maximum. A NaN is never greater: it is kept by its weight, not by the maximum.
        var newMaximum = maximum
        if normaliser.hasMaximum {
            for j in 0..<count where isVisible[j] && scores[j] > newMaximum { newMaximum = scores[j] }
        }
        let reference = finiteReference(newMaximum)
        let rescale = normaliser.hasMaximum ? ReferenceMath.exp2(maximum - reference) : 1

        // 2. Weights; +0 for keys that are not visible, and beyond the last key. What a lane counts may be another thing.
        var weights = [Float](repeating: 0, count: keyBlock)
        var counted = weights
        for j in 0..<count where isVisible[j] {
            (weights[j], counted[j]) = normaliser.weight(
                scores[j], reference: reference, rounds: products == .bfloat16)
        }
        if products == .bfloat16 {
            (weights, counted) = (weights.map(\.roundedForProducts), counted.map(\.roundedForProducts))
        }

        // 3. The denominator: four weights per lane.
        for lane in 0..<laneCount {
            let firstPair = counted[lane] + counted[lane + 16]
            let secondPair = counted[lane + 32] + counted[lane + 48]
            lanes[lane] = fma(lanes[lane], rescale, firstPair + secondPair)
        }

        maximum = newMaximum
        let visible = (0..<count).filter { isVisible[$0] }
        if products == .bfloat16, case .floats(let values) = values {
            output = output.map { $0.rescaledForProducts(rescale) }
            addPairProducts(weights, values, rows: visible, to: &output)
            return
        }

        // 4. The numerator, from an empty sum: 64 roundings of small numbers instead of 1024 of growing ones.
        let blockOutput =
            switch values {
            case .floats(let values): weightedSum(weights, of: values, rows: visible)
            case .int8(let values, let first): values.weightedSum(weights, first: first, rows: visible)
            }
        for d in output.indices { output[d] = fma(output[d], rescale, blockOutput[d]) }
    }

    /// sum_j weights[j] values[j] of the visible rows, key by key. The sum starts at -0, which alone leaves every number as
    /// it is. Other keys are skipped, not multiplied by zero: 0 * NaN is NaN.
    private func weightedSum(_ weights: [Float], of values: UnsafePointer<Float>, rows: [Int]) -> [Float] {
        var sums = [Float](repeating: -0.0, count: output.count)
        sums.withUnsafeMutableBufferPointer { sums in
            for j in rows {
                let (weight, value) = (weights[j], values + j * sums.count)
                for d in sums.indices { sums[d] = fma(weight, value[d], sums[d]) }
            }
        }
        return sums
    }

    /// Adds the keys of a later chunk.
    mutating func merge(_ chunk: OnlineSums) {
        let newMaximum = max(maximum, chunk.maximum)
        let reference = finiteReference(newMaximum)
        let mine = ReferenceMath.exp2(maximum - reference)
        let theirs = ReferenceMath.exp2(chunk.maximum - reference)
        for lane in lanes.indices { lanes[lane] = fma(chunk.lanes[lane], theirs, lanes[lane] * mine) }
        for d in output.indices { output[d] = fma(chunk.output[d], theirs, output[d] * mine) }
        maximum = newMaximum
    }

    /// Adds the sink of a softmax, and gives what the output is multiplied by, and the rest of the results. `sink` is in
    /// natural units; -infinity adds nothing.
    ///
    /// Where the whole sum is 0, which takes scores and a sink of -infinity, factor and share are 0 and logSumExp -infinity.
    func totals(sink: Float) -> (factor: Float, logSumExp: Float, sinkShare: Float) {
        let sink2 = isBiased ? WideScores.sink(sink * log2eFloat) : sink * log2eFloat
        let reference = finiteReference(max(maximum, sink2))
        let keysWeigh = ReferenceMath.exp2(maximum - reference)
        let sinkWeighs = ReferenceMath.exp2(sink2 - reference)
        let sum = fma(treeSum(lanes), keysWeigh, sinkWeighs)
        if sum == 0 {
            return (0, -.infinity, 0)
        }
        var logSumExp = (reference + ReferenceMath.log2(sum)) * ln2Float
        if isBiased { logSumExp = WideScores.logSumExp(reference: reference, logSumExp) }
        return (keysWeigh / sum, logSumExp, sinkWeighs / sum)
    }
}

/// What scores are compared with. With nothing but -infinity it is 0: -infinity - 0 weighs nothing, whereas
/// -infinity - -infinity is NaN.
func finiteReference(_ maximum: Float) -> Float {
    maximum == -.infinity ? 0 : maximum
}
