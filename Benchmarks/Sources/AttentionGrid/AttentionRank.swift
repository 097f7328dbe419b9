// SPDX-License-Identifier: Apache-2.0
// AttentionRank.swift - how many dimensions an attention matrix really has, from its singular values.
//
// A bidirectional attention matrix phi(Q) phi(K)^T without the exponential has rank at most headDimension. A causal one
// is triangular with a positive diagonal, so its rank is full whatever the dimension. softmax_1 multiplies each row of
// softmax by one positive number, 1 - sinkShare, and leaves the rank as it is.
//
// Effective rank: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

import COpenBLAS
import Foundation
import QuietAttention

/// Numerical and effective rank of a matrix.
public struct AttentionRank: Sendable {
    /// Largest first.
    public let singularValues: [Double]
    /// Singular values above max(rows, columns) * epsilon * the largest; epsilon is Float's, the precision of the entries.
    public let numerical: Int
    /// e^H, H the entropy of the singular values over their sum: 1 ... numerical rank, about; 0 of a matrix of zeros.
    public let effective: Double

    /// The ranks of a row-major matrix. No entry is NaN or infinite.
    public init(of matrix: [Float], rows: Int, columns: Int) {
        precondition(matrix.count == rows * columns, "\(matrix.count) entries are not \(rows) x \(columns)")
        singularValues = Self.singularValues(of: matrix, rows: rows, columns: columns)
        let tolerance = Double(max(rows, columns)) * Double(Float.ulpOfOne) * (singularValues.first ?? 0)
        numerical = singularValues.count { $0 > tolerance }
        let sum = singularValues.reduce(0, +)
        let entropy = singularValues.reduce(0) { $1 > 0 ? $0 - $1 / sum * log($1 / sum) : $0 }
        effective = sum > 0 ? exp(entropy) : 0
    }

    private static func singularValues(of matrix: [Float], rows: Int, columns: Int) -> [Double] {
        guard rows > 0, columns > 0 else { return [] }
        var matrix = matrix.map(Double.init)
        var values = [Double](repeating: 0, count: min(rows, columns))
        // Job N: no vectors, so U and V^T are not touched; their leading dimensions are checked all the same.
        let status = LAPACKE_dgesdd(
            LAPACK_ROW_MAJOR, CChar(UInt8(ascii: "N")), Int32(rows), Int32(columns), &matrix, Int32(columns), &values,
            nil, Int32(rows), nil, Int32(columns))
        precondition(status == 0, "dgesdd gave \(status): \(status < 0 ? "a bad argument" : "it did not converge")")
        return values
    }
}

/// The attention matrix P [queries, keys] of one head, from our kernels: the values are the identity.
public func attentionMatrix(
    queries: [Float], keys: [Float], headDimension: Int, sink: AttentionSink, mask: AttentionMask
) throws -> [Float] {
    let count = keys.count / headDimension
    let shape = try AttentionShape(
        queryHeads: 1, queries: queries.count / headDimension, keys: count, headDimension: headDimension,
        valueDimension: count)
    var identity = [Float](repeating: 0, count: count * count)
    for key in 0..<count { identity[key * count + key] = 1 }
    return try Attention(shape, sink: sink, mask: mask, threads: 1)
        .forward(queries: queries, keys: keys, values: identity).output
}

/// One line of the diagnostic: the ranks of a seeded attention matrix.
public struct RankRow: Sendable, Encodable {
    public var sequence: Int
    public var headDimension: Int
    public var mask: String
    public var sink: String
    public var numericalRank: Int
    public var effectiveRank: Double

    /// Every combination of causal or not, and softmax or softmax_1.
    public static func all(sequence: Int, headDimension: Int) throws -> [RankRow] {
        var random = Normals(seed: 1)
        let queries = random.next(sequence * headDimension)
        let keys = random.next(sequence * headDimension)
        return try [("none", AttentionMask.none), ("causal", .causal)].flatMap { maskName, mask in
            try [("softmax", AttentionSink.softmax), ("softmax1", .softmax1)].map { sinkName, sink in
                let matrix = try attentionMatrix(
                    queries: queries, keys: keys, headDimension: headDimension, sink: sink, mask: mask)
                let rank = AttentionRank(of: matrix, rows: sequence, columns: sequence)
                return RankRow(
                    sequence: sequence, headDimension: headDimension, mask: maskName, sink: sinkName,
                    numericalRank: rank.numerical, effectiveRank: rank.effective)
            }
        }
    }
}
