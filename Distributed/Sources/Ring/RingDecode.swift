// SPDX-License-Identifier: Apache-2.0
// RingDecode.swift - few queries against keys and values that stay where they are, in runs of chunks.

import QuietAttention

/// One step of decoding over a sequence whose keys and values are shared out among ranks.
///
/// Rank r has the chunks from `r C / N` to `(r + 1) C / N`. All ranks compute the states of their chunks at the same time; then
/// the states of all chunks before go from rank to rank, and each joins its own to them from left to right, as one machine does.
/// What travels is a state for each row and rank: 32 + E floats.
public final class RingDecode<Element: AttentionScalar> {
    private let world: World
    private let attention: PartwiseAttention
    private let queries: Buffer<Element>
    private let memory: Buffer<Element>
    private let chunks: [ChunkTensors<Element>]
    /// Of each chunk alone, and of all up to the rank's last.
    private let states: [RunningAttention]
    private let total: RunningAttention
    /// The chunks that some row sees.
    private let seen: Range<Int>
    /// `[H, L, E]` and `[H, L]`, on rank 0.
    public let output, logSumExp: Buffer<Float>

    /// - Parameters:
    ///   - attention: of all queries, which every rank has.
    ///   - item: of the source.
    public init(
        _ world: World, _ attention: PartwiseAttention, item: Int, _ source: some RowSource<Element>
    ) throws {
        (self.world, self.attention) = (world, attention)
        let shape = attention.shape
        let ring = RingShape(shape)
        queries = try Buffer(shape.queryCount, for: "queries")
        for head in 0..<shape.queryHeads {
            let count = shape.queries * shape.headDimension
            try source.read(
                .queries, item: item, head: head, rows: 0..<shape.queries,
                into: .init(rebasing: queries.elements[head * count..<(head + 1) * count]))
        }
        let (ranks, all) = (world.size, (shape.keys + RingPlan.chunkKeys - 1) / RingPlan.chunkKeys)
        let visible = attention.visibleKeys
        seen =
            visible.lowerBound / RingPlan.chunkKeys..<(visible.upperBound + RingPlan.chunkKeys - 1) / RingPlan.chunkKeys
        let own = (world.rank * all / ranks..<(world.rank + 1) * all / ranks).clamped(to: seen)
        let ranges = own.map { $0 * RingPlan.chunkKeys..<min(($0 + 1) * RingPlan.chunkKeys, shape.keys) }
        memory = try Buffer(
            ranges.reduce(0) { $0 + ChunkTensors<Element>.count(ring, keys: $1.count) }, for: "keys and values")
        var (chunks, first) = ([ChunkTensors<Element>](), 0)
        for range in ranges {
            let count = ChunkTensors<Element>.count(ring, keys: range.count)
            let tensors = ChunkTensors(.init(rebasing: memory.elements[first..<first + count]), ring, range)
            try tensors.read(ring, item: item, source)
            chunks.append(tensors)
            first += count
        }
        self.chunks = chunks
        states = try chunks.map { _ throws(AttentionError) in try attention.begin() }
        total = try attention.begin()
        output = try Buffer(shape.outputCount, for: "the output")
        logSumExp = try Buffer(shape.rowCount, for: "the log-sum-exp")
    }

    public func run() throws {
        for (chunk, state) in zip(chunks, states) {
            state.reset()
            state.resume(at: chunk.range.lowerBound)
            try attention.add(
                .init(chunk.keys), values: .init(chunk.values), of: chunk.range, queries: queries.reading, to: state)
        }
        // Ranks without a chunk pass on what they get.
        total.reset()
        let bytes = UnsafeMutableRawBufferPointer(total.states)
        let begin = chunks.first?.range.lowerBound ?? 0
        if world.rank > 0 {
            var request = try world.receive(bytes, from: world.rank - 1, tag: 0x10002, "states of the keys before")
            try world.wait(&request)
        }
        total.resume(at: begin)
        for (chunk, state) in zip(chunks, states) { try attention.join(state, of: chunk.range, to: total) }
        // The last rank's are those of all keys, and go to rank 0.
        let last = world.rank == world.size - 1
        if world.size > 1 {
            var request = try world.send(
                UnsafeRawBufferPointer(bytes), to: last ? 0 : world.rank + 1, tag: last ? 0x10003 : 0x10002, "states")
            if world.rank == 0 {
                try world.wait(&request)
                request = try world.receive(bytes, from: world.size - 1, tag: 0x10003, "states of all keys")
            }
            try world.wait(&request)
        }
        guard world.rank == 0 else { return }
        total.resume(at: attention.shape.keys)
        try attention.finish(total, into: output.elements, logSumExp: logSumExp.elements)
    }
}
