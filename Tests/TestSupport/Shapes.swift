// SPDX-License-Identifier: Apache-2.0
// Shapes.swift - sizes at which kernels break.

/// Sizes around every boundary of the kernels: 1, the lanes (16), the key block (64), the key chunk (1024), blocks of
/// channels (a power of two), the tile's rows (6), the query block (132), and primes that share no factor with any of them.
public enum Sizes {
    public static let queries = [1, 2, 5, 6, 7, 11, 12, 13, 31, 97, 131, 132, 133, 193]
    public static let keys = [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 251, 1023, 1024, 1025]
    public static let longKeys = [1087, 1088, 1089, 2047, 2048, 2049, 3073]
    public static let headDimensions = [
        1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 96, 127, 128, 129, 192, 255, 256, 257, 1024,
    ]
}
