// SPDX-License-Identifier: Apache-2.0
// PartwiseGradientTests.swift - gradients of rows against keys, a part of each at a time: the bits of the backward pass.

import SeededInputs
import Testing

@testable import QuietAttention

@Suite struct PartwiseGradientTests {
    private typealias Rules = PartwiseAttentionTests.Rules
    private typealias Whole = PartwiseAttentionTests.Whole
    private static let (heads, keyHeads, d, e) = (
        PartwiseAttentionTests.heads, PartwiseAttentionTests.keyHeads, PartwiseAttentionTests.d,
        PartwiseAttentionTests.e
    )
    private static let rules = PartwiseAttentionTests.rules.filter {
        $0.positions == .none && $0.norm == nil && !$0.bias && !$0.allowed
    }

    /// Panels of rows meet chunks of keys in the order of waves, as machines do that own chunks and pass rows on.
    @Test(arguments: rules, KernelSet.available)
    private func panelsAndChunksGiveTheWhole(_ rules: Rules, _ kernels: KernelSet) throws {
        let (queries, keys, panel) = (300, 2100, 128)
        let whole = try Whole(rules, queries: queries, keys: keys)
        let (q, k, v) = whole.tensors
        let attention = try whole.attention
        var generator = SeededGenerator(seed: 8)
        let outputGradient = generator.normals(Self.heads * queries * Self.e)
        let logSumExpGradient = generator.normals(Self.heads * queries)
        var record = ForwardRecord()
        let result = try attention.forward(queries: q, keys: k, values: v, recording: &record)
        let expected = try attention.backward(
            outputGradient: outputGradient, logSumExpGradient: logSumExpGradient, queries: q, keys: k, values: v,
            output: result.output, record: record)

        let all = try whole.partwise(Array(0..<queries), kernels: kernels)
        let own = try Self.record(all, whole)
        #expect(own.references.map(\.bitPattern) == record.references.map(\.bitPattern))
        #expect(own.factors.map(\.bitPattern) == record.factors.map(\.bitPattern))
        var deltas = [Float](repeating: 0, count: Self.heads * queries)
        try deltas.withUnsafeMutableBufferPointer { deltas in
            try result.output.withUnsafeBufferPointer { output in
                try outputGradient.withUnsafeBufferPointer { gradient in
                    try logSumExpGradient.withUnsafeBufferPointer {
                        try all.deltas(
                            output: output, outputGradient: gradient, logSumExpGradient: $0, record: record,
                            into: deltas)
                    }
                }
            }
        }

        var gradients = (
            queries: [Float](repeating: 0, count: q.count),
            chunks: stride(from: 0, to: keys, by: 1024).map { begin in
                let count = Self.keyHeads * (min(begin + 1024, keys) - begin)
                return ([Float](repeating: 0, count: count * Self.d), [Float](repeating: 0, count: count * Self.e))
            }
        )
        let group = Self.heads / Self.keyHeads
        let parts = (queries + panel - 1) / panel
        let tasks = (0..<group * parts).flatMap { p in gradients.chunks.indices.map { (panel: p, chunk: $0) } }
            .sorted { ($0.panel + 2 * $0.chunk, $0.chunk) < ($1.panel + 2 * $1.chunk, $1.chunk) }
        for task in tasks {
            let (groupHead, part) = task.panel.quotientAndRemainder(dividingBy: parts)
            let rows = part * panel..<min((part + 1) * panel, queries)
            let range = task.chunk * 1024..<min((task.chunk + 1) * 1024, keys)
            func of(_ tensor: [Float]) -> [Float] {
                let dimension = tensor.count / (Self.heads * queries)
                var part: [Float] = []
                for head in 0..<Self.keyHeads {
                    let first = ((head * group + groupHead) * queries + rows.lowerBound) * dimension
                    part += tensor[first..<first + rows.count * dimension]
                }
                return part
            }
            var dq = of(gradients.queries)
            let partwise = try whole.partwise(Array(rows), kernels: kernels)
            try Self.add(
                partwise, groupHead,
                [of(q), of(outputGradient), of(record.references), of(record.factors), of(deltas)],
                &dq, [whole.part(k, heads: Self.keyHeads, range), whole.part(v, heads: Self.keyHeads, range)],
                &gradients.chunks[task.chunk], range)
            for head in 0..<Self.keyHeads {
                let first = ((head * group + groupHead) * queries + rows.lowerBound) * Self.d
                gradients.queries.replaceSubrange(
                    first..<first + rows.count * Self.d,
                    with: dq[head * rows.count * Self.d..<(head + 1) * rows.count * Self.d])
            }
        }
        #expect(bits(gradients.queries) == bits(expected.queries))
        for (chunk, sums) in gradients.chunks.enumerated() {
            let range = chunk * 1024..<min((chunk + 1) * 1024, keys)
            #expect(bits(sums.0) == bits(whole.part(expected.keys, heads: Self.keyHeads, range)))
            #expect(bits(sums.1) == bits(whole.part(expected.values, heads: Self.keyHeads, range)))
        }
    }

    private static func add(
        _ attention: PartwiseAttention, _ groupHead: Int, _ rows: [[Float]], _ queryGradient: inout [Float],
        _ keys: [[Float]], _ sums: inout ([Float], [Float]), _ range: Range<Int>
    ) throws {
        // The arrays outlive the call.
        func buffer(_ array: [Float]) -> UnsafeBufferPointer<Float> {
            let copy = UnsafeMutableBufferPointer<Float>.allocate(capacity: array.count)
            _ = copy.initialize(from: array)
            return UnsafeBufferPointer(copy)
        }
        let (rows, keys) = (rows.map(buffer), keys.map(buffer))
        defer { for buffer in rows + keys { buffer.deallocate() } }
        try queryGradient.withUnsafeMutableBufferPointer { dq in
            try sums.0.withUnsafeMutableBufferPointer { dk in
                try sums.1.withUnsafeMutableBufferPointer { dv in
                    try attention.addGradients(
                        of: .init(
                            queries: rows[0], outputGradient: rows[1], references: rows[2], factors: rows[3],
                            deltas: rows[4], queryGradient: dq), groupHead: groupHead,
                        against: .init(
                            keys: keys[0], values: keys[1], keyGradient: dk, valueGradient: dv, range: range))
                }
            }
        }
    }

    /// What finishing keeps.
    private static func record(_ attention: PartwiseAttention, _ whole: Whole) throws -> ForwardRecord {
        let running = try attention.begin()
        let (q, k, v) = whole.tensors
        try k.withUnsafeBufferPointer { keys in
            try v.withUnsafeBufferPointer { values in
                try q.withUnsafeBufferPointer {
                    try attention.add(keys, values: values, of: 0..<whole.keys, queries: $0, to: running)
                }
            }
        }
        var record = ForwardRecord()
        var output = [Float](repeating: 0, count: attention.shape.outputCount)
        try output.withUnsafeMutableBufferPointer { try attention.finish(running, into: $0, recording: &record) }
        return record
    }

    @Test func whatHasNoGradientsOfParts() throws {
        for (index, argument) in [(7, "positions"), (9, "positions"), (10, "bias"), (11, "mask.allowing")] {
            let whole = try Whole(PartwiseAttentionTests.rules[index], queries: 4, keys: 9)
            var (dq, sums) = ([Float](), ([Float](), [Float]()))
            expectRefusal(.composition, argument) {
                try Self.add(
                    whole.partwise([0, 1, 2, 3]), 0, [[], [], [], [], []], &dq, [[], []], &sums, 0..<9)
            }
        }
        let whole = try Whole(PartwiseAttentionTests.rules[1], queries: 4, keys: 9)
        var (dq, sums) = ([Float](), ([Float](), [Float]()))
        expectRefusal(.position, "places") {
            try Self.add(whole.partwise([0, 2]), 0, [[], [], [], [], []], &dq, [[], []], &sums, 0..<9)
        }
        expectRefusal(.headGroups, "groupHead") {
            try Self.add(whole.partwise([0, 1]), 3, [[], [], [], [], []], &dq, [[], []], &sums, 0..<9)
        }
        expectRefusal(.elementCount, "rows.queries") {
            try Self.add(whole.partwise([0, 1]), 0, [[], [], [], [], []], &dq, [[], []], &sums, 0..<9)
        }
    }
}
