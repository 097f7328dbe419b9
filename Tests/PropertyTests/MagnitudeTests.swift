// SPDX-License-Identifier: Apache-2.0
// MagnitudeTests.swift - every number of an attention call at every power of two that Float has: the formula's result, or a
// refusal with a reason, or, where a score or a sum itself is beyond Float, something that is visibly not a number.

import AttentionReference
import Foundation
import QuietAttention
import SeededInputs
import Testing

@Suite struct MagnitudeTests {
    /// Three rows over 70 keys, more than a block.
    private struct Call {
        static let (rows, keys, dimension, valueDimension) = (3, 70, 8, 5)
        var queries, keys, values: [Float]
        var bias: [Float]?
        var scale = 0.35
        var sink = -Float.infinity
        var softcap: Double?
        var slope: Float?
        var factors: [Double]?

        init() {
            var generator = SeededGenerator(seed: 21)
            queries = generator.normals(Self.rows * Self.dimension)
            keys = generator.normals(Self.keys * Self.dimension)
            values = generator.normals(Self.keys * Self.valueDimension)
        }

        func run() throws -> AttentionResult {
            let shape = try AttentionShape(
                queryHeads: 1, queries: Self.rows, keys: Self.keys, headDimension: Self.dimension,
                valueDimension: Self.valueDimension)
            let table = try factors.map { try BroadcastTensor($0, queries: Self.rows, keys: 1) }
            let attention = try Attention(
                shape, sink: .logits([sink]), scale: scale, scaling: table.map(ScoreScaling.table) ?? .constant,
                softcap: softcap, alibi: slope.map { .slopes([$0]) },
                bias: bias.map { try BroadcastTensor($0, keys: Self.keys) }, threads: 1)
            return try attention.forward(queries: queries, keys: keys, values: values)
        }

        /// The scores of a row in Double, how far Float may be from them, and whether Float can hold them in base 2.
        func scores(row: Int) -> (scores: [Double], error: Double, isInRange: Bool) {
            let factor = scale * (factors?[row] ?? 1)
            var (scores, error, largest) = ([Double](), 0.0, 0.0)
            let largestKey = Double(keys.map(abs).max()!)
            for j in 0..<Self.keys {
                let products = (0..<Self.dimension).map {
                    Double(queries[row * Self.dimension + $0]) * Double(keys[j * Self.dimension + $0]) * factor
                }
                let size = products.reduce(0) { $0 + abs($1) }
                var score = products.reduce(0, +)
                largest = max(largest, size / (softcap ?? 1))
                // A query element times its factor may be subnormal, and with a softcap so may the whole product.
                var off = size + 0x1p-127 * (softcap ?? 1) * largestKey * Double(Self.dimension)
                if let softcap { (score, off) = (softcap * tanh(score / softcap), min(off, softcap)) }
                let distance = Double(abs(row + Self.keys - Self.rows - j)) * Double(slope ?? 0)
                score -= distance
                off += abs(distance) + abs(Double(bias?[j] ?? 0))
                score += Double(bias?[j] ?? 0)
                scores.append(score)
                error = max(error, off)
            }
            return (scores, error * 0x1p-19, largest < 0x1p126)
        }
    }

    /// Expects the result of the formula, as near as scores of Float can be.
    private func expectRight(_ call: Call, _ context: String) throws {
        let result = try call.run()
        for row in 0..<Call.rows {
            let (scores, error, isInRange) = call.scores(row: row)
            let logits = scores + [Double(call.sink)]
            let top = logits.max()!
            let weights = logits.map { exp($0 - top) }
            let sum = weights.reduce(0, +)
            // How much weight may move: by a factor, or, where one score is far above the others, what these have at most.
            let best = logits.firstIndex(of: top)!
            let others = logits.indices.filter { $0 != best }.map { exp(min(0, logits[$0] - top + 2 * error)) }
            let moved = min(2, exp(min(2 * error, 1)) - 1, 2 * others.reduce(0, +)) + 0x1p-19
            for column in 0..<Call.valueDimension {
                let values = (0..<Call.keys).map { Double(call.values[$0 * Call.valueDimension + column]) }
                let exact = zip(weights, values).reduce(0) { $0 + $1.0 * $1.1 } / sum
                let output = Double(result.output[row * Call.valueDimension + column])
                let isSumInRange = values.reduce(0) { $0 + abs($1) } < 0x1p126
                if !(isInRange && isSumInRange), !output.isFinite { continue }
                let largest = values.map(abs).max()!
                #expect(abs(output - exact) <= moved * largest + 0x1p-140, "\(context), row \(row)")
            }
            guard isInRange || result.logSumExp[row].isFinite else { continue }
            let exact = top + log(sum)
            #expect(abs(Double(result.logSumExp[row]) - exact) <= error + 0x1p-18 * (1 + abs(exact)), "\(context), lse")
        }
    }

    /// What is refused is refused with a kind, and what is not extreme is not refused.
    private func sweep(
        _ name: String, accepted: ClosedRange<Int> = -149...127, _ change: (inout Call, Float) -> Void
    ) throws {
        for exponent in -149...127 {
            var call = Call()
            change(&call, Float(sign: .plus, exponent: exponent, significand: 1))
            do {
                try expectRight(call, "\(name) 2^\(exponent)")
            } catch let error as AttentionError {
                #expect(!accepted.contains(exponent), "\(name) 2^\(exponent): \(error)")
            }
        }
    }

    /// Numbers times a power of two, as far as Float goes.
    private static func scaled(_ numbers: [Float], _ scale: Float) -> [Float] {
        numbers.map { max(-.greatestFiniteMagnitude, min($0 * scale, .greatestFiniteMagnitude)) }
    }

    @Test func queries() throws { try sweep("queries") { call, x in call.queries = Self.scaled(call.queries, x) } }
    @Test func keys() throws { try sweep("keys") { call, x in call.keys = Self.scaled(call.keys, x) } }
    @Test func values() throws { try sweep("values") { call, x in call.values = Self.scaled(call.values, x) } }

    @Test(arguments: [-Float.infinity, 0, 2e38, -2e38])
    func biases(sink: Float) throws {
        var generator = SeededGenerator(seed: 22)
        let normal = generator.normals(Call.keys)
        try sweep("bias") { call, x in
            (call.bias, call.sink) = (Self.scaled(normal, x), sink)
        }
        try sweep("negative bias") { call, x in
            (call.bias, call.sink) = (normal.map { -min(abs($0) * x, .greatestFiniteMagnitude) }, sink)
        }
    }

    @Test func scales() throws {
        try sweep("scale", accepted: -126...126) { call, x in call.scale = Double(x) }
        try sweep("negative scale", accepted: -126...126) { call, x in call.scale = -Double(x) }
        try sweep("row factors", accepted: -120...126) { call, x in call.factors = [1, Double(x), -Double(x)] }
    }

    @Test func sinks() throws {
        try sweep("sink", accepted: -149...126) { call, x in call.sink = x }
        try sweep("negative sink") { call, x in call.sink = -x }
    }

    @Test func softcapsAndSlopes() throws {
        try sweep("softcap", accepted: -120...64) { call, x in call.softcap = Double(x) }
        try sweep("slope", accepted: -149...80) { call, x in call.slope = x }
        try sweep("negative slope", accepted: -149...80) { call, x in call.slope = -x }
    }

    /// A score that is no number shows in all results of its row, wherever a bias moves the others.
    @Test(arguments: KernelSet.available, [0, 3e38, -3.4e38] as [Float])
    func biasBesideNaN(_ kernels: KernelSet, _ bias: Float) throws {
        let shape = try AttentionShape(queryHeads: 1, queries: 1, keys: 2, headDimension: 1)
        let attention = try Attention(
            shape, sink: .softmax1, bias: BroadcastTensor([bias, bias], keys: 2), kernels: kernels)
        let result = try attention.forward(queries: [1], keys: [.nan, 0], values: [1, 2])
        #expect((result.output + result.logSumExp + result.sinkShare).allSatisfy { $0.isNaN })
    }

    /// A row masked with Float's least number, as files of Hugging Face have it, is the mean of its values.
    @Test(
        "masks that hold finite numbers", arguments: [-1e30, -2.3e38, -2.4e38, -3.3895314e38, -3.4028235e38] as [Float])
    func finiteMasks(least: Float) throws {
        var call = Call()
        call.bias = [Float](repeating: least, count: Call.keys)
        let result = try call.run()
        for column in 0..<Call.valueDimension {
            let values = (0..<Call.keys).map { Double(call.values[$0 * Call.valueDimension + column]) }
            let mean = values.reduce(0, +) / Double(Call.keys)
            #expect(abs(Double(result.output[column]) - mean) < 1e-6)
        }
        #expect(result.logSumExp.allSatisfy { abs($0 / least - 1) < 0x1p-20 })
        // One key less hidden than the others.
        call.bias![3] = least * 0.9999
        #expect(try call.run().output[..<5].elementsEqual(call.values[15..<20]))
        call.sink = 0
        #expect(try call.run().output.allSatisfy { $0 == 0 })
    }

    @Test("wide scores: kernels and reference", arguments: KernelSet.available)
    func referenceBits(kernels: KernelSet) throws {
        let call = Call()
        var generator = SeededGenerator(seed: 23)
        let bias = generator.normals(Call.rows * Call.keys).map { max(-3.4e38, min($0 * 2e38, 3.4e38)) }
        let shape = try AttentionShape(
            queryHeads: 1, queries: Call.rows, keys: Call.keys, headDimension: Call.dimension,
            valueDimension: Call.valueDimension)
        for sink in [-Float.infinity, 0, 2.2e38] {
            let result = try Attention(
                shape, sink: .logits([sink]), bias: BroadcastTensor(bias, queries: Call.rows, keys: Call.keys),
                kernels: kernels
            ).forward(queries: call.queries, keys: call.keys, values: call.values)
            var reference = ReferenceProblem(
                queries: Call.rows, keys: Call.keys, headDimension: Call.dimension,
                valueDimension: Call.valueDimension, sinks: [sink])
            reference.bias = ReferenceBroadcast(bias, extents: [1, 1, Call.rows, Call.keys])
            let expected = reference.forward(queries: call.queries, keys: call.keys, values: call.values)
            #expect(result.output == expected.output && result.logSumExp == expected.logSumExp)
        }
    }

    // MARK: - Norms, gates

    @Test("norms", arguments: [QueryKeyNorm.Kind.rms, .layer], [0, 1e-38, 1e-6, 1] as [Float])
    func norms(kind: QueryKeyNorm.Kind, epsilon: Float) throws {
        var generator = SeededGenerator(seed: 24)
        let normal = generator.normals(37)
        for exponent in -149...127 {
            let scale = Float(sign: .plus, exponent: exponent, significand: 1)
            let row = Self.scaled(normal, scale)
            let reference = ReferenceNorm(kind == .rms ? .rms : .layer, epsilon: epsilon)
            let exact = reference.oracle(row.map(Double.init))
            let largest = exact.map(abs).max()!
            // A subnormal mean is rounded to a multiple of 2^-149, and multiplied with the factor.
            let unit = 0x1p-148 * (epsilon >= 0x1p-80 ? max(1, 1 / Double(epsilon).squareRoot()) : 1)
            for kernels in KernelSet.available {
                var result = row
                if kind == .rms {
                    try RMSNorm(dimension: 37, epsilon: epsilon, kernels: kernels).apply(to: &result)
                } else {
                    try LayerNorm(dimension: 37, epsilon: epsilon, kernels: kernels).apply(to: &result)
                }
                #expect(result == reference.normalised(row), "2^\(exponent), \(kernels)")
                for (a, b) in zip(result, exact) {
                    #expect(abs(Double(a) - b) <= 0x1p-20 * largest + unit, "2^\(exponent)")
                }
            }
        }
    }

    @Test func gates() throws {
        var generator = SeededGenerator(seed: 25)
        let (normal, row) = (generator.normals(40), generator.normals(40))
        let gate = try OutputGate(.element, valueDimension: 8)
        for exponent in -149...127 {
            let scale = Float(sign: .plus, exponent: exponent, significand: 1)
            let logits = Self.scaled(normal, scale)
            var output = row
            try gate.apply(logits: logits, to: &output)
            for index in row.indices {
                let exact = Double(row[index]) / (1 + exp(-Double(logits[index])))
                #expect(
                    abs(Double(output[index]) - exact) <= 2e-7 * abs(exact) * (1 + abs(Double(logits[index]))) + 1e-36)
            }
        }
    }

    // MARK: - Caches, recurrences

    /// A power of two in the keys and its inverse in the queries is no change at all, and one in the values is one in the
    /// output, as long as nothing leaves the normal numbers.
    @Test("powers of two cancel", arguments: [KeyValueCache.Storage.float32, .bfloat16, .int8])
    func cachesScale(storage: KeyValueCache.Storage) throws {
        let call = Call()
        func run(keys: Int, values: Int) throws -> [Float] {
            func scaled(_ x: [Float], _ exponent: Int) -> [Float] {
                x.map { $0 * Float(sign: .plus, exponent: exponent, significand: 1) }
            }
            var cache = try KeyValueCache(
                keyValueHeads: 1, headDimension: Call.dimension, valueDimension: Call.valueDimension, storage: storage)
            try cache.append(keys: scaled(call.keys, keys), values: scaled(call.values, values))
            return try CachedAttention(queryHeads: 1, sink: .softmax)
                .attend(queries: scaled(call.queries, -keys), cache: cache).output
        }
        let plain = try run(keys: 0, values: 0)
        for exponent in stride(from: -80, through: 80, by: 1) {
            #expect(try run(keys: exponent, values: 0) == plain, "keys 2^\(exponent)")
            let scale = Float(sign: .plus, exponent: exponent, significand: 1)
            #expect(try run(keys: 0, values: exponent) == plain.map { $0 * scale }, "values 2^\(exponent)")
        }
        // Beyond, int8 loses bits of values near 2^-112, never more than 2^-120 a key.
        for exponent in -149 ..< -80 {
            let scale = Float(sign: .plus, exponent: exponent, significand: 1)
            for (a, b) in zip(try run(keys: 0, values: exponent), plain) {
                #expect(abs(a - b * scale) <= 70 * 0x1p-120, "values 2^\(exponent)")
            }
        }
    }

    @Test("recurrences", arguments: RecurrentAttention.Kind.allCases)
    func recurrences(kind: RecurrentAttention.Kind) throws {
        let shape = try AttentionShape(
            queryHeads: 1, queries: Call.rows, keys: Call.keys, headDimension: Call.dimension,
            valueDimension: Call.valueDimension)
        let reference = ReferenceProblem(
            queries: Call.rows, keys: Call.keys, headDimension: Call.dimension, valueDimension: Call.valueDimension,
            sinks: [0])
        for exponent in -149...127 {
            let scale = Float(sign: .plus, exponent: exponent, significand: 1)
            for part in [\Call.queries, \.keys, \.values] {
                var call = Call()
                call[keyPath: part] = call[keyPath: part].map { min(max($0 * scale, -3.4e38), 3.4e38) }
                let output = try RecurrentAttention(kind, shape, isCausal: false).forward(
                    queries: call.queries, keys: call.keys, values: call.values)
                let exact = reference.oracle(
                    kind == .linear ? .linear : .retention, queries: call.queries, keys: call.keys, values: call.values)
                let largest = exact.map(abs).max()!
                for (a, b) in zip(output, exact) {
                    #expect(abs(Double(a) - b) <= 1e-6 * largest + 0x1p-148 || (a.isInfinite && abs(b) > 3e38))
                }
            }
        }
    }
}
