// SPDX-License-Identifier: Apache-2.0
// PartialAttention.swift - attention over some of the keys, to be merged with that over the others.

import CKernels

/// What queries know after a range of keys: of each row and each chunk of 1024 keys, with scores t in base 2,
///
///     m = max_j t[j],    l = sum_j 2^(t[j] - m),    o = sum_j 2^(t[j] - m) v[j]
///
/// Ranges that follow each other merge into one; the result of all of them has the bits that ``CachedAttention`` gives
/// over all keys at once.
///
///     let left = try attention.partial(queries: q, cache: cache, keys: 0..<4096)
///     let right = try attention.partial(queries: q, cache: cache, keys: 4096..<cache.count)
///     let result = try left.merged(with: right).finish(sink: .softmax1)
///
/// Merging keeps the states of chunks side by side, and ``finish(sink:keyCounts:)`` adds them from left to right: so merging
/// is associative, to the bit, and the sink, which is in no part, counts once. Parts merge only if they were computed by
/// the same rules, and, where something depends on it, for queries at the same positions with the same n of log n.
///
/// *Sharing a prefix*. Requests that begin with the same tokens can have their queries read those keys together, once:
/// `partial` of the queries of all requests over the shared cache, then for each request ``subscript(_:)``, merged with its
/// own partial over what follows in its branch of the cache. In the shared cache the queries are not the last tokens, so
/// ``QueryPlaces`` says where they stand and, if something counts keys, how many they see in all. A prefix that is shared
/// ends at a multiple of ``chunkTokens``: what is behind that is read with the branches.
///
///     // Request r has queries[r] at the end of branches[r], which begins as `prefix`: `all` are those of all requests.
///     let end = prefix.count / PartialAttention.chunkTokens * PartialAttention.chunkTokens
///     let positions = branches.indices.flatMap { branches[$0].count - lengths[$0]..<branches[$0].count }
///     let places = QueryPlaces(positions: positions, keyCounts: positions.map { $0 + 1 })
///     let shared = try attention.partial(queries: all, cache: prefix, keys: 0..<end, places: places)
///     for r in branches.indices {
///         let own = try attention.partial(queries: queries[r], cache: branches[r], keys: end..<branches[r].count)
///         results.append(try shared[rows[r]].merged(with: own).finish(sink: .softmax1))
///     }
///
/// *Source*: the merge is that of Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
public struct PartialAttention: Sendable {
    /// Heads of the queries.
    public let queryHeads: Int
    /// Queries per head.
    public let queries: Int
    /// Length of a value.
    public let valueDimension: Int
    /// The keys taken in.
    public let keys: Range<Int>
    let kernels: KernelSet
    let workspace: AttentionWorkspace
    /// `[queryHeads][queries][chunks of keys]`, each `qattn_state_floats` long.
    let states: [Float]
    let terms: PartialTerms

    /// Keys of a chunk. Ranges begin and end at its multiples, or end with the cache.
    public static let chunkTokens = QATTN_KEY_CHUNK

    static func chunks(of keys: Range<Int>) -> Range<Int> {
        keys.lowerBound / chunkTokens..<(keys.upperBound + chunkTokens - 1) / chunkTokens
    }

    private var rowFloats: Int { Self.chunks(of: keys).count * qattn_state_floats(valueDimension) }

    /// The part over these keys and those of `next`, which begin where these end.
    ///
    /// - Throws: ``AttentionError`` of kind `keyRange` when they do not, `partialShape` when heads, queries or
    ///   dimensions differ, or `partialTerms` when the rules for scores differ, or the factors or positions of queries, or
    ///   `memory`.
    public func merged(with next: PartialAttention) throws(AttentionError) -> PartialAttention {
        guard (queryHeads, queries, valueDimension) == (next.queryHeads, next.queries, next.valueDimension) else {
            throw AttentionError(.partialShape, "next", expected: shapeDescription, found: next.shapeDescription)
        }
        guard keys.upperBound == next.keys.lowerBound else {
            throw AttentionError(
                .keyRange, "next", expected: "keys from \(keys.upperBound) on", found: "keys \(next.keys)")
        }
        let terms = try terms.merged(with: next.terms)
        try CheckedMemory.check("states", count: self.states.count + next.states.count, of: Float.self)
        var states: [Float] = []
        states.reserveCapacity(self.states.count + next.states.count)
        for row in 0..<queryHeads * queries {
            states += self.states[row * rowFloats..<(row + 1) * rowFloats]
            states += next.states[row * next.rowFloats..<(row + 1) * next.rowFloats]
        }
        return PartialAttention(
            queryHeads: queryHeads, queries: queries, valueDimension: valueDimension,
            keys: keys.lowerBound..<next.keys.upperBound, kernels: kernels, workspace: workspace,
            states: states, terms: terms)
    }

    /// The part of some of the queries.
    ///
    /// - Precondition: `0 <= range.lowerBound`, `range.upperBound <= queries`.
    /// - Throws: ``AttentionError`` of kind `memory`.
    public subscript(range: Range<Int>) -> PartialAttention {
        get throws(AttentionError) {
            precondition(range.lowerBound >= 0 && range.upperBound <= queries, "\(range) is not within 0..<\(queries)")
            let count = queryHeads * range.count * rowFloats
            try CheckedMemory.check("states", count: count, of: Float.self)
            var states: [Float] = []
            states.reserveCapacity(count)
            for head in 0..<queryHeads {
                let start = head * queries
                states += self.states[(start + range.lowerBound) * rowFloats..<(start + range.upperBound) * rowFloats]
            }
            return PartialAttention(
                queryHeads: queryHeads, queries: range.count, valueDimension: valueDimension, keys: keys,
                kernels: kernels, workspace: workspace, states: states, terms: terms[range])
        }
    }

    /// The results over these keys, and the sink.
    ///
    /// - Parameters:
    ///   - sink: one logit per query head.
    ///   - keyCounts: for a sink of log n, the keys n that each query sees in all parts, the same for all heads: parts do not
    ///     count them. nil: what parts were told of by their ``QueryPlaces``.
    /// - Returns: output `[queryHeads, queries, valueDimension]`, logSumExp and sinkShare `[queryHeads, queries]`.
    /// - Throws: ``AttentionError`` of kind `sink`, `sinkCount`, `composition` (a sink of log n without key counts),
    ///   `positionCount` or `position` (a key count below 0, or not the one that parts were told of), or `memory`.
    public func finish(sink: AttentionSink, keyCounts: [Int]? = nil) throws(AttentionError) -> AttentionResult {
        try inFloatMode { () throws(AttentionError) in try finished(sink: sink, keyCounts: keyCounts) }
    }

    private func finished(sink: AttentionSink, keyCounts: [Int]?) throws(AttentionError) -> AttentionResult {
        let sinks = try sink.logits(queryHeads: queryHeads)
        let logKeys = sink.countsKeys ? try terms.logKeys(keyCounts) : nil
        let buffer = try workspace.take(byteCount: qattn_forward_workspace(1, valueDimension))
        defer { workspace.give(back: buffer) }
        let rows = queryHeads * queries
        var result = AttentionResult(
            output: try [Float](for: "output", repeating: 0, count: rows * valueDimension),
            logSumExp: try [Float](for: "logSumExp", repeating: 0, count: rows),
            sinkShare: try [Float](for: "sinkShare", repeating: 0, count: rows))
        result.output.withUnsafeMutableBufferPointer { output in
            result.logSumExp.withUnsafeMutableBufferPointer { logSumExp in
                result.sinkShare.withUnsafeMutableBufferPointer { sinkShare in
                    var arguments = qattn_forward_args()
                    arguments.workspace = buffer.address.assumingMemoryBound(to: Float.self)
                    for row in 0..<rows {
                        arguments.out = UnsafeMutableRawPointer(output.baseAddress! + row * valueDimension)
                        arguments.lse = logSumExp.baseAddress! + row
                        arguments.sink_share = sinkShare.baseAddress! + row
                        finish(
                            row: row, sink: sinks[row / queries], logKeys: logKeys?[row % queries], &arguments)
                    }
                }
            }
        }
        return result
    }

    /// Finishes one row, as a call of its own: its chunks lie side by side.
    private func finish(row: Int, sink: Float, logKeys: Float?, _ arguments: inout qattn_forward_args) {
        arguments.problem.heads = 1
        arguments.problem.queries = 1
        arguments.row_end = 1
        arguments.blocks.head_dim = 1
        arguments.blocks.value_dim = valueDimension
        arguments.out_storage = QATTN_FLOAT32
        arguments.chunk_end = Self.chunks(of: keys).count
        withUnsafePointer(to: (sink: sink, constant: logKeys ?? 0)) { numbers in
            states.withUnsafeBufferPointer { states in
                arguments.problem.sinks = numbers.pointer(to: \.sink)
                // Whether there is one is all that is asked.
                arguments.problem.bias = terms.isBiased ? numbers.pointer(to: \.constant) : nil
                arguments.problem.row_constants = logKeys == nil ? nil : numbers.pointer(to: \.constant)
                // Only read.
                arguments.states = UnsafeMutablePointer(mutating: states.baseAddress.map { $0 + row * rowFloats })
                kernels.functions.pointee.finish(&arguments)
            }
        }
    }

    private var shapeDescription: String {
        "\(queryHeads) heads of \(queries) queries and values of \(valueDimension)"
    }
}

extension CachedAttention {
    /// Computes what queries know after a range of the cache's keys.
    ///
    /// - Parameters:
    ///   - queries: `[H, L, D]`, or `[L, H, D]` in the layout `batchSequenceHeads`.
    ///   - cache: all tokens, those of the queries included unless the mask says otherwise.
    ///   - keys: begins at a multiple of ``PartialAttention/chunkTokens``, ends at one or at the end of the cache; nil: all.
    ///   - places: where the queries stand, and the keys that they see in all; nil: they are the last tokens of the cache,
    ///     and n is counted over the whole cache.
    ///   - mask: which keys a row sees, counted over the whole cache and within its window.
    ///   - bias: `[1, heads or 1, queries or 1, keys of the cache]`, added to the scaled scores.
    /// - Throws: ``AttentionError`` of kind `keyRange`, `composition` (a normaliser other than softmax), or as for `attend`.
    public func partial(
        queries: [Float], cache: KeyValueCache, keys: Range<Int>? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil
    ) throws(AttentionError) -> PartialAttention {
        try partial(queries: queries.span, cache: cache, keys: keys, places: places, mask: mask, bias: bias)
    }

    /// Computes what queries of any storage type know after a range of the cache's keys.
    ///
    /// - Throws: ``AttentionError`` of kind `keyRange`, or as for `attend`.
    public func partial<Input: AttentionScalar>(
        queries: Span<Input>, cache: KeyValueCache, keys: Range<Int>? = nil, places: QueryPlaces? = nil,
        mask: AttentionMask = .causal, bias: BroadcastTensor<Float>? = nil
    ) throws(AttentionError) -> PartialAttention {
        try queries.withUnsafeBufferPointer { queries throws(AttentionError) in
            try inFloatMode { () throws(AttentionError) in
                try partial(queries: queries, cache: cache, keys: keys, places: places, mask: mask, bias: bias)
            }
        }
    }

    private func partial<Input: AttentionScalar>(
        queries: UnsafeBufferPointer<Input>, cache: KeyValueCache, keys: Range<Int>?, places: QueryPlaces?,
        mask: AttentionMask, bias: BroadcastTensor<Float>?
    ) throws(AttentionError) -> PartialAttention {
        let keys = try Self.checked(keys ?? 0..<cache.count, cache)
        guard normaliser == .softmax else {
            throw AttentionError(
                .composition, "normaliser", expected: "softmax: only its parts merge under a sink that comes last",
                found: normaliser.name)
        }
        let problem = try CachedProblem(
            self, queryCount: queries.count, caches: [cache], queryOffsets: nil, places: places, mask: mask,
            bias: bias)
        let floats = try CheckedMemory.product(
            "states", problem.shape.rowCount, PartialAttention.chunks(of: keys).count,
            qattn_state_floats(problem.shape.valueDimension))
        var states = try [Float](for: "states", repeating: 0, count: floats)
        if let queries = queries.baseAddress, floats > 0 {
            let schedule = try CachedSchedule(problem, self, chunks: PartialAttention.chunks(of: keys))
            let tensors = CachedTensors(queries: queries, inputStorage: Input.storage)
            try run(problem, schedule, tensors) { run in run.copyStates(into: &states) }
        }
        return PartialAttention(
            queryHeads: queryHeads, queries: problem.shape.queries, valueDimension: problem.shape.valueDimension,
            keys: keys, kernels: kernels, workspace: workspace, states: states,
            terms: PartialTerms(
                try CheckedScores(rules, headDimension: problem.shape.headDimension), problem, cache, mask: mask))
    }

    private static func checked(_ keys: Range<Int>, _ cache: KeyValueCache) throws(AttentionError) -> Range<Int> {
        let chunk = PartialAttention.chunkTokens
        guard keys.lowerBound % chunk == 0, keys.upperBound % chunk == 0 || keys.upperBound == cache.count else {
            throw AttentionError(
                .keyRange, "keys", expected: "a range between multiples of \(chunk), or up to \(cache.count)",
                found: "\(keys)")
        }
        guard keys.lowerBound >= 0, keys.upperBound <= cache.count else {
            throw AttentionError(.keyRange, "keys", expected: "a range within 0..<\(cache.count)", found: "\(keys)")
        }
        return keys
    }
}

extension CachedRun {
    /// The states of a run over one sequence, from the order of the work to `[head][query][chunk]`.
    fileprivate func copyStates(into result: inout [Float]) {
        let sequence = schedule.sequences[0]
        let (chunks, floats) = (sequence.chunks.count, stateFloats)
        for number in stride(from: 0, to: schedule.items, by: sequence.items) {
            let item = schedule.item(number)
            let states = states(item)
            for chunk in 0..<chunks {
                for row in item.rows {
                    // Row r of a group is query r % queries of its head r / queries: the order of the result.
                    let groupRow = item.keyValueHead * schedule.groupHeads * sequence.plan.queries + row
                    let source = states + (chunk * item.rows.count + row - item.rows.lowerBound) * floats
                    let place = (groupRow * chunks + chunk) * floats
                    for index in 0..<floats { result[place + index] = source[index] }
                }
            }
        }
    }
}
