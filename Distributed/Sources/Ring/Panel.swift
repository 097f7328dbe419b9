// SPDX-License-Identifier: Apache-2.0
// Panel.swift - rows on their way from one owner of keys to the next.

import QuietAttention

/// One stripe of one query head of each key/value head, with the sums of its gradients so far: a message.
final class Panel<Query: AttentionScalar, OutputGradient: AttentionScalar> {
    let number: Int
    private let memory: Buffer<UInt8>
    private let layout: PanelLayout
    private let rows: Int

    init(_ number: Int, rows: Int, _ layout: PanelLayout) throws(RingError) {
        (self.number, self.rows, self.layout) = (number, layout.heads * rows, layout)
        let bytes =
            4 * (layout.sumFloats + 3) + MemoryLayout<Query>.stride * layout.shape.headDimension
            + MemoryLayout<OutputGradient>.stride * layout.shape.valueDimension
        memory = try Buffer(self.rows * bytes, for: "rows in flight")
    }

    /// All of it, as it travels on.
    var bytes: UnsafeMutableRawBufferPointer { memory.bytes }
    /// The sums alone, as they come home: of the gradient of the queries, then the lanes of slopes.
    var sums: UnsafeMutableBufferPointer<Float> { floats(0, rows * layout.sumFloats) }

    private var numberFloats: Int { rows * (layout.sumFloats + 3) }
    private var queryCount: Int { rows * layout.shape.headDimension }

    private func floats(_ first: Int, _ count: Int) -> UnsafeMutableBufferPointer<Float> {
        let start = memory.bytes.baseAddress! + first * 4
        return .init(start: start.assumingMemoryBound(to: Float.self), count: count)
    }

    /// References, factors and deltas: `[G, rows]` each.
    func numbers(_ index: Int) -> UnsafeMutableBufferPointer<Float> {
        floats(rows * (layout.sumFloats + index), rows)
    }

    var queries: UnsafeMutableBufferPointer<Query> {
        let start = memory.bytes.baseAddress! + numberFloats * 4
        return .init(start: start.assumingMemoryBound(to: Query.self), count: queryCount)
    }

    var outputGradient: UnsafeMutableBufferPointer<OutputGradient> {
        let start = memory.bytes.baseAddress! + numberFloats * 4 + queryCount * MemoryLayout<Query>.stride
        return .init(
            start: start.assumingMemoryBound(to: OutputGradient.self), count: rows * layout.shape.valueDimension)
    }

    var gradientRows: PartwiseAttention.GradientRows<Query, OutputGradient> {
        .init(
            queries: .init(queries), outputGradient: .init(outputGradient), references: .init(numbers(0)),
            factors: .init(numbers(1)), deltas: .init(numbers(2)), queryGradient: floats(0, queryCount),
            slopeLanes: layout.hasSlopes ? floats(queryCount, 16 * rows) : nil)
    }
}

/// What a panel holds of each row.
struct PanelLayout {
    let shape: RingShape
    /// Whether the gradients of ALiBi's slopes are summed, too.
    let hasSlopes: Bool

    var heads: Int { shape.keyValueHeads }
    /// Sums of a row.
    var sumFloats: Int { shape.headDimension + (hasSlopes ? 16 : 0) }
}

/// Which panels there are, and which chunks they meet: the same on all ranks.
struct PanelPlan {
    let plan: RingPlan
    let groupHeads: Int

    var panels: Int { groupHeads * plan.stripes }

    func groupHead(_ panel: Int) -> Int { panel / plan.stripes }
    func stripe(_ panel: Int) -> Int { panel % plan.stripes }
    func chunks(_ panel: Int) -> Range<Int> { plan.chunksSeen(byStripe: stripe(panel)) }

    /// When a panel meets a chunk. Panels meet the chunks that they see in ascending order, chunks the panels, and what a
    /// panel needs from another rank was sent two waves before.
    func wave(_ panel: Int, _ chunk: Int) -> Int { panel + 2 * chunk }

    /// What a rank does, in order.
    func tasks(of rank: Int) -> [(panel: Int, chunk: Int)] {
        let own = (0..<panels).flatMap { panel in
            chunks(panel).filter { plan.owner(of: $0) == rank }.map { (panel: panel, chunk: $0) }
        }
        return own.sorted { (wave($0.panel, $0.chunk), $0.chunk) < (wave($1.panel, $1.chunk), $1.chunk) }
    }
}
