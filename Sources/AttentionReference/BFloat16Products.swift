// SPDX-License-Identifier: Apache-2.0
// BFloat16Products.swift - sums of products of bfloat16 in Float: what scores and values are made of where a problem asks for
// them instead of products of Float.

/// Which numbers are multiplied in scores and in the values' sums.
public enum ReferenceProducts: Sendable, Hashable {
    /// As given.
    case float32
    /// Queries, keys, values and weights, each rounded to bfloat16 first; so are the gradients of outputs and of q.k.
    case bfloat16
}

extension ReferenceProducts {
    /// What is multiplied in the place of x.
    func factor(_ x: Float) -> Float { self == .bfloat16 ? x.roundedForProducts : x }

    /// The same of what is raised.
    func raisedFactor(_ x: Float) -> Float { self == .bfloat16 ? x.roundedForProducts(least: 0x1p-31) : x }

    /// a.b of such factors.
    func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Float {
        self == .bfloat16 ? pairDot(a, b, count: count) : AttentionReference.dot(a, b, count: count)
    }

    /// What the gradients of outputs, all that is proportional to them, and their sums are multiplied by: they are often small
    /// where queries, keys and weights are not, and 2^-56 would be too soon a 0.
    var raise: Float { self == .bfloat16 ? 0x1p48 : 1 }
}

/// Elements of a segment: channels of a score, or keys of a sum of values.
private let segment = 32

extension Float {
    /// The nearest bfloat16, ties to even; magnitudes below 2^-56 are zeros of their sign. So every product of two is a
    /// multiple of 2^-126, and no sum of products is subnormal.
    var roundedForProducts: Float { roundedForProducts(least: 0x1p-56) }

    func roundedForProducts(least: Float) -> Float {
        if isNaN { return self }
        let tie = (bitPattern >> 16) & 1
        let rounded = Float(bitPattern: (bitPattern + 0x7fff + tie) & 0xffff_0000)
        return rounded.magnitude < least
            ? Float(sign: rounded.sign, exponentBitPattern: 0, significandBitPattern: 0) : rounded
    }

    /// What becomes of a sum of products where the row's reference has moved: sum * a, +0 below 2^-102, so that it stays a
    /// multiple of 2^-126.
    func rescaledForProducts(_ a: Float) -> Float {
        if a == 1 { return self }
        let product = self * a
        return product.magnitude < 0x1p-102 ? 0 : product
    }
}

/// The sum of a[d] b[d] of rounded numbers: in every segment two chains of fused multiply-adds from +0, of its even and of its
/// odd channels; their sum is added to that of the segments before.
func pairDot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Float {
    var sum: Float = 0
    for first in stride(from: 0, to: count, by: segment) {
        var chains: (even: Float, odd: Float) = (0, 0)
        for d in first..<min(first + segment, count) {
            if d % 2 == 0 {
                chains.even = fma(a[d], b[d], chains.even)
            } else {
                chains.odd = fma(a[d], b[d], chains.odd)
            }
        }
        sum += chains.even + chains.odd
    }
    return sum
}

/// Adds `weights[j] values[j]` of the given rows j of a block to the sums, by the same segments of keys.
///
/// - Parameter values: `[64][sums.count]`.
func addPairProducts(
    _ weights: [Float], _ values: UnsafePointer<Float>, rows: [Int], to sums: inout [Float]
) {
    for first in stride(from: 0, to: keyBlock, by: segment) {
        let rows = rows.filter { (first..<first + segment).contains($0) }
        var (even, odd) = ([Float](repeating: 0, count: sums.count), [Float](repeating: 0, count: sums.count))
        for j in rows {
            let value = values + j * sums.count
            if j % 2 == 0 {
                for d in sums.indices { even[d] = fma(weights[j], value[d], even[d]) }
            } else {
                for d in sums.indices { odd[d] = fma(weights[j], value[d], odd[d]) }
            }
        }
        for d in sums.indices { sums[d] += even[d] + odd[d] }
    }
}
