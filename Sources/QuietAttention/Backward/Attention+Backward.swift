// SPDX-License-Identifier: Apache-2.0
// Attention+Backward.swift - the backward pass, for arrays and unsafe buffers.

extension Attention {
    /// The gradients of a loss in queries, keys, values and sinks, from its gradient in the output.
    ///
    ///     dv[j] = sum_i p[i][j] dout[i]            u[i][j] = p[i][j] (dout[i].v[j] - delta[i])
    ///     dq[i] = sum_j scale u[i][j] k[j]         delta[i] = dout[i].out[i] - dlse[i]
    ///     dk[j] = sum_i scale u[i][j] q[i]         dsink = - sum_i sinkShare[i] delta[i]
    ///
    /// with what softcap, row factors, positions and norms add by the chain rule. The weights p are forward's own, at scores
    /// of -2500 as well as at 0. No matrix of queries by keys is held. The bits of the gradients depend on the mathematics
    /// alone, as those of forward do: on neither threads nor kernel set, nor on what lies in masked places.
    ///
    /// Where the problem has them, there are the gradients of the norms' gains and biases, of the additive bias, of slopes that
    /// were given and of the s of scalable softmax, too; to leave any of these out, use ``addGradients(outputGradient:logSumExpGradient:queries:keys:values:output:record:to:)``.
    ///
    /// - Parameters:
    ///   - outputGradient: in the order of the output.
    ///   - logSumExpGradient: `[B, H, L]`, where a loss uses the log-sum-exp too; nil: it does not.
    ///   - queries: those of the forward pass.
    ///   - keys: those of the forward pass.
    ///   - values: those of the forward pass.
    ///   - output: what the forward pass returned.
    ///   - record: what the forward pass kept.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `record` (kept for another shape or normaliser), `composition` (a
    ///   gradient of the log-sum-exp where the normaliser has none), `scaling` (an s of 0 in scalable softmax) or `memory`.
    public func backward(
        outputGradient: [Float], logSumExpGradient: [Float]? = nil, queries: [Float], keys: [Float], values: [Float],
        output: [Float], record: ForwardRecord
    ) throws(AttentionError) -> AttentionGradients {
        // Before memory is asked for: sizes may be beyond any.
        try shape.checkCounts(queries.count, keys.count, values.count)
        var gradients = AttentionGradients(
            queries: try [Float](for: "gradients.queries", repeating: 0, count: shape.queryCount),
            keys: try [Float](for: "gradients.keys", repeating: 0, count: shape.keyCount),
            values: try [Float](for: "gradients.values", repeating: 0, count: shape.valueCount),
            sinks: [Float](repeating: 0, count: normaliser.hasSink ? shape.queryHeads : 0))
        func zeros(_ vector: [Float]?) -> [Float] { [Float](repeating: 0, count: vector?.count ?? 0) }
        (gradients.queryGain, gradients.queryBias) = (zeros(queryKeyNorm?.queryGain), zeros(queryKeyNorm?.queryBias))
        (gradients.keyGain, gradients.keyBias) = (zeros(queryKeyNorm?.keyGain), zeros(queryKeyNorm?.keyBias))
        if let bias { gradients.bias = try [Float](for: "gradients.bias", repeating: 0, count: bias.extents.count) }
        if alibi?.given != nil { gradients.slopes = [Float](repeating: 0, count: shape.queryHeads) }
        if case .scalableSoftmax = scaling {
            gradients.scalableSoftmax = [Float](repeating: 0, count: shape.queryHeads)
        }
        try addGradients(
            outputGradient: outputGradient, logSumExpGradient: logSumExpGradient, queries: queries, keys: keys,
            values: values, output: output, record: record, to: &gradients)
        return gradients
    }

    /// Adds the gradients to those of earlier backward passes: of other micro-batches, or of other layers that share tensors.
    ///
    /// Sums go on where they stand, so that a sequence whose queries are cut at multiples of 64 and processed in ascending
    /// order has the bits of one pass in the gradients of keys and values; of keys under norms or positions it has them up
    /// to rounding, since each pass turns its own sum back before it adds it.
    ///
    /// Of gains, biases, slopes and scales empty arrays are not wanted and stay empty.
    ///
    /// - Parameters: as of ``backward(outputGradient:logSumExpGradient:queries:keys:values:output:record:)``.
    public func addGradients(
        outputGradient: [Float], logSumExpGradient: [Float]? = nil, queries: [Float], keys: [Float], values: [Float],
        output: [Float], record: ForwardRecord, to gradients: inout AttentionGradients
    ) throws(AttentionError) {
        // Before the buffers are asked for: that would copy arrays which others share.
        try shape.checkCounts(
            of: "gradients.", gradients.queries.count, gradients.keys.count, gradients.values.count)
        try checkCount("gradients.sinks", gradients.sinks.count, normaliser.hasSink ? shape.queryHeads : 0)
        let inputs = [outputGradient, queries, keys, values, output, logSumExpGradient ?? []]
        try withUnsafeBuffers(inputs[...]) { inputs throws(AttentionError) in
            try gradients.withUnsafeBuffers { buffers throws(AttentionError) in
                try backward(
                    outputGradient: inputs[0], logSumExpGradient: logSumExpGradient == nil ? nil : inputs[5],
                    queries: inputs[1], keys: inputs[2], values: inputs[3], output: inputs[4], record: record,
                    into: buffers, accumulating: true)
            }
        }
    }

    /// Computes the gradients into the caller's memory.
    ///
    /// - Parameters:
    ///   - outputGradient: in the order of the output, of any storage type.
    ///   - logSumExpGradient: `[B, H, L]`; nil: the loss does not use the log-sum-exp.
    ///   - queries: those of the forward pass.
    ///   - keys: those of the forward pass.
    ///   - values: those of the forward pass.
    ///   - output: what the forward pass wrote, in its storage type.
    ///   - record: what the forward pass kept.
    ///   - gradients: where the gradients go.
    ///   - accumulating: whether they are added to what is there.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `record`, `composition`, `scaling` or `memory`; nothing is written then.
    public func backward<
        Input: AttentionScalar, Output: AttentionScalar, OutputGradient: AttentionScalar, Gradient: AttentionScalar
    >(
        outputGradient: UnsafeBufferPointer<OutputGradient>, logSumExpGradient: UnsafeBufferPointer<Float>? = nil,
        queries: UnsafeBufferPointer<Input>, keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>,
        output: UnsafeBufferPointer<Output>, record: ForwardRecord, into gradients: AttentionGradientBuffers<Gradient>,
        accumulating: Bool = false
    ) throws(AttentionError) {
        try inFloatMode { () throws(AttentionError) in
            try check(
                outputGradient.count, logSumExpGradient?.count, queries.count, keys.count, values.count, output.count,
                record, gradients)
            try runBackward(
                outputGradient, logSumExpGradient, queries, keys, values, output, record, gradients,
                accumulating: accumulating)
        }
    }

    private func check<Gradient: AttentionScalar>(
        _ outputGradient: Int, _ logSumExpGradient: Int?, _ queries: Int, _ keys: Int, _ values: Int, _ output: Int,
        _ record: ForwardRecord, _ gradients: AttentionGradientBuffers<Gradient>
    ) throws(AttentionError) {
        try shape.checkCounts(queries, keys, values)
        try checkCount("outputGradient", outputGradient, shape.outputCount)
        try checkCount("output", output, shape.outputCount)
        if let logSumExpGradient {
            try normaliser.checkSums("logSumExpGradient", logSumExpGradient, shape.rowCount)
        }
        try check(gradients)
        guard record.references.count == shape.rowCount,
            record.sinkShares.count == (normaliser.hasSink ? shape.rowCount : 0)
        else {
            throw AttentionError(
                .record, "record", expected: "what a forward pass over \(shape.rowCount) rows kept",
                found: "\(record.references.count) rows, \(record.sinkShares.count) with a sink")
        }
    }

    // MARK: - Run

    private func runBackward<
        Input: AttentionScalar, Output: AttentionScalar, OutputGradient: AttentionScalar, Gradient: AttentionScalar
    >(
        _ outputGradient: UnsafeBufferPointer<OutputGradient>, _ logSumExpGradient: UnsafeBufferPointer<Float>?,
        _ queries: UnsafeBufferPointer<Input>, _ keys: UnsafeBufferPointer<Input>,
        _ values: UnsafeBufferPointer<Input>, _ output: UnsafeBufferPointer<Output>, _ record: ForwardRecord,
        _ gradients: AttentionGradientBuffers<Gradient>, accumulating: Bool
    ) throws(AttentionError) {
        let schedule = try BackwardSchedule(self, gradients, accumulates: accumulating)
        let buffer = try workspace.take(byteCount: schedule.byteCount)
        defer { workspace.give(back: buffer) }
        if !accumulating { gradients.clear(keysWithoutQueriesOf: shape) }
        guard let queries = queries.baseAddress, let output = output.baseAddress,
            let outputGradient = outputGradient.baseAddress, let dq = gradients.queries.baseAddress,
            shape.rowCount > 0
        else { return }
        record.references.withUnsafeBufferPointer { references in
            record.factors.withUnsafeBufferPointer { factors in
                maskTensors.withPointers { masks in
                    let tensors = BackwardTensors(
                        queries: queries, keys: keys.baseAddress ?? queries, values: values.baseAddress ?? queries,
                        inputStorage: Input.storage, output: output, outputStorage: Output.storage,
                        outputGradient: outputGradient, outputGradientStorage: OutputGradient.storage,
                        logSumExpGradient: logSumExpGradient?.baseAddress, references: references.baseAddress,
                        factors: factors.baseAddress, queryGradient: dq, keyGradient: gradients.keys.baseAddress ?? dq,
                        valueGradient: gradients.values.baseAddress ?? dq, gradientStorage: Gradient.storage,
                        accumulates: accumulating,
                        queryParameters: (gradients.queryGain?.baseAddress, gradients.queryBias?.baseAddress),
                        keyParameters: (gradients.keyGain?.baseAddress, gradients.keyBias?.baseAddress))
                    let run = BackwardRun(
                        attention: self, schedule: schedule, tensors: tensors, masks: masks, memory: buffer.address)
                    run.runAll()
                    if let sums = gradients.bias?.baseAddress { run.addBiasGradients(to: sums) }
                    run.addHeadGradients(
                        slopes: gradients.slopes?.baseAddress, logScales: gradients.logScales?.baseAddress,
                        scalableSoftmax: gradients.scalableSoftmax?.baseAddress)
                }
            }
        }
        if let sinks = gradients.sinks?.baseAddress {
            record.sinkShares.withUnsafeBufferPointer {
                let (shares, deltas) = ($0.baseAddress!, schedule.deltas(buffer.address))
                // The part of the incoming gradient that a row's sink takes.
                addRowSums(to: sinks) { -(shares[$0] * deltas[$0]) }
            }
        }
    }
}

extension AttentionGradientBuffers {
    /// What is summed over rows begins at 0; so do keys and values where some sequence has no queries, and so is nobody's
    /// work.
    fileprivate func clear(keysWithoutQueriesOf shape: AttentionShape) {
        for sum in [
            sinks, queryGain, queryBias, keyGain, keyBias, bias, slopes, scalableSoftmax, logScales,
        ] { sum?.update(repeating: 0) }
        let offsets = shape.queryOffsets ?? [0, shape.rowCount]
        guard shape.rowCount == 0 || zip(offsets, offsets.dropFirst()).contains(where: ==) else { return }
        for buffer in [keys, values] {
            let bytes = UnsafeMutableRawBufferPointer(buffer)
            bytes.initializeMemory(as: UInt8.self, repeating: 0)
        }
    }
}
