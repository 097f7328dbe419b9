// SPDX-License-Identifier: Apache-2.0
// PartwiseAttention+Forward.swift - taking in parts of the keys, and the results of rows in the end.

import CKernels

extension PartwiseAttention {
    /// The states of rows that have seen nothing.
    ///
    /// - Throws: ``AttentionError`` of kind `overflow` or `memory`.
    public func begin() throws(AttentionError) -> RunningAttention {
        try RunningAttention(rows: shape.rowCount, valueDimension: shape.valueDimension)
    }

    /// Takes in a part of the keys.
    ///
    /// - Parameters:
    ///   - keys: `[G, n, D]`, the keys of `range` of each head.
    ///   - values: `[G, n, E]`.
    ///   - range: from a multiple of 1024 to another or to the end of the sequence, at or behind the end of those before. Keys
    ///     between them must be none that a row sees.
    ///   - queries: `[H, L, D]`, those of every part.
    ///   - running: what the rows know.
    ///   - meanwhile: called now and then on the calling thread, between pieces of a millisecond or less.
    /// - Throws: ``AttentionError`` of kind `keyRange`, `elementCount`, `partialShape` (states of other rows) or `memory`: then
    ///   ``RunningAttention/keys`` says how far it came, and what is behind may be given again.
    public func add<Input: AttentionScalar>(
        _ keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>, of range: Range<Int>,
        queries: UnsafeBufferPointer<Input>, to running: RunningAttention, meanwhile: () -> Void = {}
    ) throws(AttentionError) {
        try check(part: range)
        try checkCount("keys", keys.count, shape.keyValueHeads * range.count * shape.headDimension)
        try checkCount("values", values.count, shape.keyValueHeads * range.count * shape.valueDimension)
        try checkCount("queries", queries.count, shape.queryCount)
        try check(running)
        try checkNothingIsLeftOut(from: running.keys, to: range.lowerBound)
        guard let first = queries.baseAddress, let keys = keys.baseAddress, let values = values.baseAddress else {
            running.keys = max(range.upperBound, running.keys)
            return
        }
        let schedule = inFloatMode { PartSchedule(self) }
        let buffer = try workspace.take(byteCount: schedule.byteCount)
        defer { workspace.give(back: buffer) }
        let chunks = range.clamped(to: plan.chunks.lowerBound * SequencePlan.chunk..<plan.keyEnd)
        for origin in stride(from: chunks.lowerBound, to: chunks.upperBound, by: SequencePlan.chunk) {
            let chunk = origin..<min(origin + SequencePlan.chunk, chunks.upperBound)
            let table = try keyTable(chunk)
            maskTensors.withPointers { masks in
                PartRun(
                    attention: self, schedule: schedule, memory: buffer.address, queries: first, keys: keys,
                    values: values, storage: Input.storage, part: range, chunk: chunk, table: table, masks: masks,
                    totals: running.states.baseAddress!
                ).run(meanwhile)
            }
            running.keys = max(chunk.upperBound, running.keys)
        }
        running.keys = max(range.upperBound, running.keys)
    }

    /// Joins what rows know of one chunk alone to what they know of all before it: where chunks are taken in at the same time.
    ///
    /// - Parameters:
    ///   - chunk: began at `range.lowerBound` by ``RunningAttention/resume(at:)``, and took in `range` and nothing else.
    ///   - range: keys of a single chunk.
    ///   - running: what the rows know of the keys before.
    /// - Throws: ``AttentionError`` of kind `keyRange` or `partialShape`.
    public func join(
        _ chunk: RunningAttention, of range: Range<Int>, to running: RunningAttention
    ) throws(AttentionError) {
        try check(part: range)
        guard range.count <= SequencePlan.chunk, chunk.keys == range.upperBound else {
            throw AttentionError(
                .keyRange, "range", expected: "a single chunk, that `chunk` took in last", found: "\(range)")
        }
        try check(chunk)
        try check(running)
        try checkNothingIsLeftOut(from: running.keys, to: range.lowerBound)
        running.keys = range.upperBound
        var arguments = qattn_forward_args()
        arguments.blocks.value_dim = shape.valueDimension
        arguments.row_end = shape.rowCount
        arguments.chunk_end = 1
        arguments.states = chunk.states.baseAddress
        kernels.functions.pointee.merge(&arguments, running.states.baseAddress)
    }

    /// Writes the results of all rows, sink included, and if asked keeps what backward needs.
    ///
    /// - Parameters:
    ///   - running: what the rows know after the last key that one of them sees. It stays as it is.
    ///   - output: `[H, L, E]`, of any storage type.
    ///   - logSumExp: `[H, L]`; nil: not wanted.
    ///   - sinkShare: `[H, L]`; nil: not wanted.
    /// - Throws: ``AttentionError`` of kind `keyRange` (keys are missing), `elementCount`, `partialShape` or `memory`; nothing is
    ///   written then.
    public func finish<Output: AttentionScalar>(
        _ running: RunningAttention, into output: UnsafeMutableBufferPointer<Output>,
        logSumExp: UnsafeMutableBufferPointer<Float>? = nil, sinkShare: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        try finish(running, output, logSumExp, sinkShare, nil, nil)
    }

    /// Writes the results of all rows, and keeps what backward needs.
    ///
    /// - Parameters:
    ///   - running: what the rows know after the last key that one of them sees. It stays as it is.
    ///   - output: `[H, L, E]`, of any storage type.
    ///   - logSumExp: `[H, L]`; nil: not wanted.
    ///   - record: filled, rows in the order of the log-sum-exp.
    /// - Throws: ``AttentionError`` as without a record.
    public func finish<Output: AttentionScalar>(
        _ running: RunningAttention, into output: UnsafeMutableBufferPointer<Output>,
        logSumExp: UnsafeMutableBufferPointer<Float>? = nil, recording record: inout ForwardRecord
    ) throws(AttentionError) {
        try record.resize(rows: shape.rowCount, hasSink: true)
        try record.references.withUnsafeMutableBufferPointer { references throws(AttentionError) in
            try record.factors.withUnsafeMutableBufferPointer { factors throws(AttentionError) in
                try record.sinkShares.withUnsafeMutableBufferPointer { shares throws(AttentionError) in
                    try finish(running, output, logSumExp, shares, references.baseAddress, factors.baseAddress)
                }
            }
        }
    }

    private func finish<Output: AttentionScalar>(
        _ running: RunningAttention, _ output: UnsafeMutableBufferPointer<Output>,
        _ logSumExp: UnsafeMutableBufferPointer<Float>?, _ sinkShare: UnsafeMutableBufferPointer<Float>?,
        _ references: UnsafeMutablePointer<Float>?, _ factors: UnsafeMutablePointer<Float>?
    ) throws(AttentionError) {
        try checkCount("output", output.count, shape.outputCount)
        if let logSumExp { try checkCount("logSumExp", logSumExp.count, shape.rowCount) }
        if let sinkShare { try checkCount("sinkShare", sinkShare.count, shape.rowCount) }
        try check(running)
        try checkNothingIsLeftOut(from: running.keys, to: shape.keys)
        guard let output = output.baseAddress, shape.rowCount > 0 else { return }
        let schedule = inFloatMode { PartSchedule(self) }
        let buffer = try workspace.take(byteCount: schedule.byteCount)
        defer { workspace.give(back: buffer) }
        maskTensors.withPointers { masks in
            PartResults(
                attention: self, schedule: schedule, memory: buffer.address, states: running.states.baseAddress!,
                output: output, storage: Output.storage, logSumExp: logSumExp?.baseAddress,
                sinkShare: sinkShare?.baseAddress, references: references, factors: factors, masks: masks
            ).run()
        }
    }

    // MARK: - Checks

    private func check(_ running: RunningAttention) throws(AttentionError) {
        let expected = shape.rowCount * RunningAttention.stateFloats(valueDimension: shape.valueDimension)
        guard running.states.count == expected else {
            throw AttentionError(
                .partialShape, "running", expected: "states of \(expected) floats", found: "\(running.states.count)")
        }
    }

    private func checkNothingIsLeftOut(from end: Int, to begin: Int) throws(AttentionError) {
        guard begin >= end, !sees(end..<begin) else {
            throw AttentionError(
                .keyRange, "range", expected: "keys from \(max(end, visibleKeys.lowerBound)) on",
                found: "from \(begin) on")
        }
    }

    /// Whether some row may see one of these keys, by its place alone: between what rows far apart see may be keys that none does.
    private func sees(_ range: Range<Int>) -> Bool {
        guard visibleKeys.overlaps(range) else { return false }
        guard let places = plan.places else { return true }
        return (0..<plan.queries).contains { row in
            let place = places[row] + plan.keyOrigin
            let seen = max(place + plan.firstKeyOffset, range.lowerBound)
            return seen < min(place + plan.lastKeyOffset, plan.keyEnd, range.upperBound)
        }
    }
}
