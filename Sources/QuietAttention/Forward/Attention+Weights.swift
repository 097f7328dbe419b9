// SPDX-License-Identifier: Apache-2.0
// Attention+Weights.swift - the weights themselves, for those who want to look at them.

extension Attention {
    /// The weights p of every row: a matrix of queries by keys per head, which everything else here avoids.
    ///
    ///     out[i] = sum_j p[i][j] v[j]
    ///
    /// For plots and tests of moderate size. It is a forward pass with the unit matrix as values, in parts of 1024 keys, so
    /// masks, positions, score rules and normalisers are those of `forward(queries:keys:values:)`, and so are the bits on
    /// every kernel set and any number of threads. ``RowDiagnostics`` need no such matrix.
    ///
    /// - Parameters:
    ///   - queries: `[B, H, L, D]`, in the layout of the attention.
    ///   - keys: `[B, G, S, D]`, likewise.
    /// - Returns: `[B, H, L, S]` in every layout; 0 at keys that a row does not see.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `overflow` (more weights than Int can count), `composition`
    ///   (a packed batch, whose sequences have matrices of different sizes) or `memory`.
    public func weights(queries: [Float], keys: [Float]) throws(AttentionError) -> [Float] {
        try checkCount("queries", queries.count, shape.queryCount)
        try checkCount("keys", keys.count, shape.keyCount)
        guard !shape.isPacked else {
            throw AttentionError(
                .composition, "shape", expected: "a batch of sequences of one length", found: "a packed batch")
        }
        let count = try CheckedMemory.product("weights", shape.rowCount, shape.keys)
        var weights = try [Float](for: "weights", repeating: 0, count: count)
        if count == 0 { return weights }
        for first in stride(from: 0, to: shape.keys, by: AttentionShape.longestDimension) {
            let part = first..<min(first + AttentionShape.longestDimension, shape.keys)
            try addWeights(of: part, queries, keys, to: &weights)
        }
        return weights
    }

    private func addWeights(
        of part: Range<Int>, _ queries: [Float], _ keys: [Float], to weights: inout [Float]
    ) throws(AttentionError) {
        let shape = try AttentionShape(
            batch: self.shape.batch, queryHeads: self.shape.queryHeads, keyValueHeads: self.shape.keyValueHeads,
            queries: self.shape.queries, keys: self.shape.keys, headDimension: self.shape.headDimension,
            valueDimension: part.count)
        let attention = try Attention(
            shape, rules: rules, mask: mask, bias: bias, positions: positions, queryKeyNorm: queryKeyNorm,
            products: products, layout: layout, threads: threads, kernels: kernels, workspace: workspace)
        // Row j of the values has a 1 where it counts as key j, in every head.
        var values = try [Float](for: "values", repeating: 0, count: shape.valueCount)
        var output = try [Float](for: "output", repeating: 0, count: shape.outputCount)
        let rows = TensorRows(shape, layout)
        for item in 0..<shape.batch {
            for head in 0..<shape.keyValueHeads {
                let start = rows.values.offset(start: item * shape.keys, head: head)
                for key in part { values[start + key * rows.values.row + key - part.lowerBound] = 1 }
            }
        }
        try attention.forward(queries: queries, keys: keys, values: values, into: &output)
        for row in 0..<shape.rowCount {
            let (outer, query) = row.quotientAndRemainder(dividingBy: shape.queries)
            let (item, head) = outer.quotientAndRemainder(dividingBy: shape.queryHeads)
            let source = rows.output.offset(start: item * shape.queries, head: head) + query * rows.output.row
            for index in part.indices {
                weights[row * shape.keys + index] = output[source + index - part.lowerBound]
            }
        }
    }
}
