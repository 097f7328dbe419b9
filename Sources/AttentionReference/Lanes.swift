// SPDX-License-Identifier: Apache-2.0
// Lanes.swift - sums in sixteen parts, whose order does not depend on how wide vectors are.

/// Partial sums of a row.
let laneCount = 16

/// Sixteen partial sums from +0: the term of index i joins lane i mod 16, in ascending order.
struct LaneSums {
    private var lanes = [Float](repeating: 0, count: laneCount)

    /// lane += x, rounded.
    mutating func add(_ x: Float, at index: Int) { lanes[index % laneCount] += x }

    /// lane += a * b, rounded once.
    mutating func add(_ a: Float, times b: Float, at index: Int) {
        lanes[index % laneCount] = fma(a, b, lanes[index % laneCount])
    }

    /// The lanes added in a tree.
    var total: Float { treeSum(lanes) }
}

/// Sixteen lanes added in a tree: lane r and lane r + 8, then r and r + 4, r and r + 2, r and r + 1.
func treeSum(_ lanes: [Float]) -> Float {
    var sums = lanes
    for half in [8, 4, 2, 1] {
        for lane in 0..<half { sums[lane] = sums[lane] + sums[lane + half] }
    }
    return sums[0]
}
