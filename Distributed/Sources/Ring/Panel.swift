// SPDX-License-Identifier: Apache-2.0
// Panel.swift - rows on their way from one owner of keys to the next.

import QuietAttention

/// One stripe of one query head of each key/value head, with the sums of its gradients so far: a message.
final class Panel<Query: AttentionScalar, OutputGradient: AttentionScalar> {
    let number: Int
    let memory: Buffer<UInt8>
    private let layout: PanelLayout
    private let rows: Int

    /// - Parameter memory: for at least so many rows.
    init(_ number: Int, rows: Int, _ layout: PanelLayout, in memory: Buffer<UInt8>) {
        (self.number, self.rows, self.layout, self.memory) = (number, layout.heads * rows, layout, memory)
    }

    /// Memory for a panel.
    static func memory(rows: Int, _ layout: PanelLayout) throws(RingError) -> Buffer<UInt8> {
        try Buffer(layout.heads * rows * rowBytes(layout), for: "rows in flight")
    }

    private static func rowBytes(_ layout: PanelLayout) -> Int {
        4 * (layout.sumFloats + 3) + MemoryLayout<Query>.stride * layout.shape.headDimension
            + MemoryLayout<OutputGradient>.stride * layout.shape.valueDimension
    }

    /// All of it, as it travels on.
    var bytes: UnsafeMutableRawBufferPointer { .init(rebasing: memory.bytes[..<(rows * Self.rowBytes(layout))]) }
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
