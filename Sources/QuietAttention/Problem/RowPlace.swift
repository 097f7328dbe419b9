// SPDX-License-Identifier: Apache-2.0
// RowPlace.swift - rows inside a buffer that holds more than them, as a fused projection of queries, keys and values does.

/// Where the rows of queries, of keys or of values lie in a buffer: the elements of head h of token i are those from
///
///     offset + i * row + h * head
///
/// on. The tokens of a batch item follow those of the item before it.
///
///     // One row per token: 32 heads of queries, then 8 of keys, then 8 of values.
///     let places = RowPlace.fused(queryHeads: 32, keyValueHeads: 8, headDimension: 128)
///     try cache.append(tokens: 1, in: projection.span, keys: places.keys, values: places.values)
///     var span = output.mutableSpan
///     try attention.attend(in: projection.span, queries: places.queries, count: 1, cache: cache, into: &span)
public struct RowPlace: Sendable, Hashable {
    /// The first element of head 0 of token 0.
    public var offset: Int
    /// Elements from one token to the next.
    public var row: Int
    /// Elements from one head to the next.
    public var head: Int

    /// - Parameters: all in elements, 0 and up; calls check that they stay within the buffer.
    public init(offset: Int, row: Int, head: Int) {
        (self.offset, self.row, self.head) = (offset, row, head)
    }

    /// The places in rows of all heads of queries, then those of keys, then those of values.
    ///
    /// - Parameters:
    ///   - queryHeads: 0 and up.
    ///   - keyValueHeads: likewise.
    ///   - headDimension: length of a query and of a key.
    ///   - valueDimension: length of a value; nil: as a key.
    /// - Precondition: the product of heads and dimensions fits into `Int`.
    public static func fused(
        queryHeads: Int, keyValueHeads: Int, headDimension: Int, valueDimension: Int? = nil
    ) -> (queries: RowPlace, keys: RowPlace, values: RowPlace) {
        let valueDimension = valueDimension ?? headDimension
        let keys = queryHeads * headDimension
        let values = keys + keyValueHeads * headDimension
        let row = values + keyValueHeads * valueDimension
        return (
            RowPlace(offset: 0, row: row, head: headDimension), RowPlace(offset: keys, row: row, head: headDimension),
            RowPlace(offset: values, row: row, head: valueDimension)
        )
    }

    /// Checks that so many rows are within a buffer.
    func check(
        _ argument: String, tokens: Int, heads: Int, dimension: Int, within count: Int
    ) throws(AttentionError) {
        guard tokens >= 0 else {
            throw AttentionError(.dimension, argument, expected: "0 rows or more", found: "\(tokens)")
        }
        guard tokens > 0, heads > 0 else { return }
        func refusal(_ found: String) -> AttentionError {
            AttentionError(
                .rowPlace, argument, expected: "\(tokens) rows of \(heads) heads within \(count) elements", found: found
            )
        }
        guard offset >= 0, row >= 0, head >= 0 else {
            throw refusal("offset \(offset), strides \(row) and \(head)")
        }
        let (rows, over) = row.multipliedReportingOverflow(by: tokens - 1)
        let (columns, overHeads) = head.multipliedReportingOverflow(by: heads - 1)
        var (end, overflow) = (offset, over || overHeads)
        for part in [rows, columns, dimension] {
            let (sum, over) = end.addingReportingOverflow(part)
            (end, overflow) = (sum, overflow || over)
        }
        guard !overflow else { throw refusal("an end beyond \(Int.max)") }
        guard end <= count else { throw refusal("the end at \(end)") }
    }
}

extension RowStrides {
    /// The strides of a place; its offset comes on top of them. What one token or one head never crosses may be any
    /// number, and counts as 0: products with it might overflow.
    init(_ place: RowPlace, tokens: Int, heads: Int) {
        row = tokens > 1 ? place.row : 0
        start = row
        head = heads > 1 ? place.head : 0
    }
}

// MARK: - Forward

extension Attention {
    /// Computes the output from queries, keys and values that are rows inside one buffer.
    ///
    /// - Parameters:
    ///   - buffer: of any storage type.
    ///   - queries: where their rows lie in it; the ``layout`` is that of the output alone.
    ///   - keys: likewise.
    ///   - values: likewise.
    ///   - output: as of the other forms, apart from the buffer.
    /// - Throws: ``AttentionError`` of kind `rowPlace`, `elementCount` or `memory`; the output is untouched then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        in buffer: Span<Input>, queries: RowPlace, keys: RowPlace, values: RowPlace,
        into output: inout MutableSpan<Output>
    ) throws(AttentionError) {
        try buffer.withUnsafeBufferPointer { buffer throws(AttentionError) in
            try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                try forward(in: buffer, queries: queries, keys: keys, values: values, into: output)
            }
        }
    }

    /// Computes the output and, if asked, the log-sum-exp and the sink share, from queries, keys and values that are rows
    /// inside one buffer.
    ///
    /// - Throws: ``AttentionError`` of kind `rowPlace`, `elementCount`, `composition` or `memory`; the outputs are untouched
    ///   then.
    public func forward<Input: AttentionScalar, Output: AttentionScalar>(
        in buffer: UnsafeBufferPointer<Input>, queries: RowPlace, keys: RowPlace, values: RowPlace,
        into output: UnsafeMutableBufferPointer<Output>, logSumExp: UnsafeMutableBufferPointer<Float>? = nil,
        sinkShare: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        try queries.check(
            "queries", tokens: shape.totalQueries, heads: shape.queryHeads, dimension: shape.headDimension,
            within: buffer.count)
        try keys.check(
            "keys", tokens: shape.totalKeys, heads: shape.keyValueHeads, dimension: shape.headDimension,
            within: buffer.count)
        try values.check(
            "values", tokens: shape.totalKeys, heads: shape.keyValueHeads, dimension: shape.valueDimension,
            within: buffer.count)
        try checkOutputs(output.count, logSumExp?.count, sinkShare?.count)
        guard let base = buffer.baseAddress, let output = output.baseAddress, shape.rowCount > 0 else { return }
        var rows = rows
        rows.queries = RowStrides(queries, tokens: shape.totalQueries, heads: shape.queryHeads)
        // Without keys their place is nowhere.
        let hasKeys = shape.totalKeys > 0
        if hasKeys {
            rows.keys = RowStrides(keys, tokens: shape.totalKeys, heads: shape.keyValueHeads)
            rows.values = RowStrides(values, tokens: shape.totalKeys, heads: shape.keyValueHeads)
        }
        var tensors = ForwardTensors(
            queries: base + queries.offset, keys: base + (hasKeys ? keys.offset : 0),
            values: base + (hasKeys ? values.offset : 0), inputStorage: Input.storage, output: output,
            outputStorage: Output.storage, logSumExp: logSumExp?.baseAddress, sinkShare: sinkShare?.baseAddress)
        tensors.rows = rows
        try run(tensors)
    }
}

// MARK: - Caches

extension KeyValueCache {
    /// Appends tokens whose keys and values are rows inside one buffer.
    ///
    /// - Parameters:
    ///   - tokens: 0 and up.
    ///   - buffer: of any storage type.
    ///   - keys: where their rows lie in it, whatever the cache's ``layout``.
    ///   - values: likewise.
    /// - Throws: ``AttentionError`` of kind `rowPlace`, `dimension`, `cacheLimit`, `position` or `memory`; the cache is
    ///   unchanged then.
    public mutating func append<Input: AttentionScalar>(
        tokens: Int, in buffer: Span<Input>, keys: RowPlace, values: RowPlace
    ) throws(AttentionError) {
        try buffer.withUnsafeBufferPointer { buffer throws(AttentionError) in
            try append(tokens: tokens, in: buffer, keys: keys, values: values)
        }
    }

    /// Appends tokens whose keys and values are rows inside one buffer.
    ///
    /// - Throws: ``AttentionError`` of the kinds that the method for spans names; the cache is unchanged then.
    public mutating func append<Input: AttentionScalar>(
        tokens: Int, in buffer: UnsafeBufferPointer<Input>, keys: RowPlace, values: RowPlace
    ) throws(AttentionError) {
        try keys.check(
            "keys", tokens: tokens, heads: keyValueHeads, dimension: headDimension, within: buffer.count)
        try values.check(
            "values", tokens: tokens, heads: keyValueHeads, dimension: valueDimension, within: buffer.count)
        guard tokens > 0, let base = buffer.baseAddress else { return }
        try append(
            tokens, keys: base + keys.offset, values: base + values.offset, storage: Input.storage,
            keyRows: RowStrides(keys, tokens: tokens, heads: keyValueHeads),
            valueRows: RowStrides(values, tokens: tokens, heads: keyValueHeads))
    }
}

extension CachedAttention {
    /// Computes the output of the last tokens of one cache, from queries that are rows inside a buffer.
    ///
    /// - Parameters:
    ///   - buffer: of any storage type.
    ///   - queries: where their rows lie in it; the ``layout`` is that of the output alone.
    ///   - count: L, queries of each head.
    ///   - cache: as of the other forms of `attend`.
    ///   - places: likewise.
    ///   - mask: likewise.
    ///   - bias: likewise.
    ///   - output: likewise.
    /// - Throws: ``AttentionError`` of kind `rowPlace`, or as the other forms of `attend`; the output is untouched then.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        in buffer: Span<Input>, queries: RowPlace, count: Int, cache: KeyValueCache, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal,
        bias: BroadcastTensor<Float>? = nil, into output: inout MutableSpan<Output>
    ) throws(AttentionError) {
        try buffer.withUnsafeBufferPointer { buffer throws(AttentionError) in
            try output.withUnsafeMutableBufferPointer { output throws(AttentionError) in
                try attend(
                    in: buffer, queries: queries, count: count, caches: [cache], places: places, mask: mask, bias: bias,
                    into: output)
            }
        }
    }

    /// Computes the output of the last tokens of several caches and, if asked, the log-sum-exp and the sink share, from
    /// queries that are rows inside a buffer.
    ///
    /// - Parameters:
    ///   - buffer: of any storage type.
    ///   - queries: where their rows lie in it: those of the first cache, then those of the second.
    ///   - count: L, queries of each head and each cache.
    ///   - caches: as of the other forms of `attend`.
    ///   - places: likewise.
    ///   - mask: likewise.
    ///   - bias: likewise.
    ///   - output: likewise.
    ///   - logSumExp: likewise.
    ///   - sinkShare: likewise.
    /// - Throws: ``AttentionError`` of kind `rowPlace`, or as the other forms of `attend`; the outputs are untouched then.
    public func attend<Input: AttentionScalar, Output: AttentionScalar>(
        in buffer: UnsafeBufferPointer<Input>, queries: RowPlace, count: Int, caches: [KeyValueCache],
        places: QueryPlaces? = nil, mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil,
        into output: UnsafeMutableBufferPointer<Output>, logSumExp: UnsafeMutableBufferPointer<Float>? = nil,
        sinkShare: UnsafeMutableBufferPointer<Float>? = nil
    ) throws(AttentionError) {
        let rows = try CheckedMemory.product("count", caches.count, max(count, 0))
        let dimension = caches.first?.headDimension ?? 1
        guard count >= 0 else {
            throw AttentionError(.dimension, "count", expected: "0 or more", found: "\(count)")
        }
        try queries.check("queries", tokens: rows, heads: queryHeads, dimension: dimension, within: buffer.count)
        let elements = try CheckedMemory.product("count", rows, queryHeads, dimension)
        var problem = try problem(elements, caches, nil, places, mask, bias)
        problem.rows.queries = RowStrides(queries, tokens: rows, heads: queryHeads)
        // Without rows their place is nowhere.
        let start = problem.shape.rowCount > 0 ? queries.offset : 0
        try run(problem, UnsafeBufferPointer(rebasing: buffer[start...]), output, logSumExp, sinkShare)
    }
}
