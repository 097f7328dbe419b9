// SPDX-License-Identifier: Apache-2.0
// RowPlaceTests.swift - queries, keys and values inside one buffer give the bits of tensors of their own.

import SeededInputs
import Testing

@testable import QuietAttention

@Suite struct RowPlaceTests {
    private static let (queryHeads, keyValueHeads, dimension, valueDimension) = (6, 2, 5, 18)

    /// Rows of a fused projection, `before` elements in front of them, and the three tensors, `[heads][tokens][dimension]`.
    private struct Fused {
        var buffer: [Float]
        let places: (queries: RowPlace, keys: RowPlace, values: RowPlace)
        let tensors: [[Float]]

        init(tokens: Int, before: Int = 0, seed: UInt64 = 5) {
            var places = RowPlace.fused(
                queryHeads: queryHeads, keyValueHeads: keyValueHeads, headDimension: dimension,
                valueDimension: valueDimension)
            var generator = SeededGenerator(seed: seed)
            buffer = generator.normals(before + tokens * places.queries.row)
            places.queries.offset += before
            places.keys.offset += before
            places.values.offset += before
            self.places = places
            let buffer = buffer
            func tensor(_ place: RowPlace, _ heads: Int, _ dimension: Int) -> [Float] {
                (0..<heads).flatMap { head in
                    (0..<tokens).flatMap { token -> ArraySlice<Float> in
                        let start = place.offset + token * place.row + head * place.head
                        return buffer[start..<start + dimension]
                    }
                }
            }
            tensors = [
                tensor(places.queries, queryHeads, dimension), tensor(places.keys, keyValueHeads, dimension),
                tensor(places.values, keyValueHeads, valueDimension),
            ]
        }
    }

    /// All keys in one place, and all values: a stride of 0, also where few rows read them unpacked.
    @Test(arguments: KernelSet.available) func oneRowForAllKeys(kernels: KernelSet) throws {
        var buffer = [Float](repeating: 9, count: 80)
        for index in 0..<8 { buffer[index] = Float(index % 5) }
        for index in 8..<12 { buffer[index] = 1 }
        for index in 16..<32 { buffer[index] = Float(index) }
        let shape = try AttentionShape(queryHeads: 1, queries: 2, keys: 70, headDimension: 4, valueDimension: 16)
        let attention = try Attention(shape, sink: .softmax, kernels: kernels)
        var output = [Float](repeating: 0, count: shape.outputCount)
        var span = output.mutableSpan
        try attention.forward(
            in: buffer.span, queries: RowPlace(offset: 0, row: 4, head: 0), keys: RowPlace(offset: 8, row: 0, head: 0),
            values: RowPlace(offset: 16, row: 0, head: 0), into: &span)
        for (index, element) in output.enumerated() { #expect(abs(element - Float(16 + index % 16)) < 1e-5) }
    }

    /// What one token and one head never cross may be any number.
    @Test(arguments: [1, 100, 300], [AttentionPositions.none, .rotary()])
    func stridesThatNothingCrosses(rows: Int, positions: AttentionPositions) throws {
        for (queries, keys) in [(rows, 1), (1, rows), (1, 1)] {
            let shape = try AttentionShape(
                queryHeads: 4, keyValueHeads: 1, queries: queries, keys: keys, headDimension: 16)
            let attention = try Attention(shape, sink: .softmax1, positions: positions, threads: 1)
            var generator = SeededGenerator(seed: 9)
            let buffer = generator.normals(16 * (4 * queries + 2 * keys))
            func output(_ far: Int) throws -> [Float] {
                var output = [Float](repeating: .nan, count: shape.outputCount)
                var span = output.mutableSpan
                func place(_ offset: Int, _ tokens: Int, _ row: Int, _ head: Int) -> RowPlace {
                    RowPlace(offset: offset, row: tokens > 1 ? row : far, head: head)
                }
                try attention.forward(
                    in: buffer.span, queries: place(0, queries, 64, 16),
                    keys: RowPlace(offset: 64 * queries, row: keys > 1 ? 16 : far, head: far),
                    values: RowPlace(offset: 64 * queries + 16 * keys, row: keys > 1 ? 16 : far, head: far), into: &span
                )
                return output
            }
            let expected = try output(16)
            for far in [Int.max, Int.max / 2, 1 << 61, Int.max / 4 + 1] { #expect(try output(far) == expected) }
        }
    }

    @Test(arguments: [1, 7, 64, 200], [AttentionPositions.none, .rotary()])
    func forward(_ tokens: Int, _ positions: AttentionPositions) throws {
        // With rotary positions of an even part of the dimension.
        let positions = positions.embedding == nil ? positions : .rotary(RotaryEmbedding(dimensions: 4))
        let fused = Fused(tokens: tokens, before: 3)
        for threads in [1, 2] {
            let attention = try Attention(
                AttentionShape(
                    queryHeads: Self.queryHeads, keyValueHeads: Self.keyValueHeads, queries: tokens, keys: tokens,
                    headDimension: Self.dimension, valueDimension: Self.valueDimension),
                rules: ScoreRules(sink: .softmax1), mask: .causal, positions: positions, threads: threads,
                nanosecondsPerWorker: threads > 1 ? 1e-9 : 1e9)
            let expected = try attention.forward(
                queries: fused.tensors[0], keys: fused.tensors[1], values: fused.tensors[2])
            var output = [Float](repeating: 0, count: expected.output.count)
            var span = output.mutableSpan
            try attention.forward(
                in: fused.buffer.span, queries: fused.places.queries, keys: fused.places.keys,
                values: fused.places.values, into: &span)
            #expect(output.map(\.bitPattern) == expected.output.map(\.bitPattern))
        }
    }

    @Test func caches() throws {
        let fused = Fused(tokens: 150)
        let attention = try CachedAttention(queryHeads: Self.queryHeads, sink: .softmax1)
        var apart = try KeyValueCache(
            keyValueHeads: Self.keyValueHeads, headDimension: Self.dimension, valueDimension: Self.valueDimension)
        var inPlace = apart
        try apart.append(keys: fused.tensors[1], values: fused.tensors[2])
        let row = fused.places.queries.row
        for (begin, end) in [(0, 1), (1, 100), (100, 100), (100, 150)] {
            try inPlace.append(
                tokens: end - begin, in: fused.buffer.span.extracting(begin * row..<end * row), keys: fused.places.keys,
                values: fused.places.values)
        }
        #expect(try inPlace.savedBytes() == apart.savedBytes())
        let expected = try attention.attend(queries: fused.tensors[0], cache: apart).output
        var output = [Float](repeating: 0, count: expected.count)
        var span = output.mutableSpan
        try attention.attend(
            in: fused.buffer.span, queries: fused.places.queries, count: 150, cache: inPlace, into: &span)
        #expect(output == expected)
    }

    @Test func placesOutsideTheBuffer() throws {
        let fused = Fused(tokens: 4)
        var cache = try KeyValueCache(
            keyValueHeads: Self.keyValueHeads, headDimension: Self.dimension, valueDimension: Self.valueDimension)
        let (keys, values) = (fused.places.keys, fused.places.values)
        func refused(_ tokens: Int, _ keys: RowPlace, _ values: RowPlace, _ argument: String) {
            expectRefusal(.rowPlace, argument) {
                try cache.append(tokens: tokens, in: fused.buffer.span, keys: keys, values: values)
            }
            #expect(cache.count == 0)
        }
        refused(5, keys, values, "keys")
        refused(4, keys, RowPlace(offset: values.offset + 1, row: values.row, head: values.head), "values")
        for number in [-1, Int.min, Int.max, Int.max / 3] {
            refused(4, RowPlace(offset: number, row: keys.row, head: keys.head), values, "keys")
            refused(4, RowPlace(offset: 0, row: number, head: keys.head), values, "keys")
            refused(4, keys, RowPlace(offset: 0, row: keys.row, head: number), "values")
        }
        // One row, again and again: however many, it is within the buffer.
        let still = RowPlace(offset: 0, row: 0, head: 0)
        for held in 0..<2 {
            expectRefusal(.cacheLimit, "tokens") {
                try cache.append(tokens: Int.max, in: fused.buffer.span, keys: still, values: still)
            }
            #expect(cache.count == held)
            if held == 0 { try cache.append(tokens: 1, in: fused.buffer.span, keys: still, values: still) }
        }
        try cache.truncate(to: 0)
        expectRefusal(.dimension, "keys") {
            try cache.append(tokens: -1, in: fused.buffer.span, keys: keys, values: values)
        }
        try cache.append(tokens: 4, in: fused.buffer.span, keys: keys, values: values)
        let attention = try CachedAttention(queryHeads: Self.queryHeads, sink: .softmax1)
        var output = [Float](repeating: 0, count: Self.queryHeads * 4 * Self.valueDimension)
        for place in [RowPlace(offset: fused.buffer.count, row: 1, head: 1), RowPlace(offset: -1, row: 5, head: 5)] {
            expectRefusal(.rowPlace, "queries") {
                var span = output.mutableSpan
                try attention.attend(in: fused.buffer.span, queries: place, count: 4, cache: cache, into: &span)
            }
        }
    }

    @Test func arraysOfOtherTypes() throws {
        let fused = Fused(tokens: 9)
        let rounded = fused.tensors.map { $0.map(BFloat16.init) }
        let floats = rounded.map { $0.map { Float($0) } }
        let attention = try CachedAttention(queryHeads: Self.queryHeads, sink: .softmax1)
        var cache = try KeyValueCache(
            keyValueHeads: Self.keyValueHeads, headDimension: Self.dimension, valueDimension: Self.valueDimension)
        var expected = cache
        try cache.append(keys: rounded[1], values: rounded[2])
        try expected.append(keys: floats[1], values: floats[2])
        let result = try attention.attend(queries: floats[0], cache: expected)
        #expect(try attention.attend(queries: rounded[0], cache: cache) == result)
        var output = [BFloat16](repeating: BFloat16(0), count: result.output.count)
        try attention.attend(queries: rounded[0], cache: cache, into: &output)
        #expect(output.map(\.bitPattern) == result.output.map { BFloat16($0).bitPattern })
        let forward = try Attention(
            AttentionShape(
                queryHeads: Self.queryHeads, keyValueHeads: Self.keyValueHeads, queries: 9, keys: 9,
                headDimension: Self.dimension, valueDimension: Self.valueDimension), sink: .softmax1, mask: .causal)
        #expect(try forward.forward(queries: rounded[0], keys: rounded[1], values: rounded[2]) == result)
        var other = output.map { _ in BFloat16(0) }
        try forward.forward(queries: rounded[0], keys: rounded[1], values: rounded[2], into: &other)
        #expect(other.map(\.bitPattern) == output.map(\.bitPattern))
    }
}
