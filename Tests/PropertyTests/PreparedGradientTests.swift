// SPDX-License-Identifier: Apache-2.0
// PreparedGradientTests.swift - gradients through positions and norms of queries and keys, and gradients of 16 bits: the bits
// of the reference, on every kernel set and any number of threads.

import AttentionReference
import QuietAttention
import TestSupport
import Testing

@Suite struct PreparedGradientTests {
    /// Two batch items, grouped heads, more than one block of queries and keys, and more keys than queries.
    private static let shape = AttentionCase(queries: 70, keys: 131, headDimension: 12, valueDimension: 5) {
        ($0.batch, $0.group, $0.geometry, $0.sink) = (2, 2, .causal, .mixed)
    }

    private struct Expected {
        var queries, keys, values, sinks: [Float]
        /// Gain and bias of the queries, then of the keys.
        var parameters: [[Float]]
    }

    /// The gradients of the prepared rows, taken back row by row.
    private func expected(
        _ shape: AttentionCase, _ positions: PositionCase, _ inputs: AttentionInputs, _ loss: ReferenceLoss
    ) -> Expected {
        let d = shape.headDimension
        func places(_ rows: Int) -> [Int] { (0..<rows).map { $0 + shape.keys - rows } }
        func perHead(_ tensor: [Float], _ rows: Int, _ body: ([Float]) -> [Float]) -> [Float] {
            (0..<tensor.count / (rows * d)).flatMap { body(Array(tensor[$0 * rows * d..<($0 + 1) * rows * d])) }
        }
        func prepared(_ tensor: [Float], _ rows: Int, _ side: ReferencePositions.Side) -> [Float] {
            perHead(tensor, rows) {
                positions.prepared($0, positions: places(rows), headDimension: d, length: shape.keys, side)
            }
        }
        var multiplied = inputs
        multiplied.queries = prepared(inputs.queries, shape.queries, .queries)
        multiplied.keys = prepared(inputs.keys, shape.keys, .keys)
        let sums = shape.referenceGradients(multiplied, loss)

        func back(
            _ tensor: [Float], _ gradients: [Float], _ rows: Int, _ side: ReferencePositions.Side
        ) -> (rows: [Float], gain: [Float], bias: [Float]) {
            let turning = positions.reference(headDimension: d, length: shape.keys)
            let norm = positions.norm.map { ReferenceNorm($0, side) }
            var (result, parameters): ([Float], (gain: [Float], bias: [Float])?) = ([], nil)
            for head in 0..<tensor.count / (rows * d) {
                var turnedBack: [[Float]] = []
                var raw: [[Float]] = []
                for (i, place) in places(rows).enumerated() {
                    let row = tensor.rows(head * rows + i, 1, d)
                    let gradient = gradients.rows(head * rows + i, 1, d)
                    raw.append(row)
                    turnedBack.append(
                        turning?.gradient(norm?.normalised(row) ?? row, of: gradient, position: place, side)
                            ?? gradient)
                }
                for (row, gradient) in zip(raw, turnedBack) { result += norm?.gradient(row, of: gradient) ?? gradient }
                parameters = norm?.parameterGradients(raw, of: turnedBack, addedTo: parameters) ?? parameters
            }
            return (
                result, norm?.gain == nil ? [] : parameters?.gain ?? [],
                norm?.bias == nil ? [] : parameters?.bias ?? []
            )
        }
        let queries = back(inputs.queries, sums.queries, shape.queries, .queries)
        let keys = back(inputs.keys, sums.keys, shape.keys, .keys)
        return Expected(
            queries: queries.rows, keys: keys.rows, values: sums.values, sinks: sums.sinks,
            parameters: [queries.gain, queries.bias, keys.gain, keys.bias])
    }

    @Test(arguments: PositionCase.all(headDimension: 12), ReferenceProducts.all)
    func positionsAndNorms(positions: PositionCase, products: ReferenceProducts) throws {
        var shape = Self.shape
        shape.products = products
        let (inputs, loss) = (shape.inputs, shape.loss)
        let expected = expected(shape, positions, inputs, loss)
        for kernels in products.kernelSets {
            for threads in [1, 3] {
                let attention = try shape.attention(
                    inputs, positions: positions.positions, queryKeyNorm: positions.norm, kernels: kernels,
                    threads: threads)
                try requireSame(
                    gradients(attention, inputs, loss), expected,
                    "\(positions), products \(products), \(kernels), \(threads) threads")
            }
        }
    }

    private func gradients(
        _ attention: Attention, _ inputs: AttentionInputs, _ loss: ReferenceLoss
    ) throws -> AttentionGradients {
        var record = ForwardRecord()
        let result = try attention.forward(
            queries: inputs.queries, keys: inputs.keys, values: inputs.values, recording: &record)
        return try attention.backward(
            outputGradient: loss.outputGradient, logSumExpGradient: loss.logSumExpGradient,
            queries: inputs.queries, keys: inputs.keys, values: inputs.values, output: result.output,
            record: record)
    }

    private func requireSame(_ actual: AttentionGradients, _ expected: Expected, _ context: String) throws {
        try requireSameBits("dq", actual.queries, expected.queries, context)
        try requireSameBits("dk", actual.keys, expected.keys, context)
        try requireSameBits("dv", actual.values, expected.values, context)
        try requireSameBits("dsink", actual.sinks, expected.sinks, context)
        for (index, found) in [actual.queryGain, actual.queryBias, actual.keyGain, actual.keyBias].enumerated() {
            try requireSameBits("gain or bias \(index)", found, expected.parameters[index], context)
        }
    }

    /// Sums are in Float: gradients of 16 bits are those of Float, rounded, and added to what is there before that.
    @Test(arguments: [(AttentionPositions.none, 1), (.none, 3), (.rotary(), 1), (.rotary(), 3)], ReferenceProducts.all)
    func gradientsOf16Bits(_ way: (positions: AttentionPositions, threads: Int), products: ReferenceProducts) throws {
        var shape = Self.shape
        shape.products = products
        let (inputs, loss) = (shape.inputs, shape.loss)
        let attention = try shape.attention(
            inputs, positions: way.positions, kernels: KernelSet.available[0], threads: way.threads)
        var record = ForwardRecord()
        let result = try attention.forward(
            queries: inputs.queries, keys: inputs.keys, values: inputs.values, recording: &record)
        let expected = try attention.backward(
            outputGradient: loss.outputGradient, queries: inputs.queries, keys: inputs.keys, values: inputs.values,
            output: result.output, record: record)
        var (dq, dk, dv) = (
            [BFloat16](repeating: BFloat16(3), count: inputs.queries.count),
            [BFloat16](repeating: BFloat16(3), count: inputs.keys.count),
            [BFloat16](repeating: BFloat16(3), count: inputs.values.count)
        )
        for accumulating in [false, true] {
            let before = (dq, dk, dv)
            let buffers = Buffers()
            defer { withExtendedLifetime(buffers) {} }
            try dq.withUnsafeMutableBufferPointer { dq in
                try dk.withUnsafeMutableBufferPointer { dk in
                    try dv.withUnsafeMutableBufferPointer { dv in
                        try loss.outputGradient.withUnsafeBufferPointer { dout in
                            try attention.backward(
                                outputGradient: dout, queries: buffers.copy(inputs.queries),
                                keys: buffers.copy(inputs.keys), values: buffers.copy(inputs.values),
                                output: buffers.copy(result.output), record: record,
                                into: AttentionGradientBuffers(queries: dq, keys: dk, values: dv),
                                accumulating: accumulating)
                        }
                    }
                }
            }
            func rounded(_ gradients: [Float], _ before: [BFloat16]) -> [UInt16] {
                zip(gradients, before).map { BFloat16(accumulating ? Float($1) + $0 : $0).bitPattern }
            }
            #expect(dq.map(\.bitPattern) == rounded(expected.queries, before.0))
            #expect(dk.map(\.bitPattern) == rounded(expected.keys, before.1))
            #expect(dv.map(\.bitPattern) == rounded(expected.values, before.2))
        }
    }
}

/// Copies of arrays at addresses that stay, for calls that take many buffers.
private final class Buffers {
    private var all: [UnsafeMutableBufferPointer<Float>] = []

    deinit { for buffer in all { buffer.deallocate() } }

    func copy(_ array: [Float]) -> UnsafeBufferPointer<Float> {
        let buffer = UnsafeMutableBufferPointer<Float>.allocate(capacity: array.count)
        _ = buffer.initialize(from: array)
        all.append(buffer)
        return UnsafeBufferPointer(buffer)
    }
}
