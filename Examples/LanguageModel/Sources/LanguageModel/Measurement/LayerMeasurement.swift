// SPDX-License-Identifier: Apache-2.0
// LayerMeasurement.swift - what the heads of a layer do with a text, and the outliers of its residual stream.

import QuietAttention

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// Rows of a length, averaged over all rows of a range and all heads of a layer.
public struct LengthMeasurement: Encodable, Sendable {
    /// Rows that see more than half as many keys, and at most so many.
    public let keys: Int
    /// In nats, and as a share of log n.
    public let entropy, relativeEntropy, largestWeight: Double
}

/// One head over the rows from ``LayerMeasurement/firstRow`` on.
public struct HeadMeasurement: Encodable, Sendable {
    /// The mean weight on each class of tokens, in the order of ``TokenClass``, and on the sink.
    public let weightByClass: [Double]
    public let sinkShare, entropy, largestWeight: Double
}

/// The elements of a residual stream farther than six standard deviations from its mean.
public struct OutlierMeasurement: Encodable, Sendable {
    public let excessKurtosis, infinityNorm, standardDeviation: Double
    public let outliers: Int
    /// Outliers by the class of their token, in the order of ``TokenClass``.
    public let outliersByClass: [Int]
    /// The channels that have outliers.
    public let channels: [Int]

    /// - Parameter rows: `[classes.count, width]`.
    init(_ rows: ArraySlice<Float>, classes: ArraySlice<TokenClass>) {
        let statistics = TensorStatistics(Array(rows))
        let width = rows.count / max(classes.count, 1)
        var (counts, channels) = ([Int](repeating: 0, count: TokenClass.allCases.count), Set<Int>())
        for (index, value) in rows.enumerated()
        where abs(Double(value) - statistics.mean) > 6 * statistics.standardDeviation {
            counts[classes[classes.startIndex + index / width].rawValue] += 1
            channels.insert(index % width)
        }
        (excessKurtosis, infinityNorm) = (statistics.excessKurtosis, statistics.infinityNorm)
        standardDeviation = statistics.standardDeviation
        outliersByClass = counts
        outliers = counts.reduce(0, +)
        self.channels = channels.sorted()
    }
}

/// A layer over a text.
public struct LayerMeasurement: Encodable, Sendable {
    public let layer: Int
    public let heads: [HeadMeasurement]
    public let lengths: [LengthMeasurement]
    /// The same with scores that are not divided by sqrt(d).
    public let unscaled: [LengthMeasurement]
    /// The variance of q.k over all keys that rows see, before the scale and after it.
    public let scoreVariance, scaledScoreVariance: Double
    /// Of all tokens, and of all but the first.
    public let residual, residualWithoutFirst: OutlierMeasurement
    /// The largest magnitude of each of the tokens that have the largest.
    public let largestTokens: [LargestToken]

    public struct LargestToken: Encodable, Sendable {
        public let position, token: Int
        public let magnitude: Float
    }

    /// Rows before this one see few keys, and are left out of the means of heads.
    public static let firstRow = 64

    /// - Parameters:
    ///   - captured: of this layer among others.
    ///   - tokens: the text.
    ///   - options: sink, scaling and threads.
    public init(
        _ captured: CapturedLayers, layer: Int, _ configuration: LlamaConfiguration, tokens: [Int],
        classes: [TokenClass], options: ModelOptions
    ) throws {
        self.layer = layer
        let tensors = captured.tensors(layer, rotated: true)
        let work = HeadWork(
            queries: tensors[0].values, keys: tensors[1].values, configuration: configuration, count: tokens.count,
            options: options)
        let rows = try work.diagnostics(scale: nil)
        lengths = Self.lengths(rows)
        unscaled = Self.lengths(try work.diagnostics(scale: 1))
        heads = try work.heads(rows, classes)
        scoreVariance = work.scoreVariance()
        scaledScoreVariance = scoreVariance / Double(configuration.headDimension)
        let stream = captured.residual(layer)
        residual = OutlierMeasurement(stream[...], classes: classes[...])
        residualWithoutFirst = OutlierMeasurement(
            stream[configuration.width...], classes: classes[1...])
        largestTokens = tokens.indices.map { position in
            let row = stream[position * configuration.width..<(position + 1) * configuration.width]
            return LargestToken(position: position, token: tokens[position], magnitude: row.map(abs).max()!)
        }.sorted { $0.magnitude > $1.magnitude }.prefix(5).map(\.self)
    }

    private static func lengths(_ rows: [RowDiagnostics]) -> [LengthMeasurement] {
        var keys = 64
        var result: [LengthMeasurement] = []
        while case let chosen = rows.filter({ $0.visibleKeys > keys / 2 && $0.visibleKeys <= keys }), !chosen.isEmpty {
            let count = Double(chosen.count)
            func mean(_ value: (RowDiagnostics) -> Double) -> Double { chosen.reduce(0) { $0 + value($1) } / count }
            result.append(
                LengthMeasurement(
                    keys: keys, entropy: mean(\.entropy),
                    relativeEntropy: mean { $0.entropy / log(Double($0.visibleKeys)) },
                    largestWeight: mean(\.largestWeight)))
            keys *= 2
        }
        return result
    }
}
