// SPDX-License-Identifier: Apache-2.0
// BlockSums.swift - sums over a block of 64 queries or keys, of which gradients are made: step B3 of
// Documentation/Numerics.md.

/// Many sums over a block, each of `a[n] b[n]`; n, from 0 to 63, is the place in the block and ascends.
///
/// Products of Float: one chain of fused multiply-adds from +0. Products of bfloat16: in both segments of 32 a chain of
/// even n and one of odd n, from +0. A place that is left out leaves the sums as they are.
struct BlockSums {
    private let products: ReferenceProducts
    /// How many sums there are.
    private let count: Int
    /// [chains][count].
    private var chains: [Float]

    /// All +0.
    init(count: Int, products: ReferenceProducts) {
        (self.products, self.count) = (products, count)
        chains = [Float](repeating: 0, count: (products == .bfloat16 ? 4 : 1) * count)
    }

    /// Adds `a b[d]` at place n to the sum of index `first + d`. Products of bfloat16 have factors for a and b, of which one is
    /// raised.
    ///
    /// - Parameter b: [width].
    mutating func add(_ a: Float, times b: UnsafePointer<Float>, width: Int, toSumsFrom first: Int, at n: Int) {
        let chain = products == .bfloat16 ? n / 32 * 2 + n % 2 : 0
        let start = chain * count + first
        for d in 0..<width { chains[start + d] = fma(a, b[d], chains[start + d]) }
    }

    /// Adds the sum of this index to a number: of bfloat16 segment by segment, while both are raised.
    func join(_ index: Int, to number: inout Float) {
        if products == .float32 {
            number += chains[index]
            return
        }
        number *= products.raise
        number += chains[index] + chains[count + index]
        number += chains[2 * count + index] + chains[3 * count + index]
        number /= products.raise
    }

    /// Adds the sums to numbers, and begins anew: all +0.
    mutating func move(to numbers: inout [Float], from first: Int = 0) {
        for index in 0..<count { join(index, to: &numbers[first + index]) }
        for index in chains.indices { chains[index] = 0 }
    }
}
