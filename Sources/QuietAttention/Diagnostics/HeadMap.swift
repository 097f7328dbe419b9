// SPDX-License-Identifier: Apache-2.0
// HeadMap.swift - where a head puts its weight: a coarse grid of rows by keys, and the weight by distance.

/// Where one query head puts its weight: what a picture of it shows, whatever the number of queries and keys.
///
/// Row i of a sequence of L queries is in band `floor(i R / L)` of R, and key j of its S keys in band `floor(j C / S)` of C.
/// With p and p_sink as in ``RowDiagnostics``:
///
///     weights[r][c] = mean over the rows i of band r of   sum of p[i][j] over the keys j of band c
///     sinkShares[r] = mean over the rows i of band r of   p_sink[i]
///
/// so that every row of the grid and its sink share sum to 1. Weight by distance is the mean over all rows of the sum of
/// p[i][j] over the keys in a range of distances, row i's position less j: 0 is the key at which the row stands.
///
/// Rows of all batch items, or packed sequences, count together, each in the band that it has in its own sequence. Weights of
/// a row are summed in Double and rounded to a multiple of 2^-32 for each cell; sums of those are exact, so the bits depend
/// neither on threads nor on the kernel set.
///
/// *Edge cases*: rows that see no key are left out, and so are rows with NaN or +inf among their scores, which
/// ``undefinedRows`` counts. A band without rows has weights and a sink share of NaN.
public struct HeadMap: Sendable, Hashable {
    /// A range of distances, and the weight at them.
    public struct DistanceBand: Sendable, Hashable {
        /// From a row back to a key: 0, 1, 2...3, 4...7 and so on; below 0 for keys after
        /// the row, -1, -3 to -2 and so on.
        public let distances: ClosedRange<Int>
        /// 0...1.
        public let weight: Double
    }

    /// The same head's diagnostics.
    public let diagnostics: HeadDiagnostics
    /// R and C.
    public let rowBands, keyBands: Int
    /// `[R, C]`.
    public let weights: [Double]
    /// `[R]`.
    public let sinkShares: [Double]
    /// The rows in each band, `[R]`.
    public let rowCounts: [Int]
    /// In ascending order, from the first band with weight to the last one; their sum is 1 less the mean sink share.
    public let weightByDistance: [DistanceBand]
    /// Rows that were left out because a score of theirs is NaN or +inf.
    public let undefinedRows: Int
}
