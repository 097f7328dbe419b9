// SPDX-License-Identifier: Apache-2.0
// FloatOperations.swift - what counts as work: the two products, over the pairs of query and key that a mask leaves.
//
//     operations = 2 pairs (headDimension + valueDimension),   4 pairs headDimension where the two are equal
//     operations = 2 (queries + keys) headDimension valueDimension   of a recurrence, twice where rows see both sides
//
// Pairs are those of all queries with all keys, half of them under a causal mask, as others count them, so that figures
// can be compared; of a window only the visible ones. Padding is not counted, exponentials and sums neither.

import QuietAttention

struct FloatOperations {
    let count: Double
    /// Which pairs were counted.
    let pairs: String

    init(_ attention: Attention, mask: MaskOption, keyLengths: [Int]?) {
        let shape = attention.shape
        let keys = keyLengths.map { $0.reduce(0.0) { $0 + Double($1) } } ?? Double(shape.batch) * Double(shape.keys)
        let all = Double(shape.queryHeads) * Double(shape.queries) * keys
        let counted: Double
        switch mask {
        case .none: (counted, pairs) = (all, "all")
        case .causal: (counted, pairs) = (all / 2, "half")
        case .window: (counted, pairs) = (attention.visiblePairs, "visible")
        }
        count = 2 * counted * Double(shape.headDimension + shape.valueDimension)
    }

    /// Those of a recurrence: each key is added to the state, and each row reads it.
    static func count(_ attention: RecurrentAttention) -> Double {
        let shape = attention.shape
        let steps = Double(shape.batch * shape.queryHeads) * Double(shape.queries + shape.keys)
        return (attention.isCausal ? 2 : 4) * steps * Double(shape.headDimension * shape.valueDimension)
    }
}
