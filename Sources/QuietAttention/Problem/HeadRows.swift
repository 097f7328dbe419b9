// SPDX-License-Identifier: Apache-2.0
// HeadRows.swift - where the rows of one query head are, for computations that go through them one by one.

/// One query head of one sequence: how many rows and keys it has, and in which places of the tensors they start.
struct HeadRows {
    /// Rows of one tensor: row i starts at `first + i * stride`.
    struct Rows {
        let first, stride: Int

        init(_ rows: RowStrides, start: Int, head: Int) {
            (first, stride) = (rows.offset(start: start, head: head), rows.row)
        }

        subscript(row: Int) -> Int { first + row * stride }
    }

    let queryHead: Int
    let queryCount, keyCount: Int
    let queries, keys, values, output: Rows

    /// All of them, [batch][query head].
    static func all(_ shape: AttentionShape, _ layout: AttentionLayout) -> [HeadRows] {
        guard shape.rowCount > 0 else { return [] }
        let rows = TensorRows(shape, layout)
        let group = shape.queryHeads / shape.keyValueHeads
        return (0..<shape.batch * shape.queryHeads).map { index in
            let (item, head) = index.quotientAndRemainder(dividingBy: shape.queryHeads)
            let queryStart = shape.queryOffsets?[item] ?? item * shape.queries
            let keyStart = shape.keyOffsets?[item] ?? item * shape.keys
            return HeadRows(
                queryHead: head,
                queryCount: shape.queryOffsets.map { $0[item + 1] - queryStart } ?? shape.queries,
                keyCount: shape.keys(ofSequence: item),
                queries: Rows(rows.queries, start: queryStart, head: head),
                keys: Rows(rows.keys, start: keyStart, head: head / group),
                values: Rows(rows.values, start: keyStart, head: head / group),
                output: Rows(rows.output, start: queryStart, head: head))
        }
    }
}
