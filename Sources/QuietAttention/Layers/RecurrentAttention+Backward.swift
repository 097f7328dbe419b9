// SPDX-License-Identifier: Apache-2.0
// RecurrentAttention+Backward.swift - the gradients of linear attention and retention, for arrays and unsafe buffers.

extension RecurrentAttention {
    /// The gradients of a loss in queries, keys and values, from its gradient in the output.
    ///
    /// Recurrences as forward is, in O((L + S) D E) per head and with its sums in Double: two more over the keys, and one or two
    /// over the rows. Keys and values that several query heads share get the sum of their gradients. Each is rounded once.
    ///
    /// *Edge cases*: a row that sees no key, and one whose `outputGradient` is 0, has gradients of 0 and is not read, nor
    /// has it a part in those of others. A gradient of 0 is +0.
    ///
    /// - Parameters:
    ///   - outputGradient: in the order of the output.
    ///   - queries: those of the forward pass.
    ///   - keys: those of the forward pass.
    ///   - values: those of the forward pass.
    /// - Returns: gradients without sinks, as there is none.
    /// - Throws: ``AttentionError`` of kind `elementCount` or `memory`.
    public func backward(
        outputGradient: [Float], queries: [Float], keys: [Float], values: [Float]
    ) throws(AttentionError) -> AttentionGradients {
        try shape.checkCounts(queries.count, keys.count, values.count)
        var gradients = AttentionGradients(
            queries: try [Float](for: "gradients.queries", repeating: 0, count: shape.queryCount),
            keys: try [Float](for: "gradients.keys", repeating: 0, count: shape.keyCount),
            values: try [Float](for: "gradients.values", repeating: 0, count: shape.valueCount), sinks: [])
        try addGradients(
            outputGradient: outputGradient, queries: queries, keys: keys, values: values, to: &gradients)
        return gradients
    }

    /// Adds the gradients to those that are there.
    ///
    /// - Parameters: as of ``backward(outputGradient:queries:keys:values:)``.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `composition` (something to add to that has no gradient here) or
    ///   `memory`; the gradients are untouched then.
    public func addGradients(
        outputGradient: [Float], queries: [Float], keys: [Float], values: [Float],
        to gradients: inout AttentionGradients
    ) throws(AttentionError) {
        // Before the buffers are asked for: that would copy arrays which others share.
        try shape.checkCounts(
            of: "gradients.", gradients.queries.count, gradients.keys.count, gradients.values.count)
        try withUnsafeBuffers([outputGradient, queries, keys, values][...]) { inputs throws(AttentionError) in
            try gradients.withUnsafeBuffers { buffers throws(AttentionError) in
                try backward(
                    outputGradient: inputs[0], queries: inputs[1], keys: inputs[2], values: inputs[3], into: buffers,
                    accumulating: true)
            }
        }
    }

    /// Computes the gradients into the caller's memory.
    ///
    /// - Parameters:
    ///   - outputGradient: in the order of the output.
    ///   - queries: those of the forward pass.
    ///   - keys: those of the forward pass.
    ///   - values: those of the forward pass.
    ///   - gradients: where they go: queries, keys and values, and nothing else.
    ///   - accumulating: whether they are added to what is there.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `composition` or `memory`; nothing is written after the first two.
    public func backward(
        outputGradient: UnsafeBufferPointer<Float>, queries: UnsafeBufferPointer<Float>,
        keys: UnsafeBufferPointer<Float>, values: UnsafeBufferPointer<Float>,
        into gradients: AttentionGradientBuffers<Float>, accumulating: Bool = false
    ) throws(AttentionError) {
        try shape.checkCounts(queries.count, keys.count, values.count)
        try checkCount("outputGradient", outputGradient.count, shape.outputCount)
        try shape.checkCounts(
            of: "gradients.", gradients.queries.count, gradients.keys.count, gradients.values.count)
        if let name = gradients.nameOfFirstOptionalSum {
            throw AttentionError(
                .composition, "gradients.\(name)", expected: "none with \(kind), which has nothing of it",
                found: "a buffer")
        }
        if !accumulating {
            for buffer in [gradients.queries, gradients.keys, gradients.values] { buffer.update(repeating: 0) }
        }
        let tensors = RecurrentTensors(queries: queries, keys: keys, values: values)
        try inFloatMode { () throws(AttentionError) in
            let heads = HeadRows.all(shape, layout)
            let group = heads.isEmpty ? 1 : shape.queryHeads / shape.keyValueHeads
            for first in stride(from: 0, to: heads.count, by: group) {
                try add(heads[first..<first + group], tensors, outputGradient, to: gradients)
            }
        }
    }

    /// Of the query heads that share a key/value head.
    private func add(
        _ heads: ArraySlice<HeadRows>, _ tensors: RecurrentTensors, _ outputGradient: UnsafeBufferPointer<Float>,
        to gradients: AttentionGradientBuffers<Float>
    ) throws(AttentionError) {
        guard let first = heads.first else { return }
        let (dimension, width) = (shape.headDimension, shape.valueDimension)
        var keys = try [Double](for: "gradients.keys", repeating: 0, count: first.keyCount * dimension)
        var values = try [Double](for: "gradients.values", repeating: 0, count: first.keyCount * width)
        for rows in heads {
            let head = try RecurrentHeadGradients(RecurrentHead(self, rows, tensors), of: outputGradient)
            var queries = try [Double](for: "gradients.queries", repeating: 0, count: rows.queryCount * dimension)
            head.addQueries(to: &queries)
            head.addKeys(to: &keys, values: &values)
            add(queries, rows.queries, width: dimension, to: gradients.queries)
        }
        add(keys, first.keys, width: dimension, to: gradients.keys)
        add(values, first.values, width: width, to: gradients.values)
    }

    /// Rounds rows and adds them. A -0 that is there counts as +0.
    private func add(
        _ sums: [Double], _ rows: HeadRows.Rows, width: Int, to gradients: UnsafeMutableBufferPointer<Float>
    ) {
        for (index, sum) in sums.enumerated() {
            let place = rows[index / width] + index % width
            gradients[place] = (gradients[place] + 0) + Float(sum)
        }
    }
}
