// SPDX-License-Identifier: Apache-2.0
// OrderedSum.swift - sums whose order, and so whose bits, depends on nothing but the number of terms.

/// The sum of `term` over 0 ..< count: lane r sums the terms r, r + 16, r + 32 ... in turn, and the lanes are added in a
/// tree, r with r + 8, then r + 4, r + 2, r + 1. Sixteen short sums round less than a long one.
@inline(__always)
func orderedSum<Number: BinaryFloatingPoint>(_ count: Int, _ term: (Int) -> Number) -> Number {
    withUnsafeTemporaryAllocation(of: Number.self, capacity: 16) { lanes in
        lanes.initialize(repeating: 0)
        var first = 0
        while first + 16 <= count {
            for lane in 0..<16 { lanes[lane] += term(first + lane) }
            first += 16
        }
        for index in first..<count { lanes[index - first] += term(index) }
        for half in [8, 4, 2, 1] {
            for lane in 0..<half { lanes[lane] += lanes[lane + half] }
        }
        return lanes[0]
    }
}
