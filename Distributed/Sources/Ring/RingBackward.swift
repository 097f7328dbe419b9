// SPDX-License-Identifier: Apache-2.0
// RingBackward.swift - the backward pass of one sequence over all ranks.

import QuietAttention

/// The gradients of one sequence.
///
/// Keys and values stay with their owners, and so do the sums of their gradients. Rows go from chunk to chunk in ascending
/// order, with the sums of their own gradient, and come home after the last chunk that they see: so every sum takes its terms
/// in the order of one machine. What a rank works at next is up to what has arrived (``PanelDesk``).
public final class RingBackward<Element: AttentionScalar, Output: AttentionScalar> {
    private let world: World
    private let forward: RingForward<Element, Output>
    private let part: OwnPart<Element>
    private let panels: PanelPlan
    private let makeAttention: (_ rows: Range<Int>) throws -> PartwiseAttention
    private var attentions: [Int: PartwiseAttention] = [:]
    /// `[H, rows, E]`.
    public let outputGradient: Buffer<Element>
    /// `[H, rows]`; nil: the loss does not use the log-sum-exp.
    private let logSumExpGradient: Buffer<Float>?
    private let deltas: Buffer<Float>
    private var record = ForwardRecord()
    private let wanted: WantedGradients
    /// What each row adds to the numbers of its head, `[H, rows]`: of slopes, and of the logarithms of scales.
    private let slopeTerms, logScaleTerms: Buffer<Float>?
    /// `[H, rows, D]`.
    public let queryGradient: Buffer<Float>
    /// By chunk, `[G, n, D]` and `[G, n, E]`.
    public private(set) var keyGradients: [Int: Buffer<Float>] = [:]
    public private(set) var valueGradients: [Int: Buffer<Float>] = [:]
    /// One per query head, the same on all ranks; empty: not wanted.
    public private(set) var sinkGradient: [Float] = []
    public private(set) var slopeGradient: [Float] = []
    public private(set) var logScaleGradient: [Float] = []
    /// Of the norms' gains and biases.
    public let parameters: NormSums

    /// - Parameters:
    ///   - source: of the gradient of the output.
    ///   - readLogSumExpGradient: fills a buffer with the gradient of the log-sum-exp of adjacent rows of a head; nil: the loss
    ///     does not use it.
    ///   - wanted: gradients beside those of queries, keys, values and sinks.
    ///   - makeAttention: of the rows of a stripe as they are multiplied: without positions and norms.
    public init(
        _ world: World, _ forward: RingForward<Element, Output>, item: Int, _ source: some RowSource<Element>,
        logSumExpGradient readLogSumExpGradient: (
            (_ head: Int, _ rows: Range<Int>, UnsafeMutableBufferPointer<Float>) throws -> Void
        )? = nil,
        wanted: WantedGradients = WantedGradients(),
        attention makeAttention: @escaping (_ rows: Range<Int>) throws -> PartwiseAttention
    ) throws {
        (self.world, self.forward, self.makeAttention, self.wanted) = (world, forward, makeAttention, wanted)
        part = forward.part
        let (plan, shape) = (part.plan, part.shape)
        panels = PanelPlan(plan: plan, groupHeads: shape.groupHeads)
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
        slopeTerms = try wanted.slopes ? Buffer(rows, for: "the gradients of slopes") : nil
        logScaleTerms = try wanted.logScales ? Buffer(rows, for: "the gradients of scales") : nil
        parameters = try NormSums(plan, shape, rows: part.rows.count, chunks: part.chunks.keys, wanted)
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
        if forward.attention.preparesRows {
            try runPrepared()
        } else {
            try run(part.queries) { [part] in UnsafeBufferPointer(part.chunks[$0]!.keys) }
        }
        let terms: [((Int) -> Float)?] = [
            { [record, deltas] in -(record.sinkShares[$0] * deltas.elements[$0]) },
            slopeTerms.map { terms in { terms.elements[$0] } }, logScaleTerms.map { terms in { terms.elements[$0] } },
        ]
        var sums = try world.sumRows(terms.compactMap(\.self), part)[...]
        sinkGradient = sums.removeFirst()
        if slopeTerms != nil { slopeGradient = sums.removeFirst() }
        if logScaleTerms != nil { logScaleGradient = sums.removeFirst() }
    }

    /// Rows and keys are normalised and rotated at home, and so are their gradients, back: what travels are rows as they are
    /// multiplied, in Float.
    private func runPrepared() throws {
        let attention = forward.attention
        let queries = try Buffer<Float>(part.queries.elements.count, for: "the queries as they are multiplied")
        try attention.prepareQueries(part.queries.reading, into: queries.elements)
        var keys: [Int: Buffer<Float>] = [:]
        for (chunk, tensors) in part.chunks {
            let prepared = try Buffer<Float>(tensors.keys.count, for: "the keys as they are multiplied")
            try attention.prepareKeys(.init(tensors.keys), of: tensors.range, into: prepared.elements)
            keys[chunk] = prepared
        }
        try run(queries) { keys[$0]!.reading }
        try attention.finishQueryGradient(
            queryGradient.elements, queries: part.queries.reading, gain: parameters.queries.gain?.elements,
            bias: parameters.queries.bias?.elements)
        for (chunk, tensors) in part.chunks {
            try attention.finishKeyGradient(
                keyGradients[chunk]!.elements, keys: .init(tensors.keys), of: tensors.range,
                gain: parameters.keys[chunk]?.gain?.elements, bias: parameters.keys[chunk]?.bias?.elements)
        }
    }

    /// The sums of all pairs of rows and keys.
    private func run<Query: AttentionScalar>(
        _ queries: Buffer<Query>, keys: (_ chunk: Int) -> UnsafeBufferPointer<Query>
    ) throws {
        let layout = PanelLayout(shape: part.shape, hasSlopes: wanted.slopes)
        let travel = try PanelTravel<Query, Element>(
            world, panels, layout, pack: { [self] panel in pack(panel, queries) },
            unpack: { [self] number, sums in unpack(number, sums) })
        travel.poll()
        while let (panel, chunk) = try travel.next() {
            let tensors = part.chunks[chunk]!
            try attention(stripe: panels.stripe(panel.number)).addGradients(
                of: panel.gradientRows, groupHead: panels.groupHead(panel.number),
                against: .init(
                    keys: keys(chunk), values: UnsafeBufferPointer(tensors.values),
                    keyGradient: keyGradients[chunk]!.elements, valueGradient: valueGradients[chunk]!.elements,
                    range: tensors.range),
                meanwhile: travel.poll)
            try travel.passOn(panel)
        }
        try travel.finish()
        guard let logScaleTerms else { return }
        try forward.attention.logScaleTerms(
            queries: queries.reading, queryGradient: queryGradient.reading, into: logScaleTerms.elements)
    }

    private func attention(stripe: Int) throws -> PartwiseAttention {
        if let made = attentions[stripe] { return made }
        let made = try makeAttention(part.plan.rows(ofStripe: stripe))
        attentions[stripe] = made
        return made
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

    private func pack<Query: AttentionScalar>(_ panel: Panel<Query, Element>, _ queries: Buffer<Query>) {
        let (d, e) = (part.shape.headDimension, part.shape.valueDimension)
        forEachHead(panel.number) { head, first, rows in
            func copy<Scalar: BitwiseCopyable>(
                _ from: UnsafeBufferPointer<Scalar>, _ to: UnsafeMutableBufferPointer<Scalar>, _ dimension: Int
            ) {
                copyElements(from, from: first * dimension, to: to, at: head * rows * dimension, rows * dimension)
            }
            copy(queries.reading, panel.queries, d)
            copy(outputGradient.reading, panel.outputGradient, e)
            copy(deltas.reading, panel.numbers(2), 1)
            record.references.withUnsafeBufferPointer { copy($0, panel.numbers(0), 1) }
            record.factors.withUnsafeBufferPointer { copy($0, panel.numbers(1), 1) }
        }
    }

    /// The sums of a panel's gradients, come home.
    private func unpack(_ number: Int, _ sums: UnsafeBufferPointer<Float>) {
        let d = part.shape.headDimension
        forEachHead(number) { head, first, rows in
            copyElements(sums, from: head * rows * d, to: queryGradient.elements, at: first * d, rows * d)
            guard let slopeTerms else { return }
            let lanes = part.shape.keyValueHeads * rows * d + head * rows * 16
            for row in 0..<rows {
                slopeTerms.elements[first + row] = sumOfLanes(sums, from: lanes + row * 16)
            }
        }
    }
}
