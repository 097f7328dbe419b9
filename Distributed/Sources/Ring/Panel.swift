// SPDX-License-Identifier: Apache-2.0
// Panel.swift - rows on their way from one owner of keys to the next.

import QuietAttention

/// One stripe of one query head of each key/value head, with the sums of its gradient so far: a message.
final class Panel<Element: AttentionScalar> {
    let number: Int
    private let memory: Buffer<UInt8>
    private let heads, rows: Int
    private let shape: RingShape

    init(_ number: Int, rows: Int, _ shape: RingShape) throws(RingError) {
        (self.number, self.rows, self.shape) = (number, rows, shape)
        heads = shape.keyValueHeads
        let size = MemoryLayout<Element>.stride
        let bytes = heads * rows * (4 * shape.headDimension + 12 + size * (shape.headDimension + shape.valueDimension))
        memory = try Buffer(bytes, for: "rows in flight")
    }

    /// All of it, as it travels on.
    var bytes: UnsafeMutableRawBufferPointer { memory.bytes }
    /// The sums alone, as they come home.
    var sums: UnsafeMutableBufferPointer<Float> { floats(0, heads * rows * shape.headDimension) }

    private var sumCount: Int { heads * rows * shape.headDimension }

    private func floats(_ first: Int, _ count: Int) -> UnsafeMutableBufferPointer<Float> {
        let start = memory.bytes.baseAddress! + first * 4
        return .init(start: start.assumingMemoryBound(to: Float.self), count: count)
    }

    private func elements(_ first: Int, _ count: Int) -> UnsafeMutableBufferPointer<Element> {
        let start = memory.bytes.baseAddress! + (sumCount + 3 * heads * rows) * 4
        return .init(start: start.assumingMemoryBound(to: Element.self) + first, count: count)
    }

    /// References, factors and deltas: `[G, rows]` each.
    func numbers(_ index: Int) -> UnsafeMutableBufferPointer<Float> {
        floats(sumCount + index * heads * rows, heads * rows)
    }

    var queries: UnsafeMutableBufferPointer<Element> { elements(0, sumCount) }
    var outputGradient: UnsafeMutableBufferPointer<Element> { elements(sumCount, heads * rows * shape.valueDimension) }

    var gradientRows: PartwiseAttention.GradientRows<Element, Element> {
        .init(
            queries: .init(queries), outputGradient: .init(outputGradient), references: .init(numbers(0)),
            factors: .init(numbers(1)), deltas: .init(numbers(2)), queryGradient: sums)
    }
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
