// SPDX-License-Identifier: Apache-2.0
// RingBackward.swift - the backward pass of one sequence over all ranks.

import QuietAttention

/// The gradients of one sequence.
///
/// Keys and values stay with their owners, and so do the sums of their gradients. Rows go from chunk to chunk in ascending
/// order, with the sums of their own gradient, and come home after the last chunk that they see: so every sum takes its terms
/// in the order of one machine. A rank computes in waves (``PanelPlan/wave(_:_:)``), which give messages time.
public final class RingBackward<Element: AttentionScalar, Output: AttentionScalar> {
    private let world: World
    private let forward: RingForward<Element, Output>
    private let part: OwnPart<Element>
    private let panels: PanelPlan
    private let tasks: [(panel: Int, chunk: Int)]
    private let makeAttention: (_ rows: Range<Int>) throws -> PartwiseAttention
    private var attentions: [Int: PartwiseAttention] = [:]
    /// `[H, rows, E]`.
    public let outputGradient: Buffer<Element>
    /// `[H, rows]`; nil: the loss does not use the log-sum-exp.
    private let logSumExpGradient: Buffer<Float>?
    private let deltas: Buffer<Float>
    private var record = ForwardRecord()
    /// `[H, rows, D]`.
    public let queryGradient: Buffer<Float>
    /// By chunk, `[G, n, D]` and `[G, n, E]`.
    public private(set) var keyGradients: [Int: Buffer<Float>] = [:]
    public private(set) var valueGradients: [Int: Buffer<Float>] = [:]
    /// One per query head, the same on all ranks.
    public private(set) var sinkGradient: [Float] = []

    /// - Parameters:
    ///   - source: of the gradient of the output.
    ///   - readLogSumExpGradient: fills a buffer with the gradient of the log-sum-exp of adjacent rows of a head; nil: the loss
    ///     does not use it.
    ///   - makeAttention: of the rows of a stripe.
    public init(
        _ world: World, _ forward: RingForward<Element, Output>, item: Int, _ source: some RowSource<Element>,
        logSumExpGradient readLogSumExpGradient: (
            (_ head: Int, _ rows: Range<Int>, UnsafeMutableBufferPointer<Float>) throws -> Void
        )? = nil,
        attention makeAttention: @escaping (_ rows: Range<Int>) throws -> PartwiseAttention
    ) throws {
        (self.world, self.forward, self.makeAttention) = (world, forward, makeAttention)
        part = forward.part
        let (plan, shape) = (part.plan, part.shape)
        panels = PanelPlan(plan: plan, groupHeads: shape.groupHeads)
        tasks = panels.tasks(of: world.rank)
        let rows = shape.queryHeads * part.rows.count
        outputGradient = try Buffer(rows * shape.valueDimension, for: "the gradient of the output")
        logSumExpGradient = try readLogSumExpGradient.map { read in
            let buffer = try Buffer<Float>(rows, for: "the gradient of the log-sum-exp")
            try OwnPart<Element>.readRows(
                into: buffer.elements, plan, 1, heads: shape.queryHeads, rank: world.rank, read)
            return buffer
        }
        queryGradient = try Buffer(rows * shape.headDimension, for: "the gradient of the queries")
        deltas = try Buffer(rows, for: "the deltas")
        for chunk in part.chunks.keys {
            let count = shape.keyValueHeads * plan.keys(ofChunk: chunk).count
            keyGradients[chunk] = try Buffer(count * shape.headDimension, for: "the gradient of keys")
            valueGradients[chunk] = try Buffer(count * shape.valueDimension, for: "the gradient of values")
        }
        try OwnPart<Element>.readRows(
            .outputGradient, into: outputGradient.elements, plan, shape.valueDimension, heads: shape.queryHeads,
            rank: world.rank, item: item, source)
    }

    /// Runs the forward pass, and keeps what ``run()`` needs.
    public func runForward() throws { try forward.run(recording: &record) }

    /// Computes all gradients.
    public func run() throws {
        for buffer in [queryGradient] + keyGradients.values + valueGradients.values {
            buffer.elements.update(repeating: 0)
        }
        try forward.attention.deltas(
            output: forward.output.reading, outputGradient: outputGradient.reading,
            logSumExpGradient: logSumExpGradient?.reading, record: record, into: deltas.elements)
        let travel = PanelTravel(world, panels, part.shape, tasks, pack: pack, unpack: unpack)
        travel.poll()
        for (index, task) in tasks.enumerated() {
            let panel = try travel.panel(ofTask: index)
            try attention(stripe: panels.stripe(task.panel)).addGradients(
                of: panel.gradientRows, groupHead: panels.groupHead(task.panel), against: keys(task.chunk),
                meanwhile: travel.poll)
            try travel.passOn(panel, after: task.chunk)
        }
        try travel.finish()
        try sumSinks()
    }

    private func attention(stripe: Int) throws -> PartwiseAttention {
        if let made = attentions[stripe] { return made }
        let made = try makeAttention(part.plan.rows(ofStripe: stripe))
        attentions[stripe] = made
        return made
    }

    private func keys(_ chunk: Int) -> PartwiseAttention.GradientKeys<Element> {
        let tensors = part.chunks[chunk]!
        return .init(
            keys: .init(tensors.keys), values: .init(tensors.values), keyGradient: keyGradients[chunk]!.elements,
            valueGradient: valueGradients[chunk]!.elements, range: tensors.range)
    }

    // MARK: - Panels of one's own

    /// Calls `body` with each head of a panel, and the place of its first row among the rank's `[H, rows]`.
    private func forEachHead(_ panel: Int, _ body: (_ head: Int, _ first: Int, _ rows: Int) -> Void) {
        let (stripe, groupHead) = (panels.stripe(panel), panels.groupHead(panel))
        let rows = part.plan.rows(ofStripe: stripe)
        let first = part.firstRow(ofStripe: stripe)
        for head in 0..<part.shape.keyValueHeads {
            body(head, (head * part.shape.groupHeads + groupHead) * part.rows.count + first, rows.count)
        }
    }

    private func pack(_ number: Int) throws(RingError) -> Panel<Element> {
        let (d, e) = (part.shape.headDimension, part.shape.valueDimension)
        let stripe = part.plan.rows(ofStripe: panels.stripe(number))
        let panel = try Panel<Element>(number, rows: stripe.count, part.shape)
        forEachHead(number) { head, first, rows in
            func copy<Scalar>(
                _ from: UnsafeBufferPointer<Scalar>, _ to: UnsafeMutableBufferPointer<Scalar>, _ dimension: Int
            ) {
                let source = from[first * dimension..<(first + rows) * dimension]
                _ = UnsafeMutableBufferPointer(rebasing: to[head * rows * dimension..<(head + 1) * rows * dimension])
                    .update(from: source)
            }
            copy(part.queries.reading, panel.queries, d)
            copy(outputGradient.reading, panel.outputGradient, e)
            copy(deltas.reading, panel.numbers(2), 1)
            record.references.withUnsafeBufferPointer { copy($0, panel.numbers(0), 1) }
            record.factors.withUnsafeBufferPointer { copy($0, panel.numbers(1), 1) }
        }
        return panel
    }

    /// The sums of a panel's gradient, come home.
    private func unpack(_ number: Int, _ sums: UnsafeBufferPointer<Float>) {
        let d = part.shape.headDimension
        forEachHead(number) { head, first, rows in
            _ = UnsafeMutableBufferPointer(rebasing: queryGradient.elements[first * d..<(first + rows) * d])
                .update(from: sums[head * rows * d..<(head + 1) * rows * d])
        }
    }

    // MARK: - Sinks

    /// dsink: row i of the sequence joins lane i mod 16, ascending. The lanes go from stripe to stripe.
    private func sumSinks() throws {
        let (plan, heads, own) = (part.plan, part.shape.queryHeads, part.rows.count)
        let lanes = try Buffer<Float>(heads * 16, for: "the gradient of sinks")
        for stripe in 0..<plan.stripes where plan.owner(of: stripe) == world.rank {
            if stripe > 0, plan.owner(of: stripe - 1) != world.rank {
                var request = try world.receive(
                    lanes.bytes, from: plan.owner(of: stripe - 1), tag: 0x10001, "sums of sinks")
                try world.wait(&request)
            }
            let first = part.firstRow(ofStripe: stripe)
            for head in 0..<heads {
                for (index, row) in plan.rows(ofStripe: stripe).enumerated() {
                    let at = head * own + first + index
                    lanes.elements[head * 16 + row % 16] += -(record.sinkShares[at] * deltas.elements[at])
                }
            }
            let next = stripe + 1
            if next < plan.stripes, plan.owner(of: next) != world.rank {
                var request = try world.send(
                    UnsafeRawBufferPointer(lanes.bytes), to: plan.owner(of: next), tag: 0x10001, "sums of sinks")
                try world.wait(&request)
            }
        }
        // Of all ranks' lanes those of the last stripe's owner are the sums.
        let all = try world.gather(Array(lanes.bytes))
        let last = plan.stripes == 0 ? 0 : plan.owner(of: plan.stripes - 1)
        sinkGradient = all[last].withUnsafeBytes { bytes in
            var lanes = Array(bytes.bindMemory(to: Float.self))
            return (0..<heads).map { head in
                for half in [8, 4, 2, 1] {
                    for lane in 0..<half { lanes[head * 16 + lane] += lanes[head * 16 + lane + half] }
                }
                return lanes[head * 16]
            }
        }
    }
}
