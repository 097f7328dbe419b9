// SPDX-License-Identifier: Apache-2.0
// AttentionLayout.swift - the order of dimensions in memory.

/// The order of dimensions of queries, keys, values and output in memory. Neither is copied into the other.
public enum AttentionLayout: Sendable, Hashable, CaseIterable {
    /// `[batch, heads, sequence, dimension]`; of a packed batch `[heads, total, dimension]`.
    case batchHeadsSequence
    /// `[batch, sequence, heads, dimension]`; of a packed batch `[total, heads, dimension]`.
    case batchSequenceHeads
}

/// Where the rows of one tensor are, in elements: head h, row i of the sequence whose rows start at `start` (counted over
/// all sequences) is at `start * self.start + h * head + i * row`.
struct RowStrides: Sendable {
    let start: Int
    let head: Int
    let row: Int

    /// Products wrap: they are out of range only for empty tensors, of which no row is ever addressed.
    init(_ layout: AttentionLayout, packed: Bool, heads: Int, sequence: Int, total: Int, dimension: Int) {
        switch layout {
        case .batchHeadsSequence:
            start = packed ? dimension : heads &* dimension
            head = (packed ? total : sequence) &* dimension
            row = dimension
        case .batchSequenceHeads:
            start = heads &* dimension
            head = dimension
            row = heads &* dimension
        }
    }

    func offset(start: Int, head: Int) -> Int { start * self.start + head * self.head }
}

/// Where the rows of all tensors are.
struct TensorRows: Sendable {
    let output: RowStrides
    /// As the layout says, or at places within a buffer.
    var queries, keys, values: RowStrides
    /// Of the log-sum-exp and the sink share, which have the same order in every layout.
    let sums: RowStrides

    init(_ shape: AttentionShape, _ layout: AttentionLayout) {
        func queryRows(_ layout: AttentionLayout, _ dimension: Int) -> RowStrides {
            RowStrides(
                layout, packed: shape.isPacked, heads: shape.queryHeads, sequence: shape.queries,
                total: shape.totalQueries, dimension: dimension)
        }
        func keyRows(_ dimension: Int) -> RowStrides {
            RowStrides(
                layout, packed: shape.isPacked, heads: shape.keyValueHeads, sequence: shape.keys,
                total: shape.totalKeys, dimension: dimension)
        }
        queries = queryRows(layout, shape.headDimension)
        output = queryRows(layout, shape.valueDimension)
        sums = queryRows(.batchHeadsSequence, 1)
        keys = keyRows(shape.headDimension)
        values = keyRows(shape.valueDimension)
    }
}
