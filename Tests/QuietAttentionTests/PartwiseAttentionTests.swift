// SPDX-License-Identifier: Apache-2.0
// PartwiseAttentionTests.swift - rows at any positions, keys a part at a time: the bits of attention over all of them.

import SeededInputs
import TestSupport
import Testing

@testable import QuietAttention

@Suite struct PartwiseAttentionTests {
    /// What stands between products and weights.
    struct Rules: Sendable, CustomTestStringConvertible {
        var name: String
        var mask = AttentionMask.causal
        var sink = AttentionSink.softmax1
        var scaling = ScoreScaling.constant
        var softcap: Double?
        var alibi: ALiBi?
        var positions = AttentionPositions.none
        var norm: QueryKeyNorm?
        var bias = false
        var allowed = false
        var products = AttentionProducts.float32

        var testDescription: String { name }
    }

    static let rules = [
        Rules(name: "none", mask: .none, sink: .softmax), Rules(name: "causal"),
        Rules(name: "window", mask: .window(300), sink: .logits([0, -.infinity, 2, -3, 100, -100])),
        Rules(name: "both sides", mask: .window(before: 900, after: 70)),
        Rules(name: "softcap", softcap: 3), Rules(name: "alibi", alibi: .standard),
        Rules(name: "log n", sink: .logKeys(offset: 1), scaling: .logKeys(base: 8)),
        Rules(name: "rotary", positions: .rotary(RotaryEmbedding(base: 500)).offset(by: 3)),
        Rules(
            name: "dynamic",
            positions: .rotary(RotaryEmbedding(scaling: .dynamic(factor: 2, trainedLength: 1000, length: nil)))),
        Rules(name: "norm", norm: .rms()), Rules(name: "bias", bias: true),
        Rules(name: "allowed", mask: .none, scaling: .logKeys(base: 8), allowed: true),
    ]

    static let bfloat16Products = [
        Rules(name: "products", products: .bfloat16),
        Rules(
            name: "products of turned rows", mask: .window(before: 900, after: 70), alibi: .standard,
            positions: .rotary(RotaryEmbedding(base: 500)), norm: .rms(), products: .bfloat16),
        Rules(name: "products under masks", mask: .none, softcap: 3, bias: true, allowed: true, products: .bfloat16),
    ]

    static let (heads, keyHeads, d, e) = (6, 2, 6, 18)

    struct Whole {
        let rules: Rules
        let queries, keys: Int
        let tensors: (queries: [Float], keys: [Float], values: [Float])
        let allowed: [Bool]
        let bias: [Float]

        init(_ rules: Rules, queries: Int, keys: Int) throws {
            (self.rules, self.queries, self.keys) = (rules, queries, keys)
            var generator = SeededGenerator(seed: 7)
            tensors = (
                generator.normals(heads * queries * d), generator.normals(keyHeads * keys * d),
                generator.normals(keyHeads * keys * e)
            )
            allowed = rules.allowed ? (0..<queries * keys).map { _ in generator.chance(1, outOf: 3) } : []
            bias = rules.bias ? generator.normals(heads * keys) : []
        }

        var attention: Attention {
            get throws {
                try Attention(
                    AttentionShape(
                        queryHeads: heads, keyValueHeads: keyHeads, queries: queries, keys: keys, headDimension: d,
                        valueDimension: e), sink: rules.sink, mask: mask(0..<queries), scaling: rules.scaling,
                    softcap: rules.softcap, alibi: rules.alibi, bias: biases, positions: rules.positions,
                    queryKeyNorm: rules.norm, products: rules.products)
            }
        }

        private func mask(_ rows: some Collection<Int>) throws -> AttentionMask {
            guard rules.allowed else { return rules.mask }
            let part = rows.flatMap { allowed[$0 * keys..<($0 + 1) * keys] }
            return rules.mask.allowing(
                try BroadcastTensor(part, batch: 1, heads: 1, queries: rows.count, keys: keys))
        }

        private var biases: BroadcastTensor<Float>? {
            get throws {
                rules.bias ? try BroadcastTensor(bias, batch: 1, heads: heads, queries: 1, keys: keys) : nil
            }
        }

        func partwise(
            _ rows: [Int], kernels: KernelSet? = nil, threads: Int? = 2, nanosecondsPerWorker: Double = 0.1
        ) throws -> PartwiseAttention {
            let shape = try AttentionShape(
                queryHeads: heads, keyValueHeads: keyHeads, queries: rows.count, keys: keys, headDimension: d,
                valueDimension: e)
            return try PartwiseAttention(
                shape, QueryPlaces(positions: rows.map { $0 + keys - queries }),
                ScoreRules(
                    sink: rules.sink, scale: 1 / Double(d).squareRoot(), scaling: rules.scaling,
                    softcap: rules.softcap, alibi: rules.alibi, normaliser: .softmax), mask(rows), biases,
                rules.positions, rules.norm, rules.products, threads: threads, kernels: kernels, workspace: nil,
                nanosecondsPerWorker: nanosecondsPerWorker)
        }

        /// Rows of a tensor `[heads, rows of all, dimension]`.
        func part(_ tensor: [Float], heads: Int, _ rows: some Collection<Int>) -> [Float] {
            rowsOfHeads(tensor, heads: heads, all: heads == PartwiseAttentionTests.keyHeads ? keys : queries, rows)
        }

        /// output, lse and share of some rows, with the keys cut there.
        func results<Scalar: AttentionScalar>(
            _ attention: PartwiseAttention, _ rows: [Int], cut: [Int], _ round: (Float) -> Scalar
        ) throws -> AttentionResult {
            let queries = part(tensors.queries, heads: heads, rows).map(round)
            let running = try attention.begin()
            for (begin, end) in zip(cut, cut.dropFirst()) {
                try part(tensors.keys, heads: keyHeads, begin..<end).map(round).withUnsafeBufferPointer { keys in
                    try part(tensors.values, heads: keyHeads, begin..<end).map(round).withUnsafeBufferPointer {
                        values in
                        try queries.withUnsafeBufferPointer {
                            try attention.add(keys, values: values, of: begin..<end, queries: $0, to: running)
                        }
                    }
                }
            }
            return try attention.results(running)
        }
    }

    @Test(arguments: rules + bfloat16Products)
    func anyRowsAndPartsGiveTheWhole(_ rules: Rules) throws {
        let whole = try Whole(rules, queries: 1500, keys: 2500)
        let (q, k, v) = whole.tensors
        let expected = try whole.attention.forward(queries: q, keys: k, values: v)
        // Stripes, as two machines share them, and rows of no order.
        let stripes = [0, 1].map { rank in (0..<1500).filter { $0 / 100 % 2 == rank } }
        for rows in stripes + [[1499, 3, 700, 701, 702, 64]] {
            for cut in [[0, 2500], [0, 1024, 2048, 2500], [0, 1024, 1024, 2500]] {
                let actual = try whole.results(whole.partwise(rows), rows, cut: cut) { $0 }
                #expect(actual.bits == expected.rows(rows, of: 1500).bits, "\(cut) \(rows.prefix(3))")
            }
        }
    }

    @Test(arguments: KernelSet.available + KernelSet.emulated, [rules[1]] + bfloat16Products.prefix(1))
    func everySetAndStorage(_ kernels: KernelSet, _ rules: Rules) throws {
        let whole = try Whole(rules, queries: 40, keys: 1300)
        let rows = Array(0..<40)
        func check<Scalar: AttentionScalar>(_ round: (Float) -> Scalar) throws {
            let attention = try whole.attention
            let (q, k, v) = whole.tensors
            let expected = try attention.forward(
                queries: q.map(round), keys: k.map(round), values: v.map(round))
            let partwise = try whole.partwise(rows, kernels: kernels)
            #expect(try whole.results(partwise, rows, cut: [0, 1024, 1300], round).bits == expected.bits)
        }
        try check { $0 }
        try check(BFloat16.init)
        #if !(os(macOS) && arch(x86_64))
            try check { Float16($0) }
        #endif
    }

    /// So few rows that keys are not packed before, as in decoding; states that another process goes on with.
    @Test(arguments: AttentionProducts.allCases)
    func fewRowsAndStatesThatTravel(_ products: AttentionProducts) throws {
        var rules = Self.rules[2]
        rules.products = products
        let whole = try Whole(rules, queries: 2, keys: 2500)
        let (q, k, v) = whole.tensors
        let expected = try whole.attention.forward(queries: q, keys: k, values: v)
        let (here, there) = (try whole.partwise([0, 1]), try whole.partwise([0, 1], threads: 1))
        let (first, second) = (try here.begin(), try there.begin())
        func add(_ range: Range<Int>, _ attention: PartwiseAttention, _ running: RunningAttention) throws {
            try whole.part(k, heads: Self.keyHeads, range).withUnsafeBufferPointer { keys in
                try whole.part(v, heads: Self.keyHeads, range).withUnsafeBufferPointer { values in
                    try q.withUnsafeBufferPointer {
                        try attention.add(keys, values: values, of: range, queries: $0, to: running)
                    }
                }
            }
        }
        #expect(here.visibleKeys == 2199 / 64 * 64..<2500)
        // What nobody sees is left out; what somebody sees must not be.
        try add(2048..<2500, here, first)
        #expect(throws: AttentionError.self) { try add(2048..<2500, here, first) }
        first.reset()
        try add(0..<1024, here, first)
        try add(1024..<2048, here, first)
        _ = second.states.update(from: first.states)
        second.resume(at: first.keys)
        expectRefusal(.keyRange, "range") { _ = try there.results(second) }
        try add(2048..<2500, there, second)
        #expect(try there.results(second).bits == expected.bits)
        // Chunks that are taken in apart, each from nothing, and joined from left to right.
        first.reset()
        for range in [0..<1024, 1024..<2048, 2048..<2500] {
            let chunk = try here.begin()
            chunk.resume(at: range.lowerBound)
            try add(range, here, chunk)
            if range.lowerBound == 1024 {
                expectRefusal(.keyRange, "range") { try here.join(chunk, of: 0..<1024, to: first) }
            }
            try here.join(chunk, of: range, to: first)
        }
        #expect(try here.results(first).bits == expected.bits)
    }

    /// Rows far apart under a window: chunks between what they see come to neither.
    @Test func chunksThatNoRowSeesAreLeftOut() throws {
        let whole = try Whole(Self.rules[2], queries: 3500, keys: 3500)
        let rows = Array(0..<70) + Array(3400..<3500)
        let (q, k, v) = whole.tensors
        let expected = try whole.attention.forward(queries: q, keys: k, values: v)
        let attention = try whole.partwise(rows)
        let queries = whole.part(q, heads: Self.heads, rows)
        func results(_ ranges: [Range<Int>]) throws -> AttentionResult {
            let running = try attention.begin()
            for range in ranges {
                try whole.part(k, heads: Self.keyHeads, range).withUnsafeBufferPointer { keys in
                    try whole.part(v, heads: Self.keyHeads, range).withUnsafeBufferPointer { values in
                        try queries.withUnsafeBufferPointer {
                            try attention.add(keys, values: values, of: range, queries: $0, to: running)
                        }
                    }
                }
            }
            return try attention.results(running)
        }
        #expect(try results([0..<1024, 3072..<3500]).bits == expected.rows(rows, of: 3500).bits)
        expectRefusal(.keyRange, "range") { _ = try results([3072..<3500]) }
        expectRefusal(.keyRange, "range") { _ = try results([0..<1024]) }
    }

    @Test func whatIsHiddenIsNotRead() throws {
        var whole = try Whole(Self.rules[1], queries: 1100, keys: 1100)
        let rows = Array(0..<1000)
        let clean = try whole.results(whole.partwise(rows), rows, cut: [0, 1024, 1100]) { $0 }
        whole = try Whole(Self.rules[1], queries: 1100, keys: 1100, poisoned: 1000..<1100)
        let poisoned = try whole.results(whole.partwise(rows), rows, cut: [0, 1024, 1100]) { $0 }
        #expect(poisoned.bits == clean.bits)
    }

    @Test func noRowsAndNoKeys() throws {
        let whole = try Whole(Self.rules[0], queries: 3, keys: 0)
        let none = try whole.results(whole.partwise([0, 1, 2]), [0, 1, 2], cut: [0, 0]) { $0 }
        #expect(none.bits == (try whole.attention.forward(queries: whole.tensors.queries, keys: [], values: []).bits))
        let empty = try Whole(Self.rules[1], queries: 5, keys: 1030)
        #expect(try empty.results(empty.partwise([]), [], cut: [0, 1024, 1030]) { $0 }.bits == [])
    }

    @Test func whatMakesNoSense() throws {
        let whole = try Whole(Self.rules[1], queries: 10, keys: 1500)
        let attention = try whole.partwise(Array(0..<10))
        let running = try attention.begin()
        let floats = [Float](repeating: 0, count: 2 * 1024 * 18)
        func add(_ range: Range<Int>, keys: Int, to running: RunningAttention) throws {
            try floats.withUnsafeBufferPointer { all in
                try whole.tensors.queries.withUnsafeBufferPointer { queries in
                    try attention.add(
                        .init(rebasing: all[..<keys]), values: .init(rebasing: all[..<(keys * 3)]), of: range,
                        queries: queries, to: running)
                }
            }
        }
        expectRefusal(.keyRange, "range") { try add(1..<1024, keys: 2 * 1023 * 6, to: running) }
        expectRefusal(.keyRange, "range") { try add(0..<1000, keys: 2 * 1000 * 6, to: running) }
        expectRefusal(.keyRange, "range") { try add(1024..<2048, keys: 2 * 1024 * 6, to: running) }
        expectRefusal(.keyRange, "range") { try add(1024..<1500, keys: 2 * 476 * 6, to: running) }
        expectRefusal(.elementCount, "keys") { try add(0..<1024, keys: 6, to: running) }
        let other = try whole.partwise([0]).begin()
        expectRefusal(.partialShape, "running") { try add(0..<1024, keys: 2 * 1024 * 6, to: other) }
        expectRefusal(.composition, "mask.keyLengths") {
            _ = try PartwiseAttention(
                queryHeads: 1, headDimension: 4, keys: 5, places: QueryPlaces(positions: [4]),
                rules: ScoreRules(sink: .softmax1), mask: .causal.keyLengths([3]))
        }
        expectRefusal(.position, "positions.identifiers") {
            _ = try PartwiseAttention(
                queryHeads: 1, headDimension: 4, keys: 1, places: QueryPlaces(positions: [0]),
                rules: ScoreRules(sink: .softmax1), positions: .rotary().identifiers(queries: [0], keys: [0]))
        }
        expectRefusal(.composition, "rules.normaliser") {
            _ = try PartwiseAttention(
                queryHeads: 1, headDimension: 4, keys: 1, places: QueryPlaces(positions: [0]),
                rules: ScoreRules(sink: .softmax, normaliser: .sigmoid()))
        }
    }
}

extension PartwiseAttentionTests.Whole {
    /// With NaN in some keys and values.
    init(_ rules: PartwiseAttentionTests.Rules, queries: Int, keys: Int, poisoned: Range<Int>) throws {
        let clean = try Self(rules, queries: queries, keys: keys)
        var (k, v) = (clean.tensors.keys, clean.tensors.values)
        for head in 0..<PartwiseAttentionTests.keyHeads {
            for key in poisoned {
                for c in 0..<PartwiseAttentionTests.d { k[(head * keys + key) * PartwiseAttentionTests.d + c] = .nan }
                for c in 0..<PartwiseAttentionTests.e { v[(head * keys + key) * PartwiseAttentionTests.e + c] = .nan }
            }
        }
        (self.rules, self.queries, self.keys) = (rules, queries, keys)
        tensors = (clean.tensors.queries, k, v)
        (allowed, bias) = (clean.allowed, clean.bias)
    }
}

extension PartwiseAttention {
    /// The results in new arrays.
    func results(_ running: RunningAttention) throws -> AttentionResult {
        var result = AttentionResult(
            output: [Float](repeating: 0, count: shape.outputCount),
            logSumExp: [Float](repeating: 0, count: shape.rowCount),
            sinkShare: [Float](repeating: 0, count: shape.rowCount))
        try result.output.withUnsafeMutableBufferPointer { output in
            try result.logSumExp.withUnsafeMutableBufferPointer { logSumExp in
                try result.sinkShare.withUnsafeMutableBufferPointer { share in
                    try finish(running, into: output, logSumExp: logSumExp, sinkShare: share)
                }
            }
        }
        return result
    }
}

extension AttentionResult {
    /// Some rows of each head, of so many.
    func rows(_ rows: [Int], of all: Int) -> AttentionResult {
        func part(_ tensor: [Float]) -> [Float] {
            rowsOfHeads(tensor, heads: PartwiseAttentionTests.heads, all: all, rows)
        }
        return AttentionResult(
            output: part(output), logSumExp: part(logSumExp), sinkShare: part(sinkShare))
    }
}

/// Some rows of each head of a tensor `[heads, all rows, dimension]`.
func rowsOfHeads(_ tensor: [Float], heads: Int, all: Int, _ rows: some Collection<Int>) -> [Float] {
    guard heads * all > 0 else { return [] }
    let dimension = tensor.count / (heads * all)
    var part: [Float] = []
    part.reserveCapacity(heads * rows.count * dimension)
    for head in 0..<heads {
        for row in rows {
            let first = (head * all + row) * dimension
            part += tensor[first..<first + dimension]
        }
    }
    return part
}
