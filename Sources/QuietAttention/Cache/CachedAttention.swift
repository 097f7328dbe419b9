// SPDX-License-Identifier: Apache-2.0
// CachedAttention.swift - attention of new queries over key/value caches: decoding, verifying drafts, prefill in parts.

/// Attention of the last tokens of a sequence over the keys and values of a ``KeyValueCache``: the formula of
/// ``Attention``, where the keys are already packed.
///
///     let attention = try CachedAttention(queryHeads: 32, sink: .softmax1)
///     try cache.append(keys: k, values: v)
///     try attention.attend(queries: q, cache: cache, into: &output)
///
/// Any number of queries: one to decode, a few to verify a draft, many for a part of a prefill. Any number of sequences
/// per call, each with a cache of its own length and storage. Query i of n stands at position `count - n + i` of its cache:
/// append first, then attend. ``QueryPlaces`` says it of queries that stand elsewhere.
///
/// | tensor | shape | with `queryOffsets` |
/// |---|---|---|
/// | queries | `[B, H, L, D]` | `[total, H, D]` |
/// | output | `[B, H, L, E]` | `[total, H, E]` |
/// | logSumExp, sinkShare | `[B, H, L]` | `[H, total]` |
///
/// B caches, H query heads, L queries of each; D and E of the caches. Query head h reads key/value head h / (H / G).
///
/// Unless told otherwise a query sees the keys up to its own; whatever the mask, none beyond the cache's window.
///
/// Keys and values are read once for all query heads that share them, in work items of whole chunks of 1024 keys, so that
/// one sequence uses all threads. The bits of a row depend on neither threads nor items, nor on other rows and sequences:
/// step by step, in parts and all at once give the same. Edge cases are those of ``Attention``. More queries than the cache
/// has tokens are refused, and so is any over an empty cache: it was not appended to before.
///
/// Safe to use from several tasks at once.
public final class CachedAttention: Sendable {
    /// Heads of the queries and of the output.
    public let queryHeads: Int
    /// How scores become weights; a scale of nil is 1 / sqrt(headDimension) of the caches.
    public let rules: ScoreRules
    /// What scores are multiplied by; nil: 1 / sqrt(headDimension) of the caches.
    public var scale: Double? { rules.scale }
    /// What the scale is multiplied by, row by row.
    public var scaling: ScoreScaling { rules.scaling }
    /// The bound of scores; nil: none.
    public var softcap: Double? { rules.softcap }
    /// The slopes by which scores fall with distance; nil: none.
    public var alibi: ALiBi? { rules.alibi }
    /// How scores become weights.
    public var normaliser: AttentionNormaliser { rules.normaliser }
    /// Which numbers are multiplied: as of all caches.
    public let products: AttentionProducts
    /// The order of dimensions of queries and output; nil: that of the caches, or `[total, heads, dimension]` where a call
    /// has `queryOffsets`.
    public let layout: AttentionLayout?
    /// Most threads that a call uses.
    public let threads: Int
    /// The kernels that calls use.
    public let kernels: KernelSet
    /// The memory that calls reuse.
    public let workspace: AttentionWorkspace

    /// One logit per query head.
    let sinks: [Float]
    /// Work that makes a further thread worth waking.
    let nanosecondsPerWorker: Double

    /// - Parameters:
    ///   - queryHeads: H, 0...2^20, a multiple of the caches' key/value heads.
    ///   - rules: how scores become weights. Clipped softmax needs a row's whole sum before its first weight: the keys of a
    ///     head are then one work item, whatever their number.
    ///   - products: which numbers are multiplied, as of the caches (``KeyValueCache/products``).
    ///   - layout: nil: that of the caches, or `[total, heads, dimension]` with `queryOffsets`.
    ///   - threads: at most so many, 1 and up; nil: the CPUs this process may run on. Short work uses fewer.
    ///   - kernels: nil: the best for this CPU, or what the environment variable `QUIET_ATTENTION_KERNELS` names.
    ///   - workspace: memory to share with others; nil: its own.
    /// - Throws: ``AttentionError`` of kind `dimension`, `scale`, `softcap`, `alibi`, `normaliser`, `composition`, `sink`,
    ///   `sinkCount`, `threads` or `kernelSet`.
    public convenience init(
        queryHeads: Int, rules: ScoreRules, products: AttentionProducts = .float32, layout: AttentionLayout? = nil,
        threads: Int? = nil, kernels: KernelSet? = nil, workspace: AttentionWorkspace? = nil
    ) throws(AttentionError) {
        try self.init(
            queryHeads: queryHeads, rules: rules, products: products, layout: layout, threads: threads,
            kernels: kernels, workspace: workspace, nanosecondsPerWorker: WorkerCount.nanosecondsPerWorker)
    }

    /// The same, with the members of ``ScoreRules`` one by one.
    public convenience init(
        queryHeads: Int, sink: AttentionSink, scale: Double? = nil, scaling: ScoreScaling = .constant,
        softcap: Double? = nil, alibi: ALiBi? = nil, normaliser: AttentionNormaliser = .softmax,
        products: AttentionProducts = .float32, layout: AttentionLayout? = nil, threads: Int? = nil,
        kernels: KernelSet? = nil, workspace: AttentionWorkspace? = nil
    ) throws(AttentionError) {
        try self.init(
            queryHeads: queryHeads,
            rules: ScoreRules(
                sink: sink, scale: scale, scaling: scaling, softcap: softcap, alibi: alibi, normaliser: normaliser),
            products: products, layout: layout, threads: threads, kernels: kernels, workspace: workspace)
    }

    /// With a threshold for threads, which tests lower so that small work is spread as well.
    init(
        queryHeads: Int, rules: ScoreRules, products: AttentionProducts = .float32, layout: AttentionLayout? = nil,
        threads: Int?, kernels: KernelSet? = nil, workspace: AttentionWorkspace? = nil, nanosecondsPerWorker: Double
    ) throws(AttentionError) {
        let mode = FloatMode.enter()
        defer { mode.leave() }
        try AttentionShape.check(queryHeads: queryHeads)
        self.queryHeads = queryHeads
        // The caches' head dimension is not known yet: what does not depend on it is checked now.
        _ = try CheckedScores(rules, headDimension: 1)
        self.rules = rules
        sinks = try rules.sink.logits(queryHeads: queryHeads)
        _ = try rules.alibi?.checkedSlopes(queryHeads: queryHeads)
        self.products = products
        self.layout = layout
        self.threads = try Attention.checked(threads: threads)
        self.kernels = if let kernels { kernels } else { try KernelSet.preferred() }
        self.workspace = workspace ?? AttentionWorkspace()
        self.nanosecondsPerWorker = nanosecondsPerWorker
    }
}

extension AttentionSink {
    /// One logit per query head.
    func logits(queryHeads: Int) throws(AttentionError) -> [Float] {
        guard let uniform = try uniformLogit() else { return try checkedLogits(queryHeads: queryHeads) }
        return [Float](repeating: uniform, count: queryHeads)
    }
}
