// SPDX-License-Identifier: Apache-2.0
// CachedAttention+Attend.swift - attention over caches, for arrays, spans and unsafe buffers.

extension CachedAttention {
    // MARK: - Arrays

    /// Computes the output, the log-sum-exp and the sink share of the last tokens of one cache.
    ///
    /// - Parameters:
    ///   - queries: `[H, L, D]`, of the last L tokens of the cache unless `places` says otherwise.
    ///   - cache: all tokens, those of the queries included.
    ///   - places: where the queries stand; nil: they are the last L tokens, or the last before a key length.
    ///   - mask: which keys a row sees, within the cache's window.
    ///   - bias: `[1, heads or 1, queries or 1, keys]`, added to the scaled scores.
    /// - Throws: ``AttentionError``, of the kinds that the method for unsafe buffers names.
    public func attend(
        queries: [Float], cache: KeyValueCache, places: QueryPlaces? = nil, mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil
    ) throws(AttentionError) -> AttentionResult {
        try attend(queries: queries, caches: [cache], places: places, mask: mask, bias: bias)
    }

    /// Computes the output of the last tokens of one cache into an array of its size, `[H, L, E]`.
    public func attend(
        queries: [Float], cache: KeyValueCache, places: QueryPlaces? = nil, mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil, into output: inout [Float]
    ) throws(AttentionError) {
        try attend(queries: queries, caches: [cache], places: places, mask: mask, bias: bias, into: &output)
    }

    /// Computes the output, the log-sum-exp and the sink share of the last tokens of several caches.
    public func attend(
        queries: [Float], caches: [KeyValueCache], queryOffsets: [Int]? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil
    ) throws(AttentionError) -> AttentionResult {
        let problem = try problem(queries.count, caches, queryOffsets, places, mask, bias)
        return try queries.withUnsafeBufferPointer { queries throws(AttentionError) in try results(problem, queries) }
    }

    /// Computes the output of the last tokens of several caches into an array of its size.
    public func attend(
        queries: [Float], caches: [KeyValueCache], queryOffsets: [Int]? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil, into output: inout [Float]
    ) throws(AttentionError) {
        let problem = try problem(queries.count, caches, queryOffsets, places, mask, bias)
        // Before the output's buffer is asked for: that would copy an array which others share.
        try checkCount("output", output.count, problem.shape.outputCount)
        try queries.withUnsafeBufferPointer { queries throws(AttentionError) in
            try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                try run(problem, queries, output, nil, nil)
            }
        }
    }

    // MARK: - Spans

    /// Computes the output of the last tokens of several caches. Queries and output may be of different storage types.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, caches: [KeyValueCache], queryOffsets: [Int]? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil, into output: inout MutableSpan<Output>
    ) throws(AttentionError) {
        try queries.withUnsafeBufferPointer { queries throws(AttentionError) in
            try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                try attend(
                    queries: queries, caches: caches, queryOffsets: queryOffsets, places: places, mask: mask,
                    bias: bias, into: output)
            }
        }
    }

    /// Computes the output, the log-sum-exp and the sink share of the last tokens of several caches. Queries and output
    /// may be of different storage types.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, caches: [KeyValueCache], queryOffsets: [Int]? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil, into output: inout MutableSpan<Output>,
        logSumExp: inout MutableSpan<Float>, sinkShare: inout MutableSpan<Float>
    ) throws(AttentionError) {
        try logSumExp.withUnsafeMutableBufferPointer { logSumExp throws(AttentionError) in
            try sinkShare.withUnsafeMutableBufferPointer { sinkShare throws(AttentionError) in
                try queries.withUnsafeBufferPointer { queries throws(AttentionError) in
                    try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                        try attend(
                            queries: queries, caches: caches, queryOffsets: queryOffsets, places: places, mask: mask,
                            bias: bias,
                            into: output, logSumExp: logSumExp, sinkShare: sinkShare)
                    }
                }
            }
        }
    }

    // MARK: - Unsafe buffers

    /// Computes the output of the last tokens of several caches and, if asked, the log-sum-exp and the sink share.
    ///
    /// - Parameters:
    ///   - queries: `[B, H, L, D]`, of any storage type; L follows from their number.
    ///   - caches: B of them, with the same heads and dimensions, of any lengths and storages.
    ///   - queryOffsets: cumulative, from 0 upwards, one more than there are caches: the sequences have different numbers
    ///     of queries, and tensors are packed, `[total, H, D]`. nil: they all have the same number.
    ///   - places: where the queries stand; nil: they are the last tokens of their caches, or the last before a key length.
    ///   - mask: which keys a row sees, within each cache's window. Rows of a boolean mask count from each
    ///     sequence's first query, keys from its first token; the extents are those of the longest.
    ///   - bias: `[batch or 1, heads or 1, queries or 1, keys]`, added to the scaled scores. -inf hides a key.
    ///   - output: `[B, H, L, E]`, apart from the queries, of any storage type.
    ///   - logSumExp: `[B, H, L]`; nil: not wanted.
    ///   - sinkShare: `[B, H, L]`; nil: not wanted.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `headGroups`, `offsets`, `cacheShape`, `composition`
    ///   (caches made for other products), `cacheRange` (a row sees tokens that the cache's window has left behind), `position`, `positionCount`, `window`, `keyLength`, `keyLengthCount`, `broadcastExtent`
    ///   or `memory`; the outputs are untouched then.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: UnsafeBufferPointer<Input>, caches: [KeyValueCache], queryOffsets: [Int]? = nil,
        places: QueryPlaces? = nil, mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil,
        into output: UnsafeMutableBufferPointer<Output>,
        logSumExp: UnsafeMutableBufferPointer<Float>? = nil, sinkShare: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        let problem = try problem(queries.count, caches, queryOffsets, places, mask, bias)
        try run(problem, queries, output, logSumExp, sinkShare)
    }

    // MARK: - Run

    func problem(
        _ queryCount: Int, _ caches: [KeyValueCache], _ queryOffsets: [Int]?, _ places: QueryPlaces?,
        _ mask: AttentionMask, _ bias: BroadcastTensor<Float>?
    ) throws(AttentionError) -> CachedProblem {
        try inFloatMode { () throws(AttentionError) in
            try CachedProblem(
                self, queryCount: queryCount, caches: caches, queryOffsets: queryOffsets, places: places, mask: mask,
                bias: bias)
        }
    }

    /// Runs a call into new arrays.
    func results<Input: AttentionScalar>(
        _ problem: CachedProblem, _ queries: UnsafeBufferPointer<Input>
    ) throws(AttentionError) -> AttentionResult {
        let hasSink = normaliser.hasSink
        var output = try [Float](for: "output", repeating: 0, count: problem.shape.outputCount)
        var logSumExp = try [Float](for: "logSumExp", repeating: 0, count: hasSink ? problem.shape.rowCount : 0)
        var sinkShare = logSumExp
        try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
            try logSumExp.withUnsafeMutableBufferPointer { logSumExp throws(AttentionError) in
                try sinkShare.withUnsafeMutableBufferPointer { sinkShare throws(AttentionError) in
                    try run(problem, queries, output, hasSink ? logSumExp : nil, hasSink ? sinkShare : nil)
                }
            }
        }
        return AttentionResult(output: output, logSumExp: logSumExp, sinkShare: sinkShare)
    }

    func run<Input: AttentionScalar, Output: AttentionScalar>(
        _ problem: CachedProblem, _ queries: UnsafeBufferPointer<Input>, _ output: UnsafeMutableBufferPointer<Output>,
        _ logSumExp: UnsafeMutableBufferPointer<Float>?, _ sinkShare: UnsafeMutableBufferPointer<Float>?
    ) throws(AttentionError) {
        try checkCount("output", output.count, problem.shape.outputCount)
        if let logSumExp { try normaliser.checkSums("logSumExp", logSumExp.count, problem.shape.rowCount) }
        if let sinkShare { try normaliser.checkSums("sinkShare", sinkShare.count, problem.shape.rowCount) }
        guard let queries = queries.baseAddress, let output = output.baseAddress, problem.shape.rowCount > 0 else {
            return
        }
        let tensors = CachedTensors(
            queries: queries, inputStorage: Input.storage, output: output, outputStorage: Output.storage,
            logSumExp: logSumExp?.baseAddress, sinkShare: sinkShare?.baseAddress)
        try inFloatMode { () throws(AttentionError) in
            try run(problem, CachedSchedule(problem, self, chunks: nil), tensors) { _ in }
        }
    }

    /// Runs a call, then `body` while its memory is there.
    func run(
        _ problem: CachedProblem, _ schedule: CachedSchedule, _ tensors: CachedTensors, then body: (CachedRun) -> Void
    ) throws(AttentionError) {
        let buffer = try workspace.take(byteCount: schedule.memory.byteCount)
        defer { workspace.give(back: buffer) }
        sinks.withUnsafeBufferPointer { sinks in
            MaskTensors(allowed: problem.allowed, bias: problem.bias).withPointers { masks in
                let run = CachedRun(
                    problem: problem, schedule: schedule, kernels: kernels.functions, tensors: tensors,
                    sinks: sinks.baseAddress, masks: masks, memory: buffer.address)
                run.run()
                body(run)
            }
        }
        // The caches own the pages, and the run has only addresses of them.
        withExtendedLifetime(problem) {}
    }
}

extension CachedAttention {
    /// Threads that a call really uses.
    package func threadsInUse(
        queryCount: Int, caches: [KeyValueCache], queryOffsets: [Int]? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal
    ) throws(AttentionError) -> Int {
        let problem = try CachedProblem(
            self, queryCount: queryCount, caches: caches, queryOffsets: queryOffsets, places: places, mask: mask,
            bias: nil)
        return try CachedSchedule(problem, self, chunks: nil).workers
    }
}
