// SPDX-License-Identifier: Apache-2.0
// RowDiagnostics.swift - what the weights of one row look like: how much the sink takes, how spread the rest is.

import CKernels

/// The scores of the keys that one row sees.
struct VisibleScores {
    /// In base 2, in the order of the keys.
    let scores: UnsafeBufferPointer<Float>
    /// Room for as many numbers.
    let weights: UnsafeMutableBufferPointer<Float>
    /// So many of them are of the keys that lead.
    let leading: Int
    /// The first key with the largest score, counted over all keys.
    let topKey: Int
}

/// How one row of attention spreads its weight, for scores x over the n keys that it sees and a sink logit s:
///
///     p[j] = e^x[j] / (e^s + sum_k e^x[k]),    p_sink = 1 - sum_j p[j]
///
/// Weights are the kernels' powers of 2 in Float; all sums over them are in Double and in a fixed order. The bits do not
/// depend on the kernel set or on threads. Entropies are in nats, within 2e-6 of their formula where scores are below 100.
///
/// *Edge cases*: a key whose score is -inf counts as one that the row does not see. A row that sees no key has entropies
/// and weights of 0, a sink share of 1 (softmax: 0), and NaN for what is divided by n. NaN or +inf in a visible score makes
/// everything NaN but the number of keys. In both cases there is no ``heaviestKey``.
public struct RowDiagnostics: Sendable, Hashable {
    /// n.
    public let visibleKeys: Int
    /// p_sink, 0...1.
    public let sinkShare: Double
    /// max p.
    public let largestWeight: Double
    /// The key with that weight, by its place in the row's sequence; of several, the first. The largest score decides, also
    /// where weights vanish beside the sink's.
    public let heaviestKey: Int?
    /// The sum of p over the first keys of the sequence, by default over the one first key; 0 where the row sees none of
    /// them. Where models without a sink have no use for a weight, much of it goes there.
    public let leadingWeight: Double
    /// Of keys and sink together: `-sum p ln p - p_sink ln p_sink`, 0 to ln(n + 1).
    public let entropy: Double
    /// Of the keys alone, `-sum r ln r` with `r = p / (1 - p_sink)`: 0 to ln n, and what it is under softmax.
    public let keyEntropy: Double
    /// `sum p / sqrt(n sum p^2)`: 1 where all keys weigh the same, 1 / sqrt(n) where one has all the weight.
    public let l1OverL2: Double
    /// `(sum p / n) / max p`: 1 where all keys weigh the same, 1 / n where one has all the weight.
    public let meanOverMaximum: Double
    /// The share of keys with `p <= epsilon`.
    public let shareBelowEpsilon: Double
    /// max abs(x), in natural units.
    public let largestScore: Double
    /// max abs(x) over the median of abs(x); 1 where all are 0. Rotary positions beyond the length of training show here.
    public let scoreTopToMedian: Double

    /// - Parameters:
    ///   - sink: in natural units.
    ///   - isBiased: whether scores are kept as those beside a bias are.
    init(_ row: VisibleScores, sink: Float, epsilon: Double, isBiased: Bool, kernels: KernelSet) {
        let scores = row.scores
        guard !scores.isEmpty else {
            self.init(visibleKeys: 0, sinkShare: sink == -.infinity ? 0 : 1, others: 0, ratios: .nan)
            return
        }
        var maximum = -Float.infinity
        for score in scores {
            // Of NaN, too, this is not true.
            guard score < .infinity else {
                self.init(visibleKeys: scores.count, sinkShare: .nan, others: .nan, ratios: .nan)
                return
            }
            maximum = max(maximum, score)
        }
        self.init(
            row, maximum: maximum, sink: sink, epsilon: epsilon, unfolded: isBiased ? Self.unfolded : Double.init,
            kernels: kernels)
    }

    private init(visibleKeys: Int, sinkShare: Double, others: Double, ratios: Double) {
        (self.visibleKeys, self.sinkShare, heaviestKey, leadingWeight) = (visibleKeys, sinkShare, nil, others)
        (largestWeight, entropy, keyEntropy, largestScore) = (others, others, others, others)
        (l1OverL2, meanOverMaximum, shareBelowEpsilon, scoreTopToMedian) = (ratios, ratios, ratios, ratios)
    }

    /// Weights are taken relative to the largest one, w[j] = 2^(t[j] - maximum), so that none overflows; the sink's may be
    /// far from them on either side, and joins in Double.
    private init(
        _ row: VisibleScores, maximum: Float, sink: Float, epsilon: Double, unfolded: (Float) -> Double,
        kernels: KernelSet
    ) {
        let (scores, weights, count) = (row.scores, row.weights, row.scores.count)
        for index in scores.indices { weights[index] = scores[index] - maximum }
        kernels.functions.pointee.exp2(weights.baseAddress, weights.baseAddress, count)
        let sum = orderedSum(count) { Double(weights[$0]) }
        let squares = orderedSum(count) { Double(weights[$0]) * Double(weights[$0]) }
        // The score of a weight of 0 may be -inf here.
        let energy = orderedSum(count) { index in
            weights[index] == 0 ? 0 : Double(weights[index]) * Double(scores[index] - maximum)
        }

        let (keyMaximum, sink) = (unfolded(maximum) * Self.ln2, Double(sink))
        let reference = max(keyMaximum, sink)
        let keyFactor = ElementaryFunctions.exponential(keyMaximum - reference)
        let sinkWeight = ElementaryFunctions.exponential(sink - reference)
        let total = sum * keyFactor + sinkWeight
        let keyShare = sum * keyFactor / total
        visibleKeys = count
        sinkShare = sinkWeight / total
        largestWeight = keyFactor / total
        heaviestKey = row.topKey
        leadingWeight = orderedSum(row.leading) { Double(weights[$0]) } * keyFactor / total
        keyEntropy = ElementaryFunctions.logarithm(sum) - Self.ln2 * energy / sum
        // The entropy of the choice between keys and sink, and that among keys.
        entropy = Self.surprise(keyShare) + Self.surprise(sinkShare) + keyShare * keyEntropy
        l1OverL2 = sum / (Double(count) * squares).squareRoot()
        meanOverMaximum = sum / Double(count)
        let below = orderedSum(count) { Double(weights[$0]) * keyFactor <= epsilon * total ? 1 : 0 }
        shareBelowEpsilon = below / Double(count)

        for index in scores.indices { weights[index] = abs(scores[index]) }
        let top = (unfolded(Self.element(ofRank: count - 1, in: weights)), Self.median(weights, unfolded))
        largestScore = top.0 * Self.ln2
        scoreTopToMedian = top.0 == 0 ? 1 : top.0 / top.1
    }

    private static let ln2 = 0x1.62e42fefa39efp-1

    /// -p ln p; next to 0 it is below 1e-304.
    private static func surprise(_ p: Double) -> Double {
        p < .leastNormalMagnitude ? 0 : -p * ElementaryFunctions.logarithm(p)
    }

    /// The score t of W(t): kernels keep biased scores beyond 2^127 as 2^127 + (|t| - 2^127) / 8 (Documentation/Numerics.md).
    private static func unfolded(_ score: Float) -> Double {
        let (score, bound) = (Double(score), 0x1p127)
        guard abs(score) > bound else { return score }
        let magnitude = bound + (abs(score) - bound) * 8
        return score < 0 ? -magnitude : magnitude
    }

    private static func median(
        _ magnitudes: UnsafeMutableBufferPointer<Float>, _ unfolded: (Float) -> Double
    ) -> Double {
        let upper = unfolded(element(ofRank: magnitudes.count / 2, in: magnitudes))
        if !magnitudes.count.isMultiple(of: 2) { return upper }
        return (unfolded(element(ofRank: magnitudes.count / 2 - 1, in: magnitudes)) + upper) / 2
    }

    /// The element that would be at that place if they were sorted. Bits of numbers that are not negative ascend with
    /// them, so it is found byte by byte, from the highest: how many elements share each value of the next byte?
    private static func element(ofRank rank: Int, in magnitudes: UnsafeMutableBufferPointer<Float>) -> Float {
        withUnsafeTemporaryAllocation(of: Int.self, capacity: 256) { counts in
            var (rank, found, known) = (rank, UInt32(0), UInt32(0))
            for shift in [24, 16, 8, 0] as [UInt32] {
                counts.initialize(repeating: 0)
                for magnitude in magnitudes where magnitude.bitPattern & known == found {
                    counts[Int(magnitude.bitPattern >> shift & 0xff)] += 1
                }
                var byte = 0
                while rank >= counts[byte] {
                    rank -= counts[byte]
                    byte += 1
                }
                found |= UInt32(byte) << shift
                known |= 0xff << shift
            }
            return Float(bitPattern: found)
        }
    }
}

/// The diagnostics of a query head: means and extremes over its rows that see a key, in all batch items.
///
/// *Edge case*: without such rows everything is NaN, but the number of rows is 0. NaN in one row makes the means NaN.
public struct HeadDiagnostics: Sendable, Hashable {
    /// Rows that see a key.
    public let rows: Int
    /// Means of ``RowDiagnostics``' properties of these names.
    public let sinkShare, entropy, keyEntropy, l1OverL2, meanOverMaximum, shareBelowEpsilon: Double
    /// Means, too.
    public let largestWeight, leadingWeight, scoreTopToMedian: Double
    /// The key that most rows give their largest weight to, by its place in the sequence; of several, the first. Nil: no row
    /// has one.
    public let heaviestKey: Int?
    /// The share of rows whose largest weight goes to that key; 0 where no row has one.
    public let heaviestKeyShare: Double
    /// The largest score of all rows.
    public let largestScore: Double
    /// The smallest and the largest sink share of a row.
    public let smallestSinkShare, largestSinkShare: Double

    /// The diagnostics of these rows together.
    public init(_ rows: some Collection<RowDiagnostics>) {
        let rows = rows.filter { $0.visibleKeys > 0 }
        self = inFloatMode { Self(visible: rows) }
    }

    private init(visible rows: [RowDiagnostics]) {
        func mean(_ property: KeyPath<RowDiagnostics, Double>) -> Double {
            orderedSum(rows.count) { rows[$0][keyPath: property] } / Double(rows.count)
        }
        func extreme(_ property: KeyPath<RowDiagnostics, Double>, _ choose: (Double, Double) -> Double) -> Double {
            let values = rows.map { $0[keyPath: property] }
            return values.first.map { first in values.reduce(first) { $1.isNaN ? $1 : choose($0, $1) } } ?? .nan
        }
        self.rows = rows.count
        sinkShare = mean(\.sinkShare)
        entropy = mean(\.entropy)
        keyEntropy = mean(\.keyEntropy)
        l1OverL2 = mean(\.l1OverL2)
        meanOverMaximum = mean(\.meanOverMaximum)
        shareBelowEpsilon = mean(\.shareBelowEpsilon)
        largestWeight = mean(\.largestWeight)
        leadingWeight = mean(\.leadingWeight)
        scoreTopToMedian = mean(\.scoreTopToMedian)
        largestScore = extreme(\.largestScore, max)
        smallestSinkShare = extreme(\.sinkShare, min)
        largestSinkShare = extreme(\.sinkShare, max)
        var rowsOfKeys: [Int: Int] = [:]
        for row in rows { if let key = row.heaviestKey { rowsOfKeys[key, default: 0] += 1 } }
        let heaviest = rowsOfKeys.max { ($0.value, -$0.key) < ($1.value, -$1.key) }
        heaviestKey = heaviest?.key
        heaviestKeyShare = heaviest.map { Double($0.value) / Double(rows.count) } ?? (rows.isEmpty ? .nan : 0)
    }
}
