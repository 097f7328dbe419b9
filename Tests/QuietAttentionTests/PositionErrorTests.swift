// SPDX-License-Identifier: Apache-2.0
// PositionErrorTests.swift - positions and norms that are refused, and why.

import Testing

@testable import QuietAttention

@Suite struct PositionErrorTests {
    private let shape: AttentionShape

    init() throws {
        shape = try AttentionShape(batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 3, keys: 5, headDimension: 8)
    }

    private func refuse(
        _ kind: AttentionError.Kind, _ argument: String, _ positions: AttentionPositions,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        expectRefusal(kind, argument, sourceLocation: sourceLocation) {
            _ = try Attention(shape, sink: .softmax1, positions: positions)
        }
        guard positions.identifiers == nil else { return }
        expectRefusal(kind, argument, sourceLocation: sourceLocation) {
            _ = try KeyValueCache(keyValueHeads: 2, headDimension: 8, positions: positions)
        }
    }

    private func refuse(
        _ argument: String, _ embedding: RotaryEmbedding, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        refuse(.rotaryEmbedding, argument, .rotary(embedding), sourceLocation: sourceLocation)
    }

    @Test(arguments: [-2, 0, 1, 3, 7, 10, Int.max, Int.min])
    func dimensions(_ dimensions: Int) {
        refuse("positions.dimensions", RotaryEmbedding(dimensions: dimensions))
    }

    @Test func oddHeadDimension() throws {
        let odd = try AttentionShape(queryHeads: 1, queries: 1, keys: 1, headDimension: 7)
        let error = expectRefusal(.rotaryEmbedding, "positions.dimensions") {
            _ = try Attention(odd, sink: .softmax1, positions: .rotary())
        }
        #expect(
            error?.description
                == "positions.dimensions: expected an even number of channels from 2 to the head dimension 7, got 7")
        _ = try Attention(odd, sink: .softmax1, positions: .rotary(RotaryEmbedding(dimensions: 6)))
    }

    @Test(arguments: [1, 0.5, 0, -10_000, .nan, .infinity, 1e301])
    func bases(_ base: Double) {
        refuse("positions.base", RotaryEmbedding(base: base))
    }

    @Test(arguments: [0.5, 0, -1, .nan, .infinity, 1e10])
    func factors(_ factor: Double) {
        for scaling: RotaryEmbedding.Scaling in [
            .linear(factor: factor), .ntk(factor: factor),
            .dynamic(factor: factor, trainedLength: 5, length: 9), .yarn(factor: factor, trainedLength: 5),
            .llama3(factor: factor, lowFreqFactor: 1, highFreqFactor: 4, trainedLength: 5),
            .longrope(
                shortFactor: [1, 1, 1, 1], longFactor: [1, 1, 1, 1], factor: factor, trainedLength: 5, length: 9),
        ] {
            refuse("positions.scaling.factor", RotaryEmbedding(scaling: scaling))
        }
    }

    @Test func lengths() throws {
        for length in [0, -1, Int.min, Int.max] {
            refuse(
                "positions.scaling.trainedLength",
                RotaryEmbedding(scaling: .dynamic(factor: 1, trainedLength: length, length: 9)))
            refuse(
                "positions.scaling.length",
                RotaryEmbedding(scaling: .dynamic(factor: 1, trainedLength: 4, length: length)))
            refuse(
                "positions.scaling.trainedLength",
                RotaryEmbedding(scaling: .yarn(factor: 1, trainedLength: length)))
        }
        let short = RotaryEmbedding(scaling: .dynamic(factor: 1, trainedLength: 2, length: 4))
        expectRefusal(.position, "positions.scaling.length") {
            _ = try Attention(shape, sink: .softmax1, positions: .rotary(short))
        }
    }

    @Test func otherScalings() {
        refuse("positions.dimensions", RotaryEmbedding(dimensions: 2, scaling: .ntk(factor: 2)))
        refuse("positions.scaling", RotaryEmbedding(base: 1e295, scaling: .ntk(factor: 1e9)))
        let betas: [(fast: Double, slow: Double)] = [(1, 1), (1, 2), (32, 0), (32, -1), (.nan, 1), (.infinity, 1)]
        for (fast, slow) in betas {
            refuse(
                "positions.scaling.betaFast",
                RotaryEmbedding(scaling: .yarn(factor: 2, trainedLength: 9, betaFast: fast, betaSlow: slow)))
        }
        for factor in [0, -1, Double.nan, .infinity] {
            for scaling: RotaryEmbedding.Scaling in [
                .yarn(factor: 2, trainedLength: 9, attentionFactor: factor), .thetas([1], attentionFactor: factor),
            ] {
                refuse("positions.scaling.attentionFactor", RotaryEmbedding(scaling: scaling))
            }
        }
        for mscale in [-1, Double.nan, .infinity] {
            refuse(
                "positions.scaling.mscale", RotaryEmbedding(scaling: .yarn(factor: 2, trainedLength: 9, mscale: mscale))
            )
        }
        for (low, high) in [(1.0, 1.0), (4, 1), (0, 4), (-1, 4), (.nan, 4), (1, .infinity)] {
            refuse(
                "positions.scaling.highFreqFactor",
                RotaryEmbedding(
                    scaling: .llama3(factor: 2, lowFreqFactor: low, highFreqFactor: high, trainedLength: 9)))
        }
        for scaleBase in [0, -512, Double.nan, .infinity] {
            refuse("positions.scaling.scaleBase", RotaryEmbedding(scaling: .xPos(scaleBase: scaleBase)))
        }
        refuse("positions.scaling.centre", RotaryEmbedding(scaling: .xPos(centre: Int.min)))
    }

    /// Lists have one number for each pair, and lengths a logarithm.
    @Test func lists() throws {
        let ones = [Double](repeating: 1, count: 4)
        func longrope(_ short: [Double], _ long: [Double], trained: Int = 9) -> RotaryEmbedding {
            RotaryEmbedding(
                scaling: .longrope(shortFactor: short, longFactor: long, factor: 2, trainedLength: trained, length: 20))
        }
        refuse("positions.scaling.shortFactor", longrope([1, 1, 1], ones))
        refuse("positions.scaling.longFactor", longrope(ones, ones + [1]))
        refuse("positions.scaling.longFactor[2]", longrope(ones, [1, 1, 0, 1]))
        refuse("positions.scaling.shortFactor[0]", longrope([.nan, 1, 1, 1], ones))
        refuse("positions.scaling.trainedLength", longrope(ones, ones, trained: 1))
        refuse("positions.dimensions", RotaryEmbedding(scaling: .thetas([])))
        refuse("positions.dimensions", RotaryEmbedding(scaling: .thetas([1, 1, 1, 1, 1])))
        refuse("positions.scaling.thetas", RotaryEmbedding(dimensions: 6, scaling: .thetas([1, 1])))
        refuse("positions.scaling.thetas[1]", RotaryEmbedding(scaling: .thetas([1, .infinity])))
        // Angles beyond 2^41 would lose what the position adds.
        let fast = AttentionPositions.rotary(RotaryEmbedding(scaling: .thetas([1024])))
        _ = try Attention(shape, sink: .softmax1, positions: fast.offset(by: 1 << 30))
        expectRefusal(.position, "positions") {
            _ = try Attention(shape, sink: .softmax1, positions: fast.offset(by: 1 << 31))
        }
    }

    /// Factors of xPos would leave the range of Float.
    @Test func xPosOutOfReach() throws {
        let near = RotaryEmbedding(scaling: .xPos(scaleBase: 1, centre: 0))
        let long = try AttentionShape(queryHeads: 1, queries: 1, keys: 37, headDimension: 8)
        expectRefusal(.position, "positions") { _ = try Attention(long, sink: .softmax1, positions: .rotary(near)) }
        _ = try Attention(
            long, sink: .softmax1, positions: .rotary(RotaryEmbedding(scaling: .xPos(scaleBase: 1, centre: 18))))
        var cache = try KeyValueCache(keyValueHeads: 1, headDimension: 8, positions: .rotary(near))
        let rows = [Float](repeating: 1, count: 37 * 8)
        expectRefusal(.position, "positions") { try cache.append(keys: rows, values: rows) }
        #expect(cache.count == 0)
    }

    @Test func collinearPairsNeedAllChannels() {
        for form in AttentionPositions.CollinearForm.allCases {
            refuse(.rotaryEmbedding, "positions.dimensions", .collinear(form, RotaryEmbedding(dimensions: 6)))
        }
    }

    @Test func offsetsAndIdentifiers() throws {
        for offset in [Int.max, Int.min, (1 << 40) + 1] {
            refuse(.position, "positions.offset", .rotary().offset(by: offset))
        }
        let keys = Array(0..<5)
        for count in [0, 1, 2, 4, 5, 7] {
            refuse(
                .positionCount, "positions.identifiers.queries",
                .rotary().identifiers(queries: [Int](repeating: 0, count: count), keys: keys))
        }
        refuse(
            .positionCount, "positions.identifiers.keys", .rotary().identifiers(queries: [0, 1, 2], keys: [0, 1, 2]))
        refuse(
            .position, "positions.identifiers.keys[4]",
            .rotary().identifiers(queries: [0, 1, 2], keys: [0, 1, 2, 3, Int.min]))
        expectRefusal(.position, "positions.identifiers") {
            _ = try KeyValueCache(
                keyValueHeads: 2, headDimension: 8, positions: .rotary().identifiers(queries: [0], keys: [0]))
        }
    }

    @Test func cachesAndDynamicNTK() throws {
        expectRefusal(.rotaryEmbedding, "positions.scaling.length") {
            _ = try KeyValueCache(
                keyValueHeads: 1, headDimension: 8,
                positions: .rotary(RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 4))))
        }
        let fixed = RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 4, length: 10))
        var cache = try KeyValueCache(keyValueHeads: 1, headDimension: 8, positions: .rotary(fixed))
        let rows = [Float](repeating: 1, count: 8 * 8)
        try cache.append(keys: rows, values: rows)
        expectRefusal(.cacheLimit, "keys") { try cache.append(keys: rows, values: rows) }
        #expect(cache.count == 8)
        var moved = try KeyValueCache(keyValueHeads: 1, headDimension: 8, positions: .rotary(fixed).offset(by: 3))
        expectRefusal(.cacheLimit, "keys") { try moved.append(keys: rows, values: rows) }
    }

    @Test func norms() {
        func refuse(_ argument: String, _ norm: QueryKeyNorm) {
            expectRefusal(.queryKeyNorm, "queryKeyNorm.\(argument)") {
                _ = try Attention(shape, sink: .softmax1, queryKeyNorm: norm)
            }
            expectRefusal(.queryKeyNorm, "queryKeyNorm.\(argument)") {
                _ = try KeyValueCache(keyValueHeads: 2, headDimension: 8, queryKeyNorm: norm)
            }
        }
        for epsilon in [0, -1, Float.nan, .infinity, .leastNonzeroMagnitude] {
            refuse("epsilon", .rms(epsilon: epsilon))
        }
        let seven = [Float](repeating: 1, count: 7)
        refuse("queryGain", .rms(queryGain: seven))
        refuse("keyGain", .layer(keyGain: []))
        refuse("queryBias", .layer(queryBias: seven))
        refuse("keyBias", .layer(keyBias: seven))
        var biased = QueryKeyNorm.rms()
        biased.keyBias = [Float](repeating: 1, count: 8)
        refuse("queryBias", biased)
    }

    /// Sequences that nobody could hold: no table is made for work that is empty.
    @Test func emptyWork() throws {
        let empty = try AttentionShape(batch: 0, queryHeads: 1, queries: 1 << 40, keys: 1 << 40, headDimension: 2)
        _ = try Attention(empty, sink: .softmax1, positions: .rotary()).forward(queries: [], keys: [], values: [])
        let noKeys = try AttentionShape(queryHeads: 1, queries: 3, keys: 0, headDimension: 2)
        let result = try Attention(noKeys, sink: .softmax1, positions: .rotary(), queryKeyNorm: .rms())
            .forward(queries: [1, 2, 3, 4, 5, 6], keys: [], values: [])
        #expect(result.output == [Float](repeating: 0, count: 6))
        let heads = try AttentionShape(queryHeads: 0, queries: 3, keys: 3, headDimension: 2)
        _ = try Attention(heads, sink: .softmax1, positions: .collinear(.strict))
    }
}
