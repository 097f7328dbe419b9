// SPDX-License-Identifier: Apache-2.0
// PartwiseAttention.swift - some rows of attention over one sequence, whose keys and values come a part at a time.

import CKernels

/// Attention of queries at any positions of one sequence, over keys and values that need not be in memory together.
///
/// Parts of the keys are taken in in ascending order, each from plain tensors, and joined to what the rows know so far; in the
/// end the sink joins, once. The results have the bits of ``Attention`` over the whole sequence, for any queries, any parts,
/// any threads: keys fall into chunks of 1024 by their index in the sequence, and chunks are joined from left to right.
///
///     // Queries 2048 and up of a causal sequence of 4096, as one of two machines computes them.
///     let attention = try PartwiseAttention(
///         queryHeads: 8, keyValueHeads: 2, headDimension: 128, keys: 4096,
///         places: QueryPlaces(positions: Array(2048..<4096)), rules: ScoreRules(sink: .softmax1), mask: .causal)
///     let running = try attention.begin()
///     for part in parts {                                         // 0..<1024, 1024..<2048, ...
///         try attention.add(part.keys, values: part.values, of: part.range, queries: q, to: running)
///     }
///     try attention.finish(running, into: output, logSumExp: logSumExp, sinkShare: nil)
///
/// | tensor | shape |
/// |---|---|
/// | queries | `[H, L, D]`, L the number of positions |
/// | keys, values of a part | `[G, n, D]`, `[G, n, E]` |
/// | output | `[H, L, E]` |
/// | logSumExp, sinkShare | `[H, L]` |
///
/// Memory: a state of 32 + E floats per row, E rounded up to 16, and one chunk of packed keys and values.
///
/// *Edge cases*: parts that no row sees may be left out (``visibleKeys``). A row that sees no key has what it has in ``Attention``.
///
/// Safe to use from several tasks at once, each with a ``RunningAttention`` of its own.
public final class PartwiseAttention: Sendable {
    /// The dimensions: one sequence, as many queries as there are positions, all keys.
    public let shape: AttentionShape
    /// Most threads that a call uses.
    public let threads: Int
    /// Which numbers are multiplied.
    public let products: AttentionProducts
    /// The kernels that calls use.
    public let kernels: KernelSet

    let plan: SequencePlan
    let scores: KernelScores
    let maskTensors: MaskTensors
    let sinks: [Float]
    /// nil where queries and keys are multiplied as they are.
    let preparation: RowPreparation?
    let angles: RotaryAngles?
    let queryTable: RotaryTable?
    /// What is added to the index of a key for its position.
    let positionOffset: Int
    let workspace: AttentionWorkspace
    let nanosecondsPerWorker: Double

    /// Checks and prepares a problem.
    ///
    /// - Parameters:
    ///   - queryHeads: H, a multiple of `keyValueHeads`.
    ///   - keyValueHeads: G; nil: H.
    ///   - headDimension: D.
    ///   - valueDimension: E; nil: D.
    ///   - keys: of the whole sequence.
    ///   - places: at which keys the queries stand, and, if something counts keys, how many they see in all; nil: counted.
    ///   - rules: how scores become weights; rows of a scaling are in the order of the positions. The normaliser is softmax:
    ///     states of others do not merge.
    ///   - mask: which keys a row sees, a boolean mask `[1, heads or 1, L or 1, keys]` included. No key lengths: `keys` says it.
    ///   - bias: `[1, heads or 1, L or 1, keys]`.
    ///   - positions: how queries and keys are rotated: key j stands at j, queries at their places.
    ///   - queryKeyNorm: as of ``Attention``.
    ///   - products: as of ``Attention``.
    ///   - threads: as of ``Attention``.
    ///   - kernels: as of ``Attention``.
    ///   - workspace: memory to share with others; nil: its own.
    /// - Throws: ``AttentionError``, of the kinds that ``Attention`` and ``QueryPlaces`` have, `composition` for key lengths and other normalisers, and
    ///   `position` for identifiers of positions.
    public convenience init(
        queryHeads: Int, keyValueHeads: Int? = nil, headDimension: Int, valueDimension: Int? = nil, keys: Int,
        places: QueryPlaces, rules: ScoreRules, mask: AttentionMask = .none, bias: BroadcastTensor<Float>? = nil,
        positions: AttentionPositions = .none, queryKeyNorm: QueryKeyNorm? = nil,
        products: AttentionProducts = .float32, threads: Int? = nil, kernels: KernelSet? = nil,
        workspace: AttentionWorkspace? = nil
    ) throws(AttentionError) {
        let mode = FloatMode.enter()
        defer { mode.leave() }
        let shape = try AttentionShape(
            batch: 1, queryHeads: queryHeads, keyValueHeads: keyValueHeads, queries: places.positions.count, keys: keys,
            headDimension: headDimension, valueDimension: valueDimension)
        try self.init(
            shape, places, rules, mask, bias, positions, queryKeyNorm, products, threads: threads, kernels: kernels,
            workspace: workspace, nanosecondsPerWorker: WorkerCount.nanosecondsPerWorker)
    }

    /// With a threshold for threads, which tests lower so that small work is spread as well.
    init(
        _ shape: AttentionShape, _ places: QueryPlaces, _ rules: ScoreRules, _ mask: AttentionMask,
        _ bias: BroadcastTensor<Float>?, _ positions: AttentionPositions, _ norm: QueryKeyNorm?,
        _ products: AttentionProducts = .float32, threads: Int?, kernels: KernelSet?, workspace: AttentionWorkspace?,
        nanosecondsPerWorker: Double
    ) throws(AttentionError) {
        let mode = FloatMode.enter()
        defer { mode.leave() }
        guard mask.lengths == nil else {
            throw AttentionError(
                .composition, "mask.keyLengths", expected: "none: `keys` is the length of the one sequence",
                found: "lengths")
        }
        guard positions.identifiers == nil else {
            throw AttentionError(
                .position, "positions.identifiers", expected: "none: key j stands at j, queries at their places",
                found: "identifiers")
        }
        guard rules.normaliser == .softmax else {
            throw AttentionError(
                .composition, "rules.normaliser", expected: "softmax: states of others do not merge",
                found: rules.normaliser.name)
        }
        let checkedScores = try CheckedScores(rules, headDimension: shape.headDimension)
        try places.check(fits: shape)
        try mask.check(fits: shape)
        try bias?.check("bias", fits: shape)
        self.shape = shape
        self.products = products
        maskTensors = MaskTensors(allowed: mask.allowed, bias: bias)
        sinks = try rules.sink.logits(queryHeads: shape.queryHeads)
        plan = SequencePlan(
            item: 0, queryStart: 0, keyStart: 0, queries: shape.queries, keys: shape.keys,
            positions: places.positions[...], keyCounts: places.keyCounts?[...], mask: mask)
        scores = try checkedScores.kernelScores(
            shape, plans: shape.rowCount == 0 ? [] : [plan], isUniform: false, mask: mask, bias: bias)
        preparation = try RowPreparation(
            positions, norm, queryHeads: shape.queryHeads, keyValueHeads: shape.keyValueHeads,
            headDimension: shape.headDimension)
        positionOffset = positions.offset
        let counts = positions.embedding?.scaling.countsPositions ?? false
        angles = try preparation?.angles(length: counts ? shape.keys + positions.offset : 0)
        let queries = places.positions.map { [positionOffset] in $0 + positionOffset }
        if let angles, shape.keys > 0 { try angles.check(positionOffset...positionOffset + shape.keys - 1) }
        if let angles, let least = queries.min(), let most = queries.max() { try angles.check(least...most) }
        queryTable = if let angles { try RotaryTable(angles, positions: queries, .queries) } else { nil }
        self.threads = try Attention.checked(threads: threads)
        self.kernels = if let kernels { kernels } else { try KernelSet.preferred() }
        self.workspace = workspace ?? AttentionWorkspace()
        self.nanosecondsPerWorker = nanosecondsPerWorker
    }

    /// From the first to the last key that some row may see, by its place alone: parts outside may be left out.
    public var visibleKeys: Range<Int> {
        let (begin, end) = (plan.blocks.lowerBound * SequencePlan.block, plan.keys)
        return begin < end ? plan.keyOrigin + begin..<plan.keyEnd : 0..<0
    }

    /// Pairs of query and key, over heads, that are seen before any boolean mask or bias.
    public var visiblePairs: Double { plan.visiblePairs * Double(shape.queryHeads) }

    var groupHeads: Int { shape.queryHeads / max(shape.keyValueHeads, 1) }

    /// Checks that a part begins and ends where chunks do, or ends with the keys.
    func check(part: Range<Int>) throws(AttentionError) {
        let chunk = SequencePlan.chunk
        guard part.lowerBound >= 0, part.upperBound <= shape.keys, part.lowerBound % chunk == 0,
            part.upperBound % chunk == 0 || part.upperBound == shape.keys
        else {
            throw AttentionError(
                .keyRange, "range", expected: "a range between multiples of \(chunk), or up to \(shape.keys)",
                found: "\(part)")
        }
    }

    /// What kernels are told of query heads from `queryHead` on and the keys from `keys.lowerBound` to `keys.upperBound`; all
    /// but the sinks.
    func problem(queryHead: Int, heads: Int, keys: Range<Int>, _ masks: MaskPointers) -> qattn_problem {
        var problem = qattn_problem()
        problem.heads = heads
        problem.queries = plan.queries
        let origin = keys.lowerBound
        plan.add(to: &problem, keys: keys)
        scores.add(to: &problem, plan, head: queryHead, keyOrigin: origin)
        masks.add(to: &problem, head: queryHead, key: origin)
        return problem
    }
}

extension SequencePlan {
    /// What rows see of the keys from `keys.lowerBound` to `keys.upperBound`, counted from the first of them.
    func add(to problem: inout qattn_problem, keys: Range<Int>) {
        problem.seq_kv = max(0, min(keyEnd, keys.upperBound) - keys.lowerBound)
        problem.places = places.map { UnsafePointer($0.address) }
        problem.first_key_offset = firstKeyOffset + keyOrigin - keys.lowerBound
        problem.last_key_offset = lastKeyOffset + keyOrigin - keys.lowerBound
    }
}
