// SPDX-License-Identifier: Apache-2.0
// FloatModeTests.swift - every entry point in every floating-point mode of its caller: the same bits, and the mode as it
// was.

import SeededInputs
import Synchronization
import TestSupport
import Testing

@testable import QuietAttention

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// A computation through the public interface, checks and preparation included, as bits.
struct ModeEntry: Sendable, CustomStringConvertible {
    let description: String
    let bits: @Sendable () throws -> [UInt64]

    init(_ description: String, _ bits: @escaping @Sendable () throws -> [UInt64]) {
        (self.description, self.bits) = (description, bits)
    }

    private static let shape = try! AttentionShape(
        batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 20, keys: 70, headDimension: 8)
    /// Values so small that some outputs are subnormal numbers.
    private static let tensors: Problem = {
        var problem = Problem(shape)
        for index in problem.values.indices { problem.values[index] *= 0x1p-127 }
        return problem
    }()
    /// Queries and keys so small that with ``faintGradient`` some gradients by products of bfloat16 are.
    private static let faint: Problem = {
        var problem = Problem(shape)
        for index in problem.queries.indices { problem.queries[index] *= 0x1p-50 }
        for index in problem.keys.indices { problem.keys[index] *= 0x1p-50 }
        return problem
    }()
    private static let tokens: CacheProblem = {
        CacheProblem(tokens: 1100) { ($0.headDimension, $0.group) = (6, 2) }
    }()
    private static let yarn = AttentionPositions.rotary(
        RotaryEmbedding(
            dimensions: 6,
            scaling: .yarn(
                factor: 4, trainedLength: 100, truncate: false)))
    /// Normal numbers, some of them very small.
    private static let numbers: [Float] = {
        var generator = SeededGenerator(seed: 8)
        return generator.normals(96).enumerated().map { $0 % 5 == 0 ? $1 * 0x1p-130 : $1 }
    }()
    private static let probabilities = (1...20).map { 1 / Double($0) }

    private static func bits(_ result: AttentionResult) -> [UInt64] { result.bits.map(UInt64.init) }
    private static func bits(_ values: [Float]) -> [UInt64] { values.map { UInt64($0.bitPattern) } }

    private static func forward(_ name: String, _ attention: @escaping @Sendable () throws -> Attention) -> ModeEntry {
        ModeEntry(name) { bits(try tensors.run(attention())) }
    }

    static let all: [ModeEntry] = forwards + backwards + caches + diagnostics + layers

    private static func bits(_ gradients: AttentionGradients) -> [UInt64] {
        let sums = [
            gradients.sinks, gradients.queryGain, gradients.queryBias, gradients.keyGain, gradients.keyBias,
            gradients.bias,
            gradients.slopes, gradients.scalableSoftmax, gradients.logScales,
        ]
        return bits(gradients.queries + gradients.keys + gradients.values + sums.flatMap { $0 })
    }

    /// The gradients of a step, computed and then added to themselves with those of scales.
    private static func backward(
        _ name: String, _ problem: Problem = tensors, _ outputGradient: [Float] = outputGradient,
        _ attention: @escaping @Sendable () throws -> Attention
    ) -> ModeEntry {
        ModeEntry("backward, \(name)") {
            let attention = try attention()
            var record = ForwardRecord()
            let (q, k, v) = (problem.queries, problem.keys, problem.values)
            let output = try attention.forward(queries: q, keys: k, values: v, recording: &record).output
            let dlse = attention.normaliser.hasSink ? Array(outputGradient.prefix(shape.rowCount)) : nil
            var gradients = try attention.backward(
                outputGradient: outputGradient, logSumExpGradient: dlse, queries: q, keys: k, values: v,
                output: output, record: record)
            gradients.logScales = [Float](repeating: 0, count: shape.queryHeads)
            try attention.addGradients(
                outputGradient: outputGradient, queries: q, keys: k, values: v, output: output, record: record,
                to: &gradients)
            return bits(gradients)
        }
    }

    // Made before anything is computed in another mode.
    private static let eight = (1...8).map { Float($0) / 3 }
    private static let halves = [tensors.queries, tensors.keys, tensors.values].map { $0.map { BFloat16($0) } }
    private static let outputGradient: [Float] = {
        var generator = SeededGenerator(seed: 3)
        return generator.normals(shape.outputCount)
    }()
    private static let faintGradient = outputGradient.map { $0 * 0x1p-70 }
    private static let bias = try! BroadcastTensor(
        (0..<20 * 70).map { Float($0 % 9) / 7 }, batch: 1, heads: 1, queries: 20, keys: 70)

    private static let backwards = [
        backward("causal") { try Attention(shape, sink: .logits([0.1, -3, 2, 0]), mask: .causal, scale: 0.3) },
        backward("threads") { try Attention(shape, mask: .causal, threads: 3, spread: true) },
        backward("rules") {
            try Attention(
                shape, sink: .logKeys(offset: 0.1), mask: .window(30),
                scaling: .scalableSoftmax([0.3, 0.2, 0.1, -0.7]),
                softcap: 5, alibi: .slopes([0.3, 0.1, 0.7, 0]), bias: bias)
        },
        backward("positions and norms") {
            try Attention(
                shape, sink: .softmax, mask: .causal, positions: .rotary(RotaryEmbedding(scaling: .ntk(factor: 3))),
                queryKeyNorm: .layer(epsilon: 1e-4, queryGain: eight, keyBias: eight))
        },
        backward("clipped softmax") {
            try Attention(shape, sink: .softmax, normaliser: .clippedSoftmax(gamma: .fixed(-0.03), zeta: 1.03))
        },
        backward("sigmoid") { try Attention(shape, sink: .softmax, normaliser: .sigmoid(bias: .fixed(-1))) },
        backward("softpick") { try Attention(shape, sink: .softmax, normaliser: .softpick(epsilon: 1e-6)) },
        backward("products of bfloat16", faint, faintGradient) {
            try Attention(
                shape, sink: .softmax1, mask: .causal, softcap: 5, alibi: .slopes([0.3, 0.1, 0.7, 0]), bias: bias,
                products: .bfloat16)
        },
        ModeEntry("backward, 16 bits") {
            let attention = try Attention(shape, sink: .softmax1, mask: .causal, positions: .rotary())
            let (q, k, v) = (halves[0], halves[1], halves[2])
            var output = [BFloat16](repeating: BFloat16(0), count: shape.outputCount)
            var record = ForwardRecord()
            var span = output.mutableSpan
            try attention.forward(queries: q.span, keys: k.span, values: v.span, into: &span, recording: &record)
            var (dq, dk, dv, ds) = (q, k, v, [Float](repeating: 1, count: shape.queryHeads))
            var dqSpan = dq.mutableSpan
            var dkSpan = dk.mutableSpan
            var dvSpan = dv.mutableSpan
            var dsSpan = ds.mutableSpan
            try attention.backward(
                outputGradient: outputGradient.span, queries: q.span, keys: k.span, values: v.span, output: output.span,
                record: record, queryGradients: &dqSpan, keyGradients: &dkSpan, valueGradients: &dvSpan,
                sinkGradients: &dsSpan, accumulating: true)
            return (dq + dk + dv).map { UInt64($0.bitPattern) } + bits(ds)
        },
    ]

    private static let forwards = [
        forward("forward") { try Attention(shape, sink: .softmaxN(0.3), mask: .causal, scale: 0.3) },
        forward("threads") { try Attention(shape, mask: .causal, threads: 3, spread: true) },
        forward("rules") {
            try Attention(
                shape, sink: .logKeys(offset: 0.1), mask: .window(30), scaling: .logKeys(base: 10), softcap: 5,
                alibi: .standard)
        },
        forward("positions") {
            try Attention(
                shape, sink: .softmax, mask: .causal, positions: .rotary(RotaryEmbedding(scaling: .ntk(factor: 3))),
                queryKeyNorm: .rms())
        },
        forward("layer norm") {
            try Attention(shape, sink: .softmax1, queryKeyNorm: .layer(epsilon: 1e-4))
        },
        forward("clipped softmax") {
            try Attention(shape, sink: .softmax, normaliser: .clippedSoftmax(gamma: .fixed(-0.03), zeta: 1.03))
        },
        forward("sigmoid") {
            try Attention(shape, sink: .softmax, normaliser: .sigmoid(bias: .fixed(-1)))
        },
        forward("softpick") { try Attention(shape, sink: .softmax, normaliser: .softpick(epsilon: 1e-6)) },
        ModeEntry("keys a part at a time") { try partwise() },
        ModeEntry("weights") {
            bits(
                try Attention(shape, sink: .softmax1, mask: .causal).weights(
                    queries: tensors.queries, keys: tensors.keys))
        },
    ]

    /// Keys and values of 1100 tokens as two parts.
    private static func partwise() throws -> [UInt64] {
        let attention = try PartwiseAttention(
            queryHeads: tokens.queryHeads, keyValueHeads: tokens.keyValueHeads, headDimension: 6,
            valueDimension: tokens.valueDimension, keys: 1100, places: QueryPlaces(positions: Array(1080..<1100)),
            rules: ScoreRules(sink: .softmaxN(0.3)), mask: .causal, positions: yarn, queryKeyNorm: .rms())
        let running = try attention.begin()
        let queries = tokens.queries(1080..<1100)
        for range in [0..<1024, 1024..<1100] {
            let part = tokens.tokens(range)
            try part.keys.withUnsafeBufferPointer { keys in
                try part.values.withUnsafeBufferPointer { values in
                    try queries.withUnsafeBufferPointer {
                        try attention.add(keys, values: values, of: range, queries: $0, to: running)
                    }
                }
            }
        }
        return bits(try attention.results(running))
    }

    private static let caches =
        CacheNumbers.all.flatMap { numbers in
            [AttentionPositions.none, yarn].map { positions in
                ModeEntry("cache \(numbers) \(positions.encoding)") { try cached(numbers, positions) }
            }
        }

    private static func cached(
        _ numbers: CacheNumbers, _ positions: AttentionPositions
    ) throws -> [UInt64] {
        var cache = try KeyValueCache(
            keyValueHeads: tokens.keyValueHeads, headDimension: 6, valueDimension: tokens.valueDimension,
            storage: numbers.storage, positions: positions, queryKeyNorm: .rms(), products: numbers.products)
        try tokens.append(0..<1000, to: &cache)
        try tokens.append(1000..<1100, to: &cache)
        let attention = try CachedAttention(
            queryHeads: tokens.queryHeads, sink: .softmaxN(3), products: numbers.products, threads: 2)
        let queries = tokens.queries(1090..<1100)
        let left = try attention.partial(queries: queries, cache: cache, keys: 0..<1024)
        let right = try attention.partial(queries: queries, cache: cache, keys: 1024..<1100)
        let whole = try attention.attend(queries: queries, cache: cache)
        return bits(whole) + bits(try left.merged(with: right).finish(sink: .softmaxN(3)))
    }

    private static let diagnostics = [
        ModeEntry("diagnostics") {
            let attention = try Attention(shape, sink: .softmax1, mask: .causal)
            return try attention.diagnostics(queries: tensors.queries, keys: tensors.keys).flatMap {
                [$0.entropy, $0.keyEntropy, $0.sinkShare, $0.l1OverL2, $0.largestScore].map(\.bitPattern)
            }
        },
        ModeEntry("head diagnostics") {
            let attention = try Attention(shape, sink: .softmax1, mask: .causal)
            return try attention.headDiagnostics(queries: tensors.queries, keys: tensors.keys).flatMap {
                [$0.entropy, $0.keyEntropy, $0.sinkShare, $0.meanOverMaximum].map(\.bitPattern)
            }
        },
        ModeEntry("tensor statistics") {
            let x = TensorStatistics(numbers)
            return [
                x.mean, x.standardDeviation, x.l1OverL2, x.rawKurtosis, x.excessKurtosis, x.outlierShare, x.int8Step,
                x.int8SignalToNoise,
            ].map(\.bitPattern)
        },
        ModeEntry("entropy normalisation") {
            let x = try EntropyNormalisation(probabilities, entropy: 2)
            return ([x.exponent] + x.probabilities).map(\.bitPattern)
        },
    ]

    private static let layers =
        [
            ModeEntry("RMSNorm") {
                var rows = numbers
                try RMSNorm(dimension: 12, epsilon: 1e-6).apply(to: &rows)
                return bits(rows)
            },
            ModeEntry("LayerNorm") {
                var rows = numbers
                try LayerNorm(dimension: 12).apply(to: &rows)
                return bits(rows)
            },
            ModeEntry("output gate") {
                var rows = numbers
                try OutputGate(.element, valueDimension: 12).apply(logits: numbers, to: &rows)
                return bits(rows)
            },
            ModeEntry("RMSNorm, gradients") {
                let gradients = try RMSNorm(dimension: 12, gain: (1...12).map { Float($0) }).gradients(
                    rows: numbers, outputGradient: numbers.reversed())
                return bits(gradients.rows + gradients.gain)
            },
            ModeEntry("output gates, gradients") {
                try OutputGate.Granularity.allCases.flatMap { granularity in
                    let logits = granularity == .head ? Array(numbers.prefix(8)) : numbers
                    let gradients = try OutputGate(granularity, valueDimension: 12).gradients(
                        logits: logits, output: numbers, outputGradient: numbers.reversed())
                    return bits(gradients.output + gradients.logits)
                }
            },
            ModeEntry("slopes") { bits(try ALiBi.slopes(queryHeads: 12)) },
        ]
        + [.xavierUniform(), .xavierNormal(), .normal()].map { (initialization: WeightInitialization) in
            ModeEntry("\(initialization)") { bits(try initialization.weights(fanIn: 9, fanOut: 7, seed: 3)) }
        }
        + RecurrentAttention.Kind.allCases.map { kind in
            ModeEntry("\(kind)") {
                bits(
                    try RecurrentAttention(kind, shape, isCausal: true).forward(
                        queries: tensors.queries, keys: tensors.keys, values: tensors.values))
            }
        }
        + RecurrentAttention.Kind.allCases.map { kind in
            ModeEntry("\(kind), gradients") {
                bits(
                    try RecurrentAttention(kind, shape, isCausal: false).backward(
                        outputGradient: outputGradient, queries: tensors.queries, keys: tensors.keys,
                        values: tensors.values))
            }
        }
}

@Suite struct FloatModeTests {
    @Test(arguments: ModeEntry.all)
    func modesChangeNothing(_ entry: ModeEntry) throws {
        let expected = try entry.bits()
        for mode in FloatingPointMode.changing {
            let (bits, isKept) = try mode.run(entry.bits)
            #expect(bits == expected, "\(mode)")
            #expect(isKept, "\(mode)")
        }
    }

    /// Or modes without them would change nothing anyway.
    @Test(arguments: ["forward", "backward, products of bfloat16"])
    func someNumbersAreSubnormal(_ name: String) throws {
        let entry = try #require(ModeEntry.all.first { $0.description == name })
        #expect(try entry.bits().contains { Float(bitPattern: UInt32($0)).isSubnormal })
    }

    /// In a process of its own: a signal would end it.
    @Test func nothingIsRaised() async {
        await #expect(processExitsWith: .success) {
            for entry in ModeEntry.all {
                let expected = try entry.bits()
                for mode in FloatingPointMode.trapping {
                    let (bits, isKept) = try mode.run(entry.bits)
                    guard bits == expected, isKept else { exit(EXIT_FAILURE) }
                }
            }
        }
    }

    /// Whoever calls first, helpers compute as the contract says: those that come later rely on it.
    @Test(arguments: FloatingPointMode.changing + FloatingPointMode.trapping)
    func helpersDoNotInheritTheMode(_ mode: FloatingPointMode) {
        let pool = WorkerPool(helpers: 1)
        let usual = FloatingPointMode.current
        let seen = Atomic(UInt64.max)
        for _ in 0..<60_000 where seen.load(ordering: .relaxed) == .max {
            _ = mode.run {
                pool.run(workers: 2, woken: 2) { worker in
                    if worker == 1 { seen.store(FloatingPointMode.current, ordering: .relaxed) } else { usleep(1000) }
                }
            }
        }
        #expect(seen.load(ordering: .relaxed) == usual)
    }
}
