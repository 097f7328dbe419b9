// SPDX-License-Identifier: Apache-2.0
// RingForward.swift - the forward pass of one sequence over all ranks.

import QuietAttention

/// The forward pass of a rank's rows over all keys, which come round the ring.
public struct RingForward<Element: AttentionScalar, Output: AttentionScalar> {
    let world: World
    public let part: OwnPart<Element>
    public let attention: PartwiseAttention
    private let running: RunningAttention
    private let travels: [(hops: Int, isNeeded: Bool)]
    /// `[H, rows, E]`.
    public let output: Buffer<Output>
    /// `[H, rows]`.
    public let logSumExp: Buffer<Float>

    /// - Parameter attention: of the rank's rows, `part.rows`.
    public init(_ world: World, _ part: OwnPart<Element>, _ attention: PartwiseAttention) throws {
        (self.world, self.part, self.attention) = (world, part, attention)
        running = try attention.begin()
        travels = part.plan.travels(for: world.rank)
        output = try Buffer(attention.shape.outputCount, for: "the output")
        logSumExp = try Buffer(attention.shape.rowCount, for: "the log-sum-exp")
    }

    /// Computes output and log-sum-exp, and what backward needs if a record is given.
    public func run(recording record: UnsafeMutablePointer<ForwardRecord>? = nil) throws {
        running.reset()
        let relay = try Relay(world, part, travels)
        relay.poll()
        for chunk in travels.indices where travels[chunk].isNeeded {
            let tensors = try relay.chunk(chunk)
            try attention.add(
                UnsafeBufferPointer(tensors.keys), values: UnsafeBufferPointer(tensors.values), of: tensors.range,
                queries: part.queries.reading, to: running, meanwhile: relay.poll)
            relay.release(chunk)
        }
        try relay.finish()
        if let record {
            try attention.finish(
                running, into: output.elements, logSumExp: logSumExp.elements, recording: &record.pointee)
        } else {
            try attention.finish(running, into: output.elements, logSumExp: logSumExp.elements)
        }
    }
}
