// SPDX-License-Identifier: Apache-2.0
// StructureTests.swift - rows depend on nothing but themselves, and bits stay what they are.

import SeededInputs
import TestSupport
import Testing

@testable import AttentionReference

@Suite struct StructureTests {
    private static let shape: AttentionCase = {
        var shape = AttentionCase(queries: 6, keys: 1090, headDimension: 5, valueDimension: 3)
        shape.batch = 2
        shape.keyValueHeads = 2
        shape.group = 3
        shape.sink = .amid
        shape.geometry = .around(before: 1070, after: 2)
        shape.allowed = .random
        shape.bias = .normal
        return shape
    }()

    /// Every row alone, from its own slices of the tensors, has the bits it has among the others.
    @Test func rowsAreIndependent() throws {
        let (shape, inputs) = (Self.shape, Self.shape.inputs)
        let whole = shape.referenceProblem(inputs)
        let result = shape.reference(inputs)
        for row in 0..<result.logSumExp.count {
            let (query, headIndex) = (row % shape.queries, row / shape.queries)
            let (head, item) = (headIndex % shape.queryHeads, headIndex / shape.queryHeads)
            let keyRow = (item * shape.keyValueHeads + head / shape.group) * shape.keys
            var alone = ReferenceProblem(
                queries: 1, keys: shape.keys, headDimension: 5, valueDimension: 3, scale: whole.scale,
                sinks: [whole.sinks[head]])
            alone.firstKeyOffset = whole.firstKeyOffset.map { $0 + query }
            alone.lastKeyOffset = whole.lastKeyOffset.map { $0 + query }
            alone.allowed = whole.allowed.map { slice($0, row, shape.keys) }
            alone.bias = whole.bias.map { slice($0, row, shape.keys) }
            let single = alone.forward(
                queries: Array(inputs.queries[row * 5..<(row + 1) * 5]),
                keys: Array(inputs.keys[keyRow * 5..<(keyRow + shape.keys) * 5]),
                values: Array(inputs.values[keyRow * 3..<(keyRow + shape.keys) * 3]))
            try requireSameBits("row \(row)", single.output, Array(result.output[row * 3..<(row + 1) * 3]), "\(shape)")
            try requireSameBits("lse \(row)", single.logSumExp, [result.logSumExp[row]], "\(shape)")
        }
    }

    private func slice<Element>(
        _ tensor: ReferenceBroadcast<Element>, _ row: Int, _ keys: Int
    ) -> ReferenceBroadcast<Element> {
        ReferenceBroadcast(Array(tensor.values[row * keys..<(row + 1) * keys]), extents: [1, 1, 1, keys])
    }

    /// An axis of extent 1 is the same as the tensor written out.
    @Test(arguments: [AttentionCase.Broadcast.batch, .batchAndHeads, .allButKeys])
    func broadcastIsRepetition(broadcast: AttentionCase.Broadcast) throws {
        var shape = Self.shape
        shape.broadcast = broadcast
        let inputs = shape.inputs
        var problem = shape.referenceProblem(inputs)
        let short = problem.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        problem.allowed = problem.allowed.map { writtenOut($0, shape) }
        problem.bias = problem.bias.map { writtenOut($0, shape) }
        let long = problem.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        try requireSameBits("out", short.output, long.output, "\(shape)")
    }

    private func writtenOut<Element>(
        _ tensor: ReferenceBroadcast<Element>, _ shape: AttentionCase
    ) -> ReferenceBroadcast<Element> {
        let extents = [shape.batch, shape.queryHeads, shape.queries, shape.keys]
        let values = (0..<extents.reduce(1, *)).map { index in
            var rest = index
            let places = extents.reversed().map { extent in
                defer { rest /= extent }
                return rest % extent
            }
            let strides = [1, tensor.extents[3], tensor.extents[3] * tensor.extents[2]]
            let outer = places[3] % tensor.extents[0] * tensor.extents[1] + places[2] % tensor.extents[1]
            return tensor.values[
                places[0] * strides[0] + places[1] % tensor.extents[2] * strides[1] + outer * strides[2]]
        }
        return ReferenceBroadcast(values, extents: extents)
    }

    /// A bias of -infinity hides a key to the bit as `allowed` does, NaN behind it included.
    @Test func biasHidesAsAllowedDoes() throws {
        var shape = Self.shape
        shape.bias = .none
        var inputs = shape.inputs
        inputs.keys[7 * 5] = .nan
        var problem = shape.referenceProblem(inputs)
        let hidden = try #require(problem.allowed)
        let byAllowed = problem.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        problem.bias = ReferenceBroadcast(hidden.values.map { $0 ? 0 : -.infinity }, extents: hidden.extents)
        problem.allowed = nil
        let byBias = problem.forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        try requireSameBits("out", byBias.output, byAllowed.output, "\(shape)")
        try requireSameBits("lse", byBias.logSumExp, byAllowed.logSumExp, "\(shape)")
    }

    @Test(arguments: Golden.shared.attention)
    func visibleKeysAreCounted(golden: Golden.Attention) {
        let problem = ReferenceProblem(queries: golden.queryCount, keys: golden.keyCount, headDimension: 1, sinks: [0])
        let masked =
            golden.mask == "none" ? problem : golden.mask == "causal_window_2" ? problem.window(2) : problem.causal
        let counts = (0..<golden.queryCount).map { row in
            masked.visibleKeys(batch: 0, head: 0, query: row).count { $0 }
        }
        #expect(counts == golden.visibleKeys)
    }

    /// The bits of version 1: another number here means another arithmetic, and results that no longer compare with
    /// those of earlier versions.
    @Test func bitsStayTheSame() {
        var generator = SeededGenerator(seed: 2026)
        var problem = ReferenceProblem(
            batch: 1, queryHeads: 4, keyValueHeads: 2, queries: 9, keys: 2113, headDimension: 11, valueDimension: 5,
            sinks: [-.infinity, 0, 2.5, -1]
        ).causal
        problem.bias = ReferenceBroadcast(generator.normals(2113), extents: [1, 1, 1, 2113])
        let result = problem.forward(
            queries: generator.normals(4 * 9 * 11), keys: generator.normals(2 * 2113 * 11),
            values: generator.normals(2 * 2113 * 5))
        var digest = BitDigest()
        digest.add(result.output)
        digest.add(result.logSumExp)
        digest.add(result.sinkShare)
        #expect(digest.hexadecimal == "83a8289505c2ff27")
    }
}
