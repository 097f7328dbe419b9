// SPDX-License-Identifier: Apache-2.0
// PartwiseGradientTests.swift - gradients of rows against keys, a part of each at a time: the bits of the backward pass.

import SeededInputs
import TestSupport
import Testing

@testable import QuietAttention

/// Floats in memory of their own.
private final class Memory {
    let buffer: UnsafeMutableBufferPointer<Float>

    init(_ array: [Float]) {
        buffer = .allocate(capacity: array.count)
        _ = buffer.initialize(from: array)
    }

    convenience init(zeros count: Int) { self.init([Float](repeating: 0, count: count)) }

    deinit { buffer.deallocate() }

    var reading: UnsafeBufferPointer<Float> { UnsafeBufferPointer(buffer) }
    var array: [Float] { Array(buffer) }
}

@Suite struct PartwiseGradientTests {
    private typealias Rules = PartwiseAttentionTests.Rules
    private typealias Whole = PartwiseAttentionTests.Whole
    private static let (heads, keyHeads, d, e) = (
        PartwiseAttentionTests.heads, PartwiseAttentionTests.keyHeads, PartwiseAttentionTests.d,
        PartwiseAttentionTests.e
    )
    private static var group: Int { heads / keyHeads }
    private static let (queries, keys, panel) = (300, 2100, 128)
    private static let chunks = stride(from: 0, to: keys, by: 1024).map { $0..<min($0 + 1024, keys) }
    private static let vectors = (
        rows: (0..<heads * d).map { 0.5 + Float($0 % 5) / 4 }, keys: (0..<d).map { 1.5 - Float($0 % 3) / 2 }
    )
    private static let factors: (slopes: [Float], scales: [Double]) = (
        [0.1, -0.2, 0.3, 0, 0.5, 1], [0.5, 1, -0.3, 2, 0.1, 1.5]
    )
    private static let rules =
        PartwiseAttentionTests.rules.filter { !$0.bias && !$0.allowed } + [
            Rules(
                name: "slopes, scales", scaling: .scalableSoftmax(factors.scales), softcap: 3,
                alibi: .slopes(factors.slopes)),
            Rules(
                name: "slopes, scales of turned rows", mask: .window(before: 900, after: 70),
                scaling: .scalableSoftmax(factors.scales), alibi: .slopes(factors.slopes),
                positions: .rotary(RotaryEmbedding(base: 500)),
                norm: .rms(queryGain: vectors.rows, keyGain: vectors.keys)),
            Rules(
                name: "gains, biases", positions: .rotary(RotaryEmbedding(base: 500)).offset(by: 3),
                norm: .layer(
                    queryGain: vectors.keys, queryBias: vectors.rows, keyGain: vectors.keys, keyBias: vectors.keys)),
        ]

    private static let bfloat16Products = [
        Rules(
            name: "products", scaling: .scalableSoftmax(factors.scales), softcap: 3, alibi: .slopes(factors.slopes),
            products: .bfloat16),
        Rules(
            name: "products of turned rows", mask: .window(before: 900, after: 70),
            positions: .rotary(RotaryEmbedding(base: 500)),
            norm: .rms(queryGain: vectors.rows, keyGain: vectors.keys), products: .bfloat16),
    ]

    /// A forward pass, its gradients, and the problem of all rows whose keys come a part at a time.
    private struct Pass {
        let rules: Rules
        let whole: Whole
        let kernels: KernelSet
        let all: PartwiseAttention
        let expected: AttentionGradients
        let record: ForwardRecord
        let outputGradient: [Float]
        let deltas: Memory

        init(_ rules: Rules, _ kernels: KernelSet) throws {
            (self.rules, self.kernels) = (rules, kernels)
            whole = try Whole(rules, queries: queries, keys: keys)
            let (q, k, v) = whole.tensors
            var generator = SeededGenerator(seed: 8)
            outputGradient = generator.normals(heads * queries * e)
            let logSumExpGradient = generator.normals(heads * queries)
            var record = ForwardRecord()
            let attention = try whole.attention
            let result = try attention.forward(queries: q, keys: k, values: v, recording: &record)
            expected = try attention.backward(
                outputGradient: outputGradient, logSumExpGradient: logSumExpGradient, queries: q, keys: k, values: v,
                output: result.output, record: record)
            all = try whole.partwise(Array(0..<queries), kernels: kernels)
            deltas = Memory(logSumExpGradient)
            let given = [result.output, outputGradient, logSumExpGradient].map(Memory.init)
            try all.deltas(
                output: given[0].reading, outputGradient: given[1].reading, logSumExpGradient: given[2].reading,
                record: record, into: deltas.buffer)
            withExtendedLifetime(given) {}
            self.record = record
        }
    }

    /// What panels and chunks sum up.
    private struct Sums {
        /// Queries and keys as they are multiplied.
        let queries: Memory
        let keys: [Memory]
        let queryGradient: Memory
        let keyGradients, valueGradients: [Memory]
        let lanes: Memory

        /// Panels of rows meet chunks of keys in the order of waves, as machines do that own chunks and pass rows on.
        init(_ pass: Pass) throws {
            let (q, k, v) = pass.whole.tensors
            let rows = Memory(q)
            queries = Memory(zeros: q.count)
            try pass.all.prepareQueries(rows.reading, into: queries.buffer)
            withExtendedLifetime(rows) {}
            keys = try chunks.map { range in
                let part = Memory(pass.whole.part(k, heads: keyHeads, range))
                let prepared = Memory(zeros: part.buffer.count)
                try pass.all.prepareKeys(part.reading, of: range, into: prepared.buffer)
                withExtendedLifetime(part) {}
                return prepared
            }
            queryGradient = Memory(zeros: q.count)
            keyGradients = chunks.map { Memory(zeros: keyHeads * $0.count * d) }
            valueGradients = chunks.map { Memory(zeros: keyHeads * $0.count * e) }
            lanes = Memory(zeros: heads * PartwiseGradientTests.queries * 16)
            let parts = (PartwiseGradientTests.queries + panel - 1) / panel
            let tasks = (0..<group * parts).flatMap { p in chunks.indices.map { (panel: p, chunk: $0) } }
                .sorted { ($0.panel + 2 * $0.chunk, $0.chunk) < ($1.panel + 2 * $1.chunk, $1.chunk) }
            for task in tasks {
                let (groupHead, part) = task.panel.quotientAndRemainder(dividingBy: parts)
                let rows = part * panel..<min((part + 1) * panel, PartwiseGradientTests.queries)
                let values = Memory(pass.whole.part(v, heads: keyHeads, chunks[task.chunk]))
                try add(pass, groupHead, rows, task.chunk, values)
            }
        }

        private func add(_ pass: Pass, _ groupHead: Int, _ rows: Range<Int>, _ chunk: Int, _ values: Memory) throws {
            func places(_ tensor: [Float]) -> [Range<Int>] {
                let dimension = tensor.count / (heads * PartwiseGradientTests.queries)
                return (0..<keyHeads).map {
                    let first = (($0 * group + groupHead) * PartwiseGradientTests.queries + rows.lowerBound) * dimension
                    return first..<first + rows.count * dimension
                }
            }
            func of(_ tensor: [Float]) -> Memory { Memory(places(tensor).flatMap { tensor[$0] }) }
            func put(_ part: Memory, _ tensor: Memory) {
                for (index, place) in places(tensor.array).enumerated() {
                    for (offset, at) in place.enumerated() {
                        tensor.buffer[at] = part.buffer[index * place.count + offset]
                    }
                }
            }
            var plain = pass.rules
            (plain.positions, plain.norm) = (.none, nil)
            let multiplied = try Whole(plain, queries: PartwiseGradientTests.queries, keys: PartwiseGradientTests.keys)
            let (dq, rowLanes) = (of(queryGradient.array), of(lanes.array))
            let parts = [
                queries.array, pass.outputGradient, pass.record.references, pass.record.factors, pass.deltas.array,
            ].map(of)
            try multiplied.partwise(Array(rows), kernels: pass.kernels).addGradients(
                of: .init(
                    queries: parts[0].reading, outputGradient: parts[1].reading, references: parts[2].reading,
                    factors: parts[3].reading, deltas: parts[4].reading, queryGradient: dq.buffer,
                    slopeLanes: pass.rules.alibi == nil ? nil : rowLanes.buffer), groupHead: groupHead,
                against: .init(
                    keys: keys[chunk].reading, values: values.reading, keyGradient: keyGradients[chunk].buffer,
                    valueGradient: valueGradients[chunk].buffer, range: chunks[chunk]))
            put(dq, queryGradient)
            put(rowLanes, lanes)
            withExtendedLifetime(parts) {}
        }
    }

    @Test(arguments: rules, KernelSet.available)
    private func panelsAndChunksGiveTheWhole(_ rules: Rules, _ kernels: KernelSet) throws {
        try requireWhole(rules, kernels)
    }

    @Test(arguments: bfloat16Products, [KernelSet.available[0]] + KernelSet.emulated)
    private func productsOfBFloat16GiveTheWhole(_ rules: Rules, _ kernels: KernelSet) throws {
        try requireWhole(rules, kernels)
    }

    private func requireWhole(_ rules: Rules, _ kernels: KernelSet) throws {
        let pass = try Pass(rules, kernels)
        let own = try Self.record(pass.all, pass.whole)
        #expect(own.references.map(\.bitPattern) == pass.record.references.map(\.bitPattern))
        #expect(own.factors.map(\.bitPattern) == pass.record.factors.map(\.bitPattern))
        let sums = try Sums(pass)
        #expect(pass.all.preparesRows == (bits(sums.queries.array) != bits(pass.whole.tensors.queries)))
        try Self.expectNumbersOfHeads(pass, sums)
        try Self.expectQueries(pass, sums)
        try Self.expectKeys(pass, sums)
        for (range, found) in zip(Self.chunks, sums.valueGradients) {
            #expect(bits(found.array) == bits(pass.whole.part(pass.expected.values, heads: Self.keyHeads, range)))
        }
    }

    private static func expectNumbersOfHeads(_ pass: Pass, _ sums: Sums) throws {
        func ofHeads(_ term: (Int) -> Float) -> [Float] {
            (0..<heads).map { head in orderedSum(queries) { term(head * queries + $0) } }
        }
        if pass.rules.alibi?.given != nil {
            let slopes = ofHeads { row in orderedSum(16) { sums.lanes.buffer[row * 16 + $0] } }
            #expect(bits(slopes) == bits(pass.expected.slopes))
            #expect(slopes.contains { $0 != 0 })
        }
        guard case .scalableSoftmax = pass.rules.scaling else { return }
        let terms = Memory(zeros: heads * queries)
        try pass.all.logScaleTerms(
            queries: sums.queries.reading, queryGradient: sums.queryGradient.reading, into: terms.buffer)
        let scales = try pass.rules.scaling.scalableSoftmaxGradient(logScales: ofHeads { terms.buffer[$0] })
        #expect(bits(scales) == bits(pass.expected.scalableSoftmax))
        #expect(scales.contains { $0 != 0 })
    }

    private static func expectQueries(_ pass: Pass, _ sums: Sums) throws {
        let runs = heads * ((queries + 63) / 64) * d
        let (rows, gain, bias) = (Memory(pass.whole.tensors.queries), Memory(zeros: runs), Memory(zeros: runs))
        let norm = pass.rules.norm
        try pass.all.finishQueryGradient(
            sums.queryGradient.buffer, queries: rows.reading,
            gain: norm?.queryGain == nil ? nil : gain.buffer, bias: norm?.queryBias == nil ? nil : bias.buffer)
        withExtendedLifetime(rows) {}
        #expect(bits(sums.queryGradient.array) == bits(pass.expected.queries))
        #expect(bits(total([gain], heads, norm?.queryGain)) == bits(pass.expected.queryGain))
        #expect(bits(total([bias], heads, norm?.queryBias)) == bits(pass.expected.queryBias))
    }

    private static func expectKeys(_ pass: Pass, _ sums: Sums) throws {
        let norm = pass.rules.norm
        var (gains, biases): ([Memory], [Memory]) = ([], [])
        for (chunk, range) in chunks.enumerated() {
            let runs = keyHeads * ((range.count + 63) / 64) * d
            let rows = Memory(pass.whole.part(pass.whole.tensors.keys, heads: keyHeads, range))
            gains.append(Memory(zeros: runs))
            biases.append(Memory(zeros: runs))
            try pass.all.finishKeyGradient(
                sums.keyGradients[chunk].buffer, keys: rows.reading, of: range,
                gain: norm?.keyGain == nil ? nil : gains[chunk].buffer,
                bias: norm?.keyBias == nil ? nil : biases[chunk].buffer)
            withExtendedLifetime(rows) {}
            #expect(
                bits(sums.keyGradients[chunk].array)
                    == bits(pass.whole.part(pass.expected.keys, heads: keyHeads, range)))
        }
        #expect(bits(total(gains, keyHeads, norm?.keyGain)) == bits(pass.expected.keyGain))
        #expect(bits(total(biases, keyHeads, norm?.keyBias)) == bits(pass.expected.keyBias))
    }

    /// Sums over runs of 64 rows, `[heads, runs, D]` of each part, added heads outermost.
    private static func total(_ parts: [Memory], _ heads: Int, _ vector: [Float]?) -> [Float] {
        guard let vector else { return [] }
        var total = [Float](repeating: 0, count: vector.count)
        for head in 0..<heads {
            let first = vector.count == d ? 0 : head * d
            for part in parts {
                let own = part.array[head * part.buffer.count / heads..<(head + 1) * part.buffer.count / heads]
                for (index, sum) in own.enumerated() { total[first + index % d] += sum }
            }
        }
        #expect(total.contains { $0 != 0 })
        return total
    }

    /// What finishing keeps.
    private static func record(_ attention: PartwiseAttention, _ whole: Whole) throws -> ForwardRecord {
        let running = try attention.begin()
        let (q, k, v) = (Memory(whole.tensors.queries), Memory(whole.tensors.keys), Memory(whole.tensors.values))
        try attention.add(k.reading, values: v.reading, of: 0..<whole.keys, queries: q.reading, to: running)
        withExtendedLifetime([q, k, v]) {}
        var record = ForwardRecord()
        var output = [Float](repeating: 0, count: attention.shape.outputCount)
        try output.withUnsafeMutableBufferPointer { try attention.finish(running, into: $0, recording: &record) }
        return record
    }

    @Test func whatHasNoGradientsOfParts() throws {
        func add(_ attention: PartwiseAttention, _ groupHead: Int = 0) throws {
            let sums = UnsafeMutableBufferPointer<Float>(start: nil, count: 0)
            let none = UnsafeBufferPointer(sums)
            try attention.addGradients(
                of: .init(
                    queries: none, outputGradient: none, references: none, factors: none, deltas: none,
                    queryGradient: sums), groupHead: groupHead,
                against: .init(keys: none, values: none, keyGradient: sums, valueGradient: sums, range: 0..<9))
        }
        for (index, argument) in [(7, "positions"), (9, "positions"), (10, "bias"), (11, "mask.allowing")] {
            let whole = try Whole(PartwiseAttentionTests.rules[index], queries: 4, keys: 9)
            expectRefusal(.composition, argument) { try add(whole.partwise([0, 1, 2, 3])) }
        }
        let whole = try Whole(PartwiseAttentionTests.rules[1], queries: 4, keys: 9)
        expectRefusal(.position, "places") { try add(whole.partwise([0, 2])) }
        expectRefusal(.headGroups, "groupHead") { try add(whole.partwise([0, 1]), 3) }
        expectRefusal(.elementCount, "rows.queries") { try add(whole.partwise([0, 1])) }
    }

    @Test func whatRowsHaveNotIsRefused() throws {
        let whole = try Whole(PartwiseAttentionTests.rules[9], queries: 4, keys: 9)
        let attention = try whole.partwise([0, 1, 2, 3])
        let (rows, keys) = (Memory(whole.tensors.queries), Memory(whole.tensors.keys))
        expectRefusal(.composition, "queryGain") {
            try attention.finishQueryGradient(rows.buffer, queries: rows.reading, gain: rows.buffer)
        }
        expectRefusal(.composition, "keyBias") {
            try attention.finishKeyGradient(keys.buffer, keys: keys.reading, of: 0..<9, bias: keys.buffer)
        }
        expectRefusal(.elementCount, "gradient") {
            try attention.finishQueryGradient(keys.buffer, queries: rows.reading)
        }
        expectRefusal(.keyRange, "range") {
            try attention.prepareKeys(keys.reading, of: 1..<9, into: keys.buffer)
        }
        expectRefusal(.elementCount, "prepared") { try attention.prepareQueries(rows.reading, into: keys.buffer) }
        expectRefusal(.composition, "scaling") { _ = try ScoreScaling.constant.scalableSoftmaxGradient(logScales: []) }
        expectRefusal(.scaling, "scaling.scalableSoftmax[1]") {
            _ = try ScoreScaling.scalableSoftmax([1, 0]).scalableSoftmaxGradient(logScales: [1, 1])
        }
        expectRefusal(.elementCount, "logScales") {
            _ = try ScoreScaling.scalableSoftmax([1, 2]).scalableSoftmaxGradient(logScales: [1])
        }
    }
}
