// SPDX-License-Identifier: Apache-2.0
// MaskTests.swift - ranges, key lengths and packing only what is seen, against boolean masks that say the same.

import Testing

@testable import QuietAttention

@Suite struct MaskTests {
    struct Band: CustomTestStringConvertible, Sendable {
        let mask: AttentionMask
        let before, after: Int?
        let testDescription: String
    }

    static let bands = [
        Band(mask: .none, before: nil, after: nil, testDescription: "none"),
        Band(mask: .causal, before: nil, after: 0, testDescription: "causal"),
        Band(mask: .window(1), before: 0, after: 0, testDescription: "window 1"),
        Band(mask: .window(70), before: 69, after: 0, testDescription: "window 70"),
        Band(mask: .window(Int.max), before: nil, after: 0, testDescription: "window Int.max"),
        Band(mask: .window(before: 3, after: nil), before: 3, after: nil, testDescription: "3 before"),
        Band(mask: .window(before: nil, after: 5), before: nil, after: 5, testDescription: "5 after"),
        Band(mask: .window(before: 64, after: 2), before: 64, after: 2, testDescription: "64 before, 2 after"),
        Band(mask: .window(before: .max, after: .max), before: nil, after: nil, testDescription: "Int.max around"),
    ]

    /// Sizes on both sides of a block and of a chunk; the last ones start beyond the first chunk under a window.
    static let sizes = [(3, 3), (70, 65), (5, 130), (130, 5), (4, 1030), (2, 2200)]

    /// Whether row i sees key j, by the definition.
    ///
    /// - Parameter end: the key behind the last query's own.
    private func sees(_ band: Band, _ i: Int, _ j: Int, _ queries: Int, _ end: Int, _ length: Int) -> Bool {
        let own = i + end - queries
        return j < length && band.before.map { j >= own - $0 } ?? true && band.after.map { j <= own + $0 } ?? true
    }

    @Test(arguments: bands, sizes)
    func bandsEqualBooleanMasks(_ band: Band, _ size: (Int, Int)) throws {
        for padding in [AttentionMask.Padding.keys, .queriesAndKeys] {
            try bandsEqualBooleanMasks(band, queries: size.0, keys: size.1, padding)
        }
    }

    private func bandsEqualBooleanMasks(
        _ band: Band, queries: Int, keys: Int, _ padding: AttentionMask.Padding
    ) throws {
        let shape = try AttentionShape(
            batch: 2, queryHeads: 2, keyValueHeads: 1, queries: queries, keys: keys, headDimension: 3)
        let lengths = [keys, max(0, keys - 67)]
        let problem = Problem(shape)
        var allowed: [Bool] = []
        let ends = padding == .keys ? lengths : [keys, keys]
        for (length, end) in zip(lengths, ends) {
            for i in 0..<queries {
                for j in 0..<keys { allowed.append(sees(band, i, j, queries, end, length)) }
            }
        }
        let mask = try BroadcastTensor(allowed, batch: 2, queries: queries, keys: keys)
        let expected = try problem.run(Attention(shape, sink: .softmax1, mask: .none.allowing(mask)))

        // Keys and values that no row sees are not even packed.
        var poisoned = problem
        for item in 0..<2 {
            for j in 0..<keys
            where !(0..<queries).contains(where: { sees(band, $0, j, queries, ends[item], lengths[item]) }) {
                for d in 0..<3 {
                    poisoned.keys[(item * keys + j) * 3 + d] = .nan
                    poisoned.values[(item * keys + j) * 3 + d] = .infinity
                }
            }
        }
        for threads in [1, 3] {
            let attention = try Attention(
                shape, sink: .softmax1, mask: band.mask.keyLengths(lengths, padding: padding), threads: threads,
                spread: true)
            #expect(try poisoned.run(attention).bits == expected.bits)
            let both = try Attention(
                shape, sink: .softmax1, mask: band.mask.keyLengths(lengths, padding: padding).allowing(mask),
                threads: threads,
                spread: true)
            #expect(try poisoned.run(both).bits == expected.bits)
        }
        let pairs = 2 * allowed.count { $0 }
        #expect(
            try Attention(shape, sink: .softmax1, mask: band.mask.keyLengths(lengths, padding: padding)).visiblePairs
                == Double(pairs))
    }

    @Test func onlySeenBlocksAreKept() throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 64, keys: 1 << 20, headDimension: 64)
        let schedule = try ForwardSchedule(shape, mask: .window(128), kernels: .available[0], threads: 1)
        let plan = schedule.sequences[0]
        #expect(plan.keyOrigin == (1 << 20) - 1024 && plan.keys == 1024)
        // Row 0 sees keys from 64 + 127 before the end on.
        #expect(plan.blocks == 13..<16)
        #expect(schedule.memory.byteCount < 2 << 20)
    }

    @Test func biasesAndStrides() throws {
        let shape = try AttentionShape(batch: 2, queryHeads: 2, queries: 3, keys: 70, headDimension: 4)
        let problem = Problem(shape)
        let row = (0..<70).map { Float($0 % 7) - 3 }
        let shared = try BroadcastTensor(row, keys: 70)
        let spelledOut = try BroadcastTensor(
            (0..<12).flatMap { _ in row }, batch: 2, heads: 2, queries: 3, keys: 70)
        // Every key twice, and only the first copy is read.
        let strided = try BroadcastTensor(
            row.flatMap { [$0, .nan] }, extents: .init(keys: 70),
            strides: .init(batch: 0, heads: 0, queries: 0, keys: 2))
        let expected = try problem.run(Attention(shape, sink: .softmax1, bias: spelledOut))
        #expect(try problem.run(Attention(shape, sink: .softmax1, bias: shared)).bits == expected.bits)
        #expect(try problem.run(Attention(shape, sink: .softmax1, bias: strided)).bits == expected.bits)
        #expect(try problem.run(Attention(shape, sink: .softmax1)).bits != expected.bits)
    }

    /// Every batch item, head and row has entries of its own: each head alone gives the same.
    @Test func entriesBelongToTheirHeads() throws {
        let shape = try AttentionShape(
            batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 3, keys: 70, headDimension: 4, valueDimension: 2)
        let problem = Problem(shape)
        let entries = 2 * 4 * 3 * 70
        let biasValues = (0..<entries).map { Float($0 * 7 % 23) / 8 }
        let allowedValues = (0..<entries).map { $0 * 11 % 17 > 4 }
        let bias = try BroadcastTensor(biasValues, batch: 2, heads: 4, queries: 3, keys: 70)
        let allowed = try BroadcastTensor(allowedValues, batch: 2, heads: 4, queries: 3, keys: 70)
        let whole = try problem.run(Attention(shape, sink: .softmax1, mask: .none.allowing(allowed), bias: bias))

        let single = try AttentionShape(queryHeads: 1, queries: 3, keys: 70, headDimension: 4, valueDimension: 2)
        for head in 0..<8 {
            let own = head * 3 * 70..<(head + 1) * 3 * 70
            let attention = try Attention(
                single, sink: .softmax1,
                mask: .none.allowing(BroadcastTensor(Array(allowedValues[own]), queries: 3, keys: 70)),
                bias: BroadcastTensor(Array(biasValues[own]), queries: 3, keys: 70))
            let keyHead = head / 2
            let result = try attention.forward(
                queries: Array(problem.queries[head * 12..<(head + 1) * 12]),
                keys: Array(problem.keys[keyHead * 280..<(keyHead + 1) * 280]),
                values: Array(problem.values[keyHead * 140..<(keyHead + 1) * 140]))
            #expect(bits(result.output) == bits(Array(whole.output[head * 6..<(head + 1) * 6])))
            #expect(bits(result.logSumExp) == bits(Array(whole.logSumExp[head * 3..<(head + 1) * 3])))
        }
    }

    @Test func biasOfMinusInfinityHides() throws {
        let shape = try AttentionShape(queryHeads: 2, queries: 70, keys: 70, headDimension: 4)
        let problem = Problem(shape)
        let causal = (0..<70).flatMap { i in (0..<70).map { j in j <= i ? Float(0) : -.infinity } }
        let bias = try BroadcastTensor(causal, queries: 70, keys: 70)
        let result = try problem.run(Attention(shape, sink: .softmax1, bias: bias))
        #expect(result.bits == (try problem.run(Attention(shape, sink: .softmax1, mask: .causal))).bits)
    }

    @Test func visibleKeysAnywhere() {
        #expect(AttentionMask.causal.visibleKeys(ofRowsAt: 2..<4, keys: 9) == 0..<4)
        #expect(AttentionMask.window(3).visibleKeys(ofRowsAt: 5..<7, keys: 6) == 3..<6)
        for width in [3, 0, Int.min] {
            for mask in [AttentionMask.window(width), .window(before: width, after: width)] {
                for places in [Int.min..<Int.min + 1, Int.max - 1..<Int.max, 0..<0] {
                    #expect(mask.visibleKeys(ofRowsAt: places, keys: 5).isEmpty)
                }
            }
        }
        #expect(AttentionMask.window(Int.min).visibleKeys(ofRowsAt: 0..<3, keys: 4).isEmpty)
        #expect(AttentionMask.causal.visibleKeys(ofRowsAt: Int.min..<Int.min + 1, keys: 5).isEmpty)
    }
}
