// SPDX-License-Identifier: Apache-2.0
// SeededProblem.swift - inputs of one attention problem drawn from a seed, and room for its outputs.

import QuietAttention
import SeededInputs

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

/// Queries, keys and values drawn from a seed and rounded to `Scalar`, and buffers for out and lse.
///
/// Rows are drawn in the order [batch, heads, sequence] whatever the layout in memory, and the digest reads them in that
/// order: a layout changes neither.
struct SeededProblem<Scalar: AttentionScalar>: TimedProblem {
    let attention: Attention
    let queries, keys, values: Buffer<Scalar>
    private let output, logSumExp: Buffer<Float>

    init(_ attention: Attention, seed: UInt64, rounding round: (Float) -> Scalar) throws {
        let shape = attention.shape
        try Self.checkMemory(shape)
        self.attention = attention
        queries = try Buffer(shape.queryCount)
        keys = try Buffer(shape.keyCount)
        values = try Buffer(shape.valueCount)
        output = try Buffer(shape.outputCount)
        logSumExp = try Buffer(attention.normaliser.hasSink ? shape.rowCount : 0)

        func draw(_ stream: SeededStream, _ buffer: Buffer<Scalar>, heads: Int, sequence: Int, dimension: Int) {
            buffer.draw(
                seed, stream, attention.layout, batch: shape.batch, heads: heads, sequence: sequence,
                dimension: dimension, rounding: round)
        }
        draw(.queries, queries, heads: shape.queryHeads, sequence: shape.queries, dimension: shape.headDimension)
        draw(.keys, keys, heads: shape.keyValueHeads, sequence: shape.keys, dimension: shape.headDimension)
        draw(.values, values, heads: shape.keyValueHeads, sequence: shape.keys, dimension: shape.valueDimension)
    }

    /// Logits drawn from the seed, one per query head.
    static func sinkLogits(seed: UInt64, queryHeads: Int) -> [Float] {
        var generator = SeededGenerator(seed: seed, stream: SeededStream.sinks.rawValue)
        return generator.normals(queryHeads)
    }

    var threads: Int { attention.threads }
    var threadsInUse: Int { attention.threadsInUse }
    var kernels: KernelSet { attention.kernels }
    var products: AttentionProducts { attention.products }
    var workspaceBytes: Int { attention.workspace.byteCount }

    func run() throws {
        try attention.forward(
            queries: UnsafeBufferPointer(queries.elements), keys: UnsafeBufferPointer(keys.elements),
            values: UnsafeBufferPointer(values.elements), into: output.elements,
            logSumExp: attention.normaliser.hasSink ? logSumExp.elements : nil)
    }

    var digest: String { digestOfRows(output, logSumExp, attention.shape, attention.layout) }

    private static func checkMemory(_ shape: AttentionShape) throws {
        let inputs = [shape.queryCount, shape.keyCount, shape.valueCount].reduce(0.0) { $0 + Double($1) }
        let outputs = Double(shape.outputCount) + Double(shape.rowCount)
        try requireMemory(
            inputs * Double(MemoryLayout<Scalar>.stride) + outputs * Double(MemoryLayout<Float>.stride))
    }
}

/// An allocation beyond the machine's memory may succeed and end the process only when it is used.
func requireMemory(_ bytes: Double) throws {
    guard bytes < Double(Machine.physicalMemory) else {
        throw Failure(
            "inputs and outputs take \(decimal(bytes / 1e9, digits: 1)) GB, the machine has "
                + "\(decimal(Double(Machine.physicalMemory) / 1e9, digits: 1)) GB")
    }
}

/// Of the bits of out, then lse; rows in the order [batch, heads, sequence].
func digestOfRows(
    _ output: Buffer<Float>, _ logSumExp: Buffer<Float>, _ shape: AttentionShape, _ layout: AttentionLayout
) -> String {
    var digest = BitDigest()
    digest.addRows(
        output, layout, batch: shape.batch, heads: shape.queryHeads, sequence: shape.queries,
        dimension: shape.valueDimension)
    digest.add(logSumExp.elements)
    return digest.hexadecimal
}

extension BitDigest {
    /// The rows of a tensor in the order [batch, heads, sequence], whatever the layout in memory.
    mutating func addRows(
        _ tensor: Buffer<Float>, _ layout: AttentionLayout, batch: Int, heads: Int, sequence: Int, dimension: Int
    ) {
        for start in rowStarts(layout, batch: batch, heads: heads, sequence: sequence, dimension: dimension) {
            add(tensor.elements[start..<start + dimension])
        }
    }
}

/// The starts of all rows of a tensor in memory, in the order [batch, heads, sequence].
func rowStarts(
    _ layout: AttentionLayout, batch: Int, heads: Int, sequence: Int, dimension: Int
) -> some Sequence<Int> {
    let (head, row) =
        layout == .batchHeadsSequence ? (sequence * dimension, dimension) : (dimension, heads * dimension)
    return (0..<batch * heads * sequence).lazy.map { index in
        let (outer, position) = index.quotientAndRemainder(dividingBy: sequence)
        let (item, headIndex) = outer.quotientAndRemainder(dividingBy: heads)
        return item * heads * sequence * dimension + headIndex * head + position * row
    }
}

/// Memory for a tensor, at a multiple of 64 bytes.
final class Buffer<Element: BitwiseCopyable> {
    let elements: UnsafeMutableBufferPointer<Element>

    init(_ count: Int) throws {
        var address: UnsafeMutableRawPointer?
        let bytes = max(count * MemoryLayout<Element>.stride, 1)
        guard posix_memalign(&address, 64, bytes) == 0, let address else {
            throw Failure("the system has no \(bytes) bytes of memory for a tensor")
        }
        elements = UnsafeMutableBufferPointer(
            start: address.bindMemory(to: Element.self, capacity: count), count: count)
    }

    deinit {
        free(elements.baseAddress)
    }

    /// Fills a tensor with normal numbers in the order [batch, heads, sequence], whatever the layout in memory.
    func draw(
        _ seed: UInt64, _ stream: SeededStream, _ layout: AttentionLayout, batch: Int, heads: Int, sequence: Int,
        dimension: Int, rounding round: (Float) -> Element
    ) {
        var generator = SeededGenerator(seed: seed, stream: stream.rawValue)
        for start in rowStarts(layout, batch: batch, heads: heads, sequence: sequence, dimension: dimension) {
            for index in start..<start + dimension { elements[index] = round(generator.nextNormal()) }
        }
    }
}
