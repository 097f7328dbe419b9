// SPDX-License-Identifier: Apache-2.0
// Attention.swift - an attention problem, checked once and run many times.

/// Scaled dot-product attention with a sink logit per query head.
///
///     out[i] = sum_j p[i][j] v[j],    p[i][j] = e^x[i][j] / (e^s + sum_k e^x[i][k]),    x[i][j] = scale q[i].k[j] + bias[i][j]
///
/// over the keys j that row i sees, where q and k may be normalised and rotated by their positions before
/// (``QueryKeyNorm``, ``AttentionPositions``). Never holds a matrix of queries by keys: rows pass over blocks of keys with a running
/// maximum and a running sum.
///
///     let shape = try AttentionShape(queryHeads: 12, queries: 1024, keys: 1024, headDimension: 64)
///     let attention = try Attention(shape, sink: .softmax1, mask: .causal)
///     let result = try attention.forward(queries: q, keys: k, values: v)
///
/// Tensors have the shapes below, in the letters of ``AttentionShape``; another ``AttentionLayout`` changes the order of
/// dimensions of the first four.
///
/// | tensor | shape | of a packed batch |
/// |---|---|---|
/// | queries | `[B, H, L, D]` | `[total, H, D]` |
/// | keys | `[B, G, S, D]` | `[total, G, D]` |
/// | values | `[B, G, S, E]` | `[total, G, E]` |
/// | output | `[B, H, L, E]` | `[total, H, E]` |
/// | logSumExp, sinkShare | `[B, H, L]` | `[H, total]` |
///
/// All arithmetic is in Float, of numbers as given or, by ``AttentionProducts``, rounded to bfloat16. The bits of a row do not depend on the kernel set, on threads, on other rows, heads and
/// batch items, on what lies in masked places, or on the caller's floating-point mode, which calls leave as it was.
///
/// *Edge cases*: a row that sees no key puts out 0, with log-sum-exp s and sink share 1 (0 for softmax, s = -inf). NaN or
/// +inf in a visible score, or NaN in a visible value, makes that row NaN and no other. A score of -inf weighs 0.
///
/// Safe to use from several tasks at once, and in a child process after fork(). Threads are lent to calls where the system
/// has some to give; where not, calls go on alone.
///
/// *Sources*: softmax_1: Miller, "Attention Is Off By One", 2023. Learned sinks: OpenAI, gpt-oss, 2025. Running maximum and
/// sum: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018. Tiles: Dao et al., "FlashAttention", 2022.
public final class Attention: Sendable {
    /// The dimensions.
    public let shape: AttentionShape
    /// How scores become weights, as the caller said it.
    public let rules: ScoreRules
    /// Where weight goes that no key deserves.
    public var sink: AttentionSink { rules.sink }
    /// What scores are multiplied by.
    public let scale: Double
    /// What the scale is multiplied by, row by row.
    public var scaling: ScoreScaling { rules.scaling }
    /// The bound of scores; nil: none.
    public var softcap: Double? { rules.softcap }
    /// The slopes by which scores fall with distance; nil: none.
    public var alibi: ALiBi? { rules.alibi }
    /// How scores become weights.
    public var normaliser: AttentionNormaliser { rules.normaliser }
    /// Which keys a row sees.
    public let mask: AttentionMask
    /// What is added to the scores, in natural units.
    public let bias: BroadcastTensor<Float>?
    /// How scores learn of positions.
    public let positions: AttentionPositions
    /// How queries and keys are normalised first; nil: not at all.
    public let queryKeyNorm: QueryKeyNorm?
    /// Which numbers are multiplied.
    public let products: AttentionProducts
    /// The order of dimensions of queries, keys, values and output.
    public let layout: AttentionLayout
    /// Most threads that a call uses.
    public let threads: Int
    /// The kernels that calls use.
    public let kernels: KernelSet
    /// The memory that calls reuse.
    public let workspace: AttentionWorkspace

    /// Work that makes a further thread worth waking.
    let nanosecondsPerWorker: Double
    let scores: KernelScores
    let schedule: ForwardSchedule
    let rows: TensorRows
    /// nil where queries and keys are multiplied as they are.
    let preparation: RowPreparation?
    let positionTables: PositionTables?
    private let uniformSink: Float
    /// Empty if all heads have the uniform sink.
    private let headSinks: [Float]

    /// Checks and prepares a problem.
    ///
    /// - Parameters:
    ///   - shape: the dimensions.
    ///   - rules: how scores become weights.
    ///   - mask: which keys a row sees.
    ///   - bias: `[batch or 1, heads or 1, queries or 1, keys]`, added to the scaled scores. A bias of -inf hides the key
    ///     as a mask does.
    ///   - positions: how queries and keys are rotated by their positions.
    ///   - queryKeyNorm: how queries and keys are normalised before that; nil: not at all.
    ///   - products: which numbers are multiplied.
    ///   - layout: nil: `[batch, heads, sequence, dimension]`, or `[total, heads, dimension]` of a packed batch.
    ///   - threads: at most so many, 1 and up; nil: the CPUs this process may run on. Short work uses fewer.
    ///   - kernels: nil: the best for this CPU, or what the environment variable `QUIET_ATTENTION_KERNELS` names.
    ///   - workspace: memory to share with others; nil: its own.
    /// - Throws: ``AttentionError`` of kind `scale`, `scaling`, `softcap`, `alibi`, `normaliser`, `composition`, `sink`,
    ///   `sinkCount`, `window`, `keyLength`, `keyLengthCount`, `broadcastExtent`, `rotaryEmbedding`, `position`,
    ///   `positionCount`, `queryKeyNorm`, `threads`, `kernelSet`, or `memory`.
    public convenience init(
        _ shape: AttentionShape, rules: ScoreRules, mask: AttentionMask = .none, bias: BroadcastTensor<Float>? = nil,
        positions: AttentionPositions = .none, queryKeyNorm: QueryKeyNorm? = nil,
        products: AttentionProducts = .float32, layout: AttentionLayout? = nil, threads: Int? = nil,
        kernels: KernelSet? = nil, workspace: AttentionWorkspace? = nil
    ) throws(AttentionError) {
        try self.init(
            shape, rules: rules, mask: mask, bias: bias, positions: positions, queryKeyNorm: queryKeyNorm,
            products: products,
            layout: layout,
            threads: threads, kernels: kernels, workspace: workspace,
            nanosecondsPerWorker: WorkerCount.nanosecondsPerWorker)
    }

    /// The same, with the members of ``ScoreRules`` one by one.
    public convenience init(
        _ shape: AttentionShape, sink: AttentionSink, mask: AttentionMask = .none, scale: Double? = nil,
        scaling: ScoreScaling = .constant, softcap: Double? = nil, alibi: ALiBi? = nil,
        normaliser: AttentionNormaliser = .softmax, bias: BroadcastTensor<Float>? = nil,
        positions: AttentionPositions = .none, queryKeyNorm: QueryKeyNorm? = nil,
        products: AttentionProducts = .float32, layout: AttentionLayout? = nil,
        threads: Int? = nil, kernels: KernelSet? = nil, workspace: AttentionWorkspace? = nil
    ) throws(AttentionError) {
        try self.init(
            shape,
            rules: ScoreRules(
                sink: sink, scale: scale, scaling: scaling, softcap: softcap, alibi: alibi, normaliser: normaliser),
            mask: mask, bias: bias, positions: positions, queryKeyNorm: queryKeyNorm, products: products,
            layout: layout,
            threads: threads, kernels: kernels, workspace: workspace)
    }

    /// With thresholds for threads, which tests lower so that small work is spread as well.
    package init(
        _ shape: AttentionShape, rules: ScoreRules, mask: AttentionMask = .none, bias: BroadcastTensor<Float>? = nil,
        positions: AttentionPositions = .none, queryKeyNorm: QueryKeyNorm? = nil,
        products: AttentionProducts = .float32, layout: AttentionLayout? = nil, threads: Int?,
        kernels: KernelSet? = nil, workspace: AttentionWorkspace? = nil, nanosecondsPerWorker: Double,
        nanosecondsPerSharedGroup: Double = ForwardSchedule.nanosecondsPerSharedGroup
    ) throws(AttentionError) {
        let mode = FloatMode.enter()
        defer { mode.leave() }
        let checkedScores = try CheckedScores(rules, headDimension: shape.headDimension)
        self.rules = rules
        scale = checkedScores.scale
        uniformSink = try rules.sink.uniformLogit() ?? 0
        headSinks = try rules.sink.checkedLogits(queryHeads: shape.queryHeads)
        try mask.check(fits: shape)
        try bias?.check("bias", fits: shape)
        self.shape = shape
        self.mask = mask
        self.bias = bias
        self.positions = positions
        self.queryKeyNorm = queryKeyNorm
        self.products = products
        preparation = try RowPreparation(
            positions, queryKeyNorm, queryHeads: shape.queryHeads, keyValueHeads: shape.keyValueHeads,
            headDimension: shape.headDimension)
        positionTables = try preparation.flatMap { preparation throws(AttentionError) in
            try PositionTables(preparation, positions, shape, mask)
        }
        self.layout = layout ?? (shape.isPacked ? .batchSequenceHeads : .batchHeadsSequence)
        self.threads = try Self.checked(threads: threads)
        self.kernels = if let kernels { kernels } else { try KernelSet.preferred() }
        self.workspace = workspace ?? AttentionWorkspace()
        self.nanosecondsPerWorker = nanosecondsPerWorker
        schedule = try ForwardSchedule(
            shape, mask: mask, preparesRows: preparation != nil, products: products, kernels: self.kernels,
            threads: self.threads,
            nanosecondsPerWorker: nanosecondsPerWorker,
            nanosecondsPerSharedGroup: nanosecondsPerSharedGroup)
        rows = TensorRows(shape, self.layout)
        scores = try checkedScores.kernelScores(
            shape, plans: schedule.sequences, isUniform: schedule.isUniform, mask: mask, bias: bias)
    }

    /// The same problem with another sink: a training step's, whose learned logits have moved. What was prepared is shared,
    /// tables of positions and the workspace included, so that this takes next to no time.
    ///
    /// - Throws: ``AttentionError`` of kind `sink`, `sinkCount`, `composition`, or `memory`.
    public func with(sink: AttentionSink) throws(AttentionError) -> Attention { try Attention(self, sink: sink) }

    private init(_ other: Attention, sink: AttentionSink) throws(AttentionError) {
        let mode = FloatMode.enter()
        defer { mode.leave() }
        var rules = other.rules
        rules.sink = sink
        let checkedScores = try CheckedScores(rules, headDimension: other.shape.headDimension)
        (self.rules, scale, products) = (rules, checkedScores.scale, other.products)
        uniformSink = try sink.uniformLogit() ?? 0
        headSinks = try sink.checkedLogits(queryHeads: other.shape.queryHeads)
        (shape, mask, bias, positions) = (other.shape, other.mask, other.bias, other.positions)
        (queryKeyNorm, preparation, positionTables) = (other.queryKeyNorm, other.preparation, other.positionTables)
        (layout, threads, kernels, workspace) = (other.layout, other.threads, other.kernels, other.workspace)
        (nanosecondsPerWorker, schedule, rows) = (other.nanosecondsPerWorker, other.schedule, other.rows)
        // Sinks that count keys are numbers of rows.
        scores =
            sink.countsKeys || other.sink.countsKeys
            ? try checkedScores.kernelScores(
                shape, plans: schedule.sequences, isUniform: schedule.isUniform, mask: mask, bias: bias)
            : other.scores
    }

    /// The sink logit of a query head, -inf for softmax.
    func sinkLogit(queryHead: Int) -> Float { headSinks.isEmpty ? uniformSink : headSinks[queryHead] }

    /// Pairs of query and key, over batch and heads, that are seen before any boolean mask or bias.
    package var visiblePairs: Double {
        let perHead = schedule.sequences.reduce(0) { $0 + $1.visiblePairs }
        return perHead * Double(shape.queryHeads) * (schedule.isUniform ? Double(shape.batch) : 1)
    }

    /// Threads that a call really uses.
    package var threadsInUse: Int { schedule.workers }

    static func checked(threads: Int?) throws(AttentionError) -> Int {
        guard let threads else { return availableThreads() }
        guard threads >= 1 else {
            throw AttentionError(.threads, "threads", expected: "1 or more", found: "\(threads)")
        }
        return threads
    }
}
