// SPDX-License-Identifier: Apache-2.0
// CachedAttention+Overloads.swift - attention over caches for arrays of any storage type, and for one cache.

extension CachedAttention {
    // MARK: - Arrays

    /// Computes the output, the log-sum-exp and the sink share of the last tokens of one cache, from queries of any storage
    /// type.
    public func attend<Input: AttentionScalar>(
        queries: [Input], cache: KeyValueCache, places: QueryPlaces? = nil, mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil
    ) throws(AttentionError) -> AttentionResult {
        try attend(queries: queries, caches: [cache], places: places, mask: mask, bias: bias)
    }

    /// Computes the output of the last tokens of one cache into an array of its size. Queries and output may be of
    /// different storage types.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: [Input], cache: KeyValueCache, places: QueryPlaces? = nil, mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil,
        into output: inout [Output]
    ) throws(AttentionError) {
        try attend(queries: queries, caches: [cache], places: places, mask: mask, bias: bias, into: &output)
    }

    /// Computes the output, the log-sum-exp and the sink share of the last tokens of several caches, from queries of any
    /// storage type.
    public func attend<Input: AttentionScalar>(
        queries: [Input], caches: [KeyValueCache], queryOffsets: [Int]? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil
    ) throws(AttentionError) -> AttentionResult {
        let problem = try problem(queries.count, caches, queryOffsets, places, mask, bias)
        return try queries.withUnsafeBufferPointer { queries throws(AttentionError) in try results(problem, queries) }
    }

    /// Computes the output of the last tokens of several caches into an array of its size. Queries and output may be of
    /// different storage types.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: [Input], caches: [KeyValueCache], queryOffsets: [Int]? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil, into output: inout [Output]
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

    // MARK: - One cache

    /// Computes the output of the last tokens of one cache. Queries and output may be of different storage types.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, cache: KeyValueCache, places: QueryPlaces? = nil, mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil,
        into output: inout MutableSpan<Output>
    ) throws(AttentionError) {
        try attend(queries: queries, caches: [cache], places: places, mask: mask, bias: bias, into: &output)
    }

    /// Computes the output, the log-sum-exp and the sink share of the last tokens of one cache. Queries and output may be of
    /// different storage types.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: Span<Input>, cache: KeyValueCache, places: QueryPlaces? = nil, mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil,
        into output: inout MutableSpan<Output>, logSumExp: inout MutableSpan<Float>,
        sinkShare: inout MutableSpan<Float>
    ) throws(AttentionError) {
        try attend(
            queries: queries, caches: [cache], places: places, mask: mask, bias: bias, into: &output,
            logSumExp: &logSumExp,
            sinkShare: &sinkShare)
    }

    /// Computes the output of the last tokens of one cache and, if asked, the log-sum-exp and the sink share.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        queries: UnsafeBufferPointer<Input>, cache: KeyValueCache, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil, into output: UnsafeMutableBufferPointer<Output>,
        logSumExp: UnsafeMutableBufferPointer<Float>? = nil, sinkShare: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        try attend(
            queries: queries, caches: [cache], places: places, mask: mask, bias: bias, into: output,
            logSumExp: logSumExp,
            sinkShare: sinkShare)
    }
}
