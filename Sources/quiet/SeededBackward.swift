// SPDX-License-Identifier: Apache-2.0
// SeededBackward.swift - a backward pass over the inputs of a seeded problem, with a seeded gradient of the output.

import QuietAttention
import SeededInputs

/// The gradients of a seeded problem, in Float, whose forward pass has run once.
final class SeededBackward<Scalar: AttentionScalar>: TimedProblem {
    private let problem: SeededProblem<Scalar>
    private let output, outputGradient: Buffer<Scalar>
    private let gradients: AttentionGradientBuffers<Float>
    private let buffers: [Buffer<Float>]
    private var record = ForwardRecord()
    /// Seconds of the forward pass that a training step runs before, the fastest of a few.
    private(set) var secondsOfForward = Double.infinity

    private var attention: Attention { problem.attention }
    private var shape: AttentionShape { attention.shape }

    init(_ problem: SeededProblem<Scalar>, seed: UInt64, rounding round: (Float) -> Scalar) throws {
        let shape = problem.attention.shape
        try requireMemory(
            Double(shape.queryCount + shape.keyCount + shape.valueCount) * Double(MemoryLayout<Float>.stride)
                + Double(2 * shape.outputCount) * Double(MemoryLayout<Scalar>.stride))
        self.problem = problem
        output = try Buffer(shape.outputCount)
        outputGradient = try Buffer(shape.outputCount)
        let hasSink = problem.attention.normaliser.hasSink
        buffers = try [shape.queryCount, shape.keyCount, shape.valueCount, hasSink ? shape.queryHeads : 0].map {
            try Buffer<Float>($0)
        }
        gradients = AttentionGradientBuffers(
            queries: buffers[0].elements, keys: buffers[1].elements, values: buffers[2].elements,
            sinks: hasSink ? buffers[3].elements : nil)
        outputGradient.draw(
            seed, .outputGradients, problem.attention.layout, batch: shape.batch, heads: shape.queryHeads,
            sequence: shape.queries, dimension: shape.valueDimension, rounding: round)
        for _ in 0..<3 { secondsOfForward = min(secondsOfForward, try timed { try runForward() }.seconds) }
    }

    private func runForward() throws {
        try attention.forward(
            queries: UnsafeBufferPointer(problem.queries.elements), keys: UnsafeBufferPointer(problem.keys.elements),
            values: UnsafeBufferPointer(problem.values.elements), into: output.elements, recording: &record)
    }

    var threads: Int { attention.threads }
    var threadsInUse: Int { attention.threadsInUse }
    var kernels: KernelSet { attention.kernels }
    var products: AttentionProducts { attention.products }
    var workspaceBytes: Int { attention.workspace.byteCount }

    func run() throws {
        try attention.backward(
            outputGradient: UnsafeBufferPointer(outputGradient.elements),
            queries: UnsafeBufferPointer(problem.queries.elements), keys: UnsafeBufferPointer(problem.keys.elements),
            values: UnsafeBufferPointer(problem.values.elements), output: UnsafeBufferPointer(output.elements),
            record: record, into: gradients)
    }

    /// Of the bits of dq, dk, dv, dsink; rows in the order [batch, heads, sequence].
    var digest: String {
        var digest = BitDigest()
        for (buffer, heads, sequence, dimension) in [
            (buffers[0], shape.queryHeads, shape.queries, shape.headDimension),
            (buffers[1], shape.keyValueHeads, shape.keys, shape.headDimension),
            (buffers[2], shape.keyValueHeads, shape.keys, shape.valueDimension),
        ] {
            digest.addRows(
                buffer, attention.layout, batch: shape.batch, heads: heads, sequence: sequence, dimension: dimension)
        }
        digest.add(buffers[3].elements)
        return digest.hexadecimal
    }
}
