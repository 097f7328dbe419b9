// SPDX-License-Identifier: Apache-2.0
// FloatOperations.swift - what counts as work: the two products, over the pairs of query and key that a mask leaves.
//
//     operations = 2 pairs (headDimension + valueDimension),   4 pairs headDimension where the two are equal
//     operations = 2 pairs (3 headDimension + 2 valueDimension)   of a backward pass, 10 pairs headDimension
//     operations = 2 (queries + keys) headDimension valueDimension   of a recurrence, twice where rows see both sides
//
// Pairs are those of all queries with all keys, half of them if a causal mask leaves a triangle, as others count them, so
// that figures can be compared; of every other mask the visible ones, whatever tensors hide of them. Padding is not
// counted, exponentials and sums neither.

import QuietAttention

struct FloatOperations {
    let count: Double
    /// Which pairs were counted.
    let pairs: String

    init(_ attention: Attention, mask: MaskOption, isBackward: Bool = false) {
        let shape = attention.shape
        let rows = Double(shape.batch) * Double(shape.queryHeads) * Double(shape.queries)
        let (all, visible) = (rows * Double(shape.keys), attention.visiblePairs)
        let counted: Double
        switch mask {
        case .none: (counted, pairs) = (visible, "all")
        // As many queries as keys and no padding: half of the pairs, and of the diagonal the other half too.
        case .causal where visible == (all + rows) / 2: (counted, pairs) = (all / 2, "half")
        case .causal, .window, .around: (counted, pairs) = (visible, "visible")
        }
        let (d, e) = (Double(shape.headDimension), Double(shape.valueDimension))
        count = 2 * counted * (isBackward ? 3 * d + 2 * e : d + e)
    }

    /// Those of a recurrence: each key is added to the state, and each row reads it.
    static func count(_ attention: RecurrentAttention) -> Double {
        let shape = attention.shape
        let steps = Double(shape.batch * shape.queryHeads) * Double(shape.queries + shape.keys)
        return (attention.isCausal ? 2 : 4) * steps * Double(shape.headDimension * shape.valueDimension)
    }
}
