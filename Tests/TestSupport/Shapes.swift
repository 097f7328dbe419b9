// SPDX-License-Identifier: Apache-2.0
// Shapes.swift - sizes at which kernels break, and the shapes that are timed. Imports nothing: benchmarks compile it too.

/// Sizes around every boundary of the kernels: 1, the lanes (16), the key block (64), the key chunk (1024), the tile's
/// rows (6), the query block (96), and primes that share no factor with any of them.
public enum Sizes {
    public static let queries = [1, 2, 5, 6, 7, 11, 12, 13, 31, 95, 96, 97, 191, 193]
    public static let keys = [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 251, 1023, 1024, 1025]
    public static let longKeys = [1087, 1088, 1089, 2047, 2048, 2049, 3073]
    public static let headDimensions = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 64, 65, 80, 96, 128, 192, 256, 1024]
}

/// A shape worth timing: its name in tables, and whether it is causal.
public struct TimedShape: Hashable, Sendable {
    public let name: String
    public let queryHeads, keyValueHeads, queries, keys, headDimension: Int
    public let isCausal: Bool

    public static let all = [
        TimedShape(
            name: "12 heads 1024 d64", queryHeads: 12, keyValueHeads: 12, queries: 1024, keys: 1024,
            headDimension: 64, isCausal: false),
        TimedShape(
            name: "12 heads 1024 d64 causal", queryHeads: 12, keyValueHeads: 12, queries: 1024, keys: 1024,
            headDimension: 64, isCausal: true),
        TimedShape(
            name: "8/2 heads 2048 d128 causal", queryHeads: 8, keyValueHeads: 2, queries: 2048, keys: 2048,
            headDimension: 128, isCausal: true),
    ]
}
