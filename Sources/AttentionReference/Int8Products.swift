// SPDX-License-Identifier: Apache-2.0
// Int8Products.swift - keys and values in int8, and their products with queries and weights: sums of integers.

/// Rows in int8: value = integer * scale of its row.
struct Int8Rows {
    let dimension: Int
    private let integers: [Int32]
    private let scales: [Float]

    /// Of each row, `scale = amax / 127` with the largest magnitude `amax` (NaN if any element is), and
    /// `integer = round-to-even(x * (127 / amax))`, at most 127 in magnitude; 0 where that is NaN.
    init(_ rows: [Float], dimension: Int) {
        var integers: [Int32] = []
        var scales: [Float] = []
        for first in stride(from: 0, to: rows.count, by: dimension) {
            let row = rows[first..<first + dimension]
            let largest = Float(bitPattern: largestMagnitude(row))
            let inverseScale = 127 / largest
            scales.append(largest / 127)
            integers += row.map { rounded($0 * inverseScale, most: 127) }
        }
        (self.dimension, self.integers, self.scales) = (dimension, integers, scales)
    }

    /// What the row stands for.
    var values: [Float] { integers.indices.map { Float(integers[$0]) * scales[$0 / dimension] } }

    /// `query . row`: in every block of 512 channels an exact sum; their Floats are added, and multiplied by the product of
    /// both scales.
    func dot(_ query: FifteenBits, row: Int) -> Float {
        var sum: Float = 0
        for first in stride(from: 0, to: dimension, by: integerChannelBlock) {
            let count = min(integerChannelBlock, dimension - first)
            let block = integers.withUnsafeBufferPointer { integers in
                query.integers.withUnsafeBufferPointer { query in
                    integerDot(query.baseAddress! + first, integers.baseAddress! + row * dimension + first, count)
                }
            }
            sum = first == 0 ? Float(block) : sum + Float(block)
        }
        return sum * (scales[row] * query.step)
    }

    /// `sum_j weights[j] value[first + j]` over the given rows j, 64 at most: the scale of a value is part of its weight.
    func weightedSum(_ weights: [Float], first: Int, rows: [Int]) -> [Float] {
        let weights = FifteenBits(rows.map { weights[$0] * scales[first + $0] })
        var sums = [Int32](repeating: 0, count: dimension)
        integers.withUnsafeBufferPointer { integers in
            sums.withUnsafeMutableBufferPointer { sums in
                for (weight, j) in zip(weights.integers, rows) {
                    let value = integers.baseAddress! + (first + j) * dimension
                    for d in sums.indices { sums[d] += weight * value[d] }
                }
            }
        }
        return sums.map { Float($0) * weights.step }
    }
}

/// The keys and values of one key/value head, from row `first` of both on.
struct Int8Head {
    let keys, values: Int8Rows
    let first: Int

    func head(_ index: Int, keys count: Int) -> Int8Head {
        Int8Head(keys: keys, values: values, first: index * count)
    }
}

/// Floats as integers of 15 bits and a sign: value = integer * step, off by at most 2^-15 of the largest magnitude.
struct FifteenBits {
    let integers: [Int32]
    /// A power of two; NaN if any value is NaN or infinite.
    let step: Float

    /// The integer of the largest magnitude has its 15th bit set. Exponents are as in the bits of a Float; those below 15
    /// count as 15, so that the step is a normal number.
    init(_ values: [Float]) {
        let exponent = max(largestMagnitude(values) >> 23, 15)
        let factor = Float(bitPattern: (268 - exponent) << 23)
        step = exponent == 255 ? .nan : Float(bitPattern: (exponent - 14) << 23)
        integers = values.map { rounded($0 * factor, most: 32767) }
    }
}

extension ReferenceProblem {
    /// What rows `[count][dimension]` are after being kept in int8, rounded to Float.
    public static func roundedToInt8(_ rows: [Float], dimension: Int) -> [Float] {
        Int8Rows(rows, dimension: dimension).values
    }
}

/// The bits of the largest magnitude; NaN, of larger bits than any number, wins.
private func largestMagnitude(_ values: some Sequence<Float>) -> UInt32 {
    values.reduce(0) { max($0, $1.magnitude.bitPattern) }
}

/// The nearest integer, ties to even, at most `most` from 0; 0 for NaN.
private func rounded(_ x: Float, most: Float) -> Int32 {
    x.isNaN ? 0 : Int32(max(-most, min(most, x)).rounded(.toNearestOrEven))
}

private func integerDot(_ a: UnsafePointer<Int32>, _ b: UnsafePointer<Int32>, _ count: Int) -> Int32 {
    var sum: Int32 = 0
    for d in 0..<count { sum += a[d] * b[d] }
    return sum
}
