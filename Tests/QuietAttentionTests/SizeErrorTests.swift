// SPDX-License-Identifier: Apache-2.0
// SizeErrorTests.swift - numbers that no memory is large enough for: errors, before anything is computed.

import Testing

@testable import QuietAttention

@Suite struct SizeErrorTests {
    @Test(arguments: [-1, 1 << 20 + 1, 1 << 40, Int.max])
    func headsBeyondReason(_ heads: Int) {
        expectRefusal(.dimension, "queryHeads") { _ = try CachedAttention(queryHeads: heads, sink: .softmax1) }
        expectRefusal(.dimension, "queryHeads") { _ = try ALiBi.slopes(queryHeads: heads) }
    }

    @Test func weightsOfLongSequences() throws {
        let count = 1_000_000
        let shape = try AttentionShape(queryHeads: 1, queries: count, keys: count, headDimension: 1)
        let attention = try Attention(shape, sink: .softmax1, threads: 1)
        let ones = [Float](repeating: 1, count: count)
        let error = expectRefusal(.memory, "weights") { _ = try attention.weights(queries: ones, keys: ones) }
        #expect(error?.expected == "4000000000000 bytes of memory")
    }

    /// A number per row and head: of the rows that a formula counts keys for, and of those of a learned factor.
    @Test func numbersOfLongSequences() throws {
        let (heads, most) = (1024, 1 << 40)
        let shape = try AttentionShape(queryHeads: heads, queries: most, keys: 1, headDimension: 1)
        let allowed = try BroadcastTensor([Bool](repeating: true, count: heads), heads: heads, keys: 1)
        let mask = AttentionMask.none.allowing(allowed)
        for scaling in [ScoreScaling.logKeys(), .scalableSoftmax([Double](repeating: 1, count: heads))] {
            expectRefusal(.memory, "scaling") { _ = try Attention(shape, sink: .softmax, mask: mask, scaling: scaling) }
        }
        expectRefusal(.memory, "scaling") { _ = try Attention(shape, sink: .logKeys(), mask: mask) }
        expectRefusal(.memory, "scaling") {
            _ = try Attention(shape, sink: .softmax, mask: mask, normaliser: .sigmoid())
        }
    }

    @Test func layersBeyondMemory() {
        for kind in [WeightInitialization.normal(), .xavierUniform(), .xavierNormal()] {
            expectRefusal(.memory, "weights") { _ = try kind.weights(fanIn: 1 << 30, fanOut: 1 << 30, seed: 1) }
            expectRefusal(.overflow, "fanIn") { _ = try kind.weights(fanIn: 1 << 32, fanOut: 1 << 32, seed: 1) }
        }
    }

    @Test func products() throws {
        #expect(try CheckedMemory.product("x", 3, 4, 5) == 60)
        #expect(try CheckedMemory.product("x", Int.max, 2, 0) == 0)
        #expect(try CheckedMemory.product("x") == 1)
        let error = expectRefusal(.overflow, "x") { _ = try CheckedMemory.product("x", Int.max, 1, 2) }
        #expect(error?.found == "\(Int.max) x 1 x 2")
    }

    @Test func arrays() throws {
        #expect(try [Float](for: "x", repeating: 2, count: 3) == [2, 2, 2])
        #expect(try [Float](for: "x", repeating: 2, count: 0).isEmpty)
        // Enough for the system to be asked.
        #expect(try [Float](for: "x", repeating: 0, count: 1 << 20).count == 1 << 20)
        for count in [1 << 48, 1 << 60, Int.max] {
            expectRefusal(.memory, "x") { _ = try [Float](for: "x", repeating: 0, count: count) }
        }
    }
}
