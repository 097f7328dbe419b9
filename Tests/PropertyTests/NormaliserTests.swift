// SPDX-License-Identifier: Apache-2.0
// NormaliserTests.swift - the normalisers beside softmax: golden values, and what holds between them.

import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct NormaliserTests {
    // MARK: - Golden values

    private func golden(_ normaliser: Golden.Normaliser) throws -> AttentionNormaliser {
        switch normaliser.name {
        case "clipped_softmax":
            .clippedSoftmax(gamma: .fixed(try #require(normaliser.gamma)), zeta: try #require(normaliser.zeta))
        case "sigmoid_bias_minus_log_n": .sigmoid(bias: .minusLog(.visible))
        case "softpick": .softpick()
        case "relu2_over_n": .reluSquared(divisor: .visible)
        case "relu2_normalised": .normalisedReluSquared()
        default: throw TestFailure("unknown normaliser \(normaliser.name)")
        }
    }

    /// The weights of scores `x` among keys that are hidden, which must count nowhere.
    @Test("golden weights", arguments: kernelSets, Golden.shared.otherNormalisers)
    func goldenWeights(kernels: KernelSet, row: Golden.Normaliser) throws {
        let (count, hidden) = (row.x.count, 3)
        let all = count + hidden
        let shape = try AttentionShape(
            queryHeads: 1, queries: 1, keys: all, headDimension: 1, valueDimension: all)
        let normaliser = try golden(row)
        let attention = try Attention(
            shape, sink: .softmax, mask: .none.keyLengths([count]), scale: 1,
            normaliser: normaliser, kernels: kernels)
        let result = try attention.forward(
            queries: [1], keys: row.x.floats + [Float](repeating: .nan, count: hidden),
            values: (0..<all * all).map { $0 / all == $0 % all ? 1 : 0 })
        try requireClose(
            "weights", result.output, row.weights.doubles + [Double](repeating: 0, count: hidden),
            tolerance: { 1e-6 * $0 + 1e-8 }, "\(kernels): \(row)")
        #expect(result.logSumExp.isEmpty == !normaliser.hasSink)
    }

    @Test("slopes of ALiBi", arguments: Golden.shared.positions.alibiSlopes.keys.sorted())
    func slopes(heads: String) throws {
        let slopes = try ALiBi.slopes(queryHeads: #require(Int(heads)))
        #expect(slopes == Golden.shared.positions.alibiSlopes[heads]?.map { Float($0) })
    }

    /// log_512 n as the factors of rows of 1 to n keys: equal keys of 1 make scores of it, and the log-sum-exp shows them.
    @Test("log_512 n", arguments: kernelSets)
    func logKeys(kernels: KernelSet) throws {
        let count = 1024
        let shape = try AttentionShape(queryHeads: 1, queries: count, keys: count, headDimension: 1)
        let ones = [Float](repeating: 1, count: count)
        let attention = try Attention(
            shape, sink: .softmax, mask: .causal, scale: 1, scaling: .logKeys(), kernels: kernels)
        let result = try attention.forward(queries: ones, keys: ones, values: ones)
        for (text, factor) in Golden.shared.positions.log512 where (Int(text) ?? 0) <= count {
            let keys = try #require(Int(text))
            let expected = factor.value + logarithm(Double(keys))
            #expect(abs(Double(result.logSumExp[keys - 1]) - expected) < 6e-7 * max(1, expected), "\(keys) keys")
        }
    }

    // MARK: - What holds between them

    private static let unclipped = AttentionNormaliser.clippedSoftmax(gamma: .fixed(0))

    @Test("clipped softmax that clips nothing is softmax", arguments: kernelSets)
    func unclippedSoftmax(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            let clipped = try problem.run(kernels, normaliser: Self.unclipped)
            let softmax = try problem.run(kernels, normaliser: .softmax)
            try requireClose(
                "out", clipped.output, softmax.output.map(Double.init), tolerance: { 1e-6 * abs($0) + 2e-6 },
                "\(problem)")
            try requireSameBits("lse", clipped.logSumExp, softmax.logSumExp, "\(problem)")
            try requireSameBits("sink share", clipped.sinkShare, softmax.sinkShare, "\(problem)")
        }
    }

    @Test("one key: sigmoid is softmax_1", arguments: kernelSets)
    func oneKey(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            var problem = problem
            (problem.keys, problem.mask) = (1, .none)
            let sigmoid = try problem.run(kernels, normaliser: .sigmoid(bias: .fixed(0)))
            let softmax = try problem.run(kernels, normaliser: .softmax)
            try requireClose(
                "out", sigmoid.output, softmax.output.map(Double.init), tolerance: { 2e-6 * abs($0) + 1e-12 },
                "\(problem)")
        }
    }

    @Test("squared ReLU is homogeneous: normalised, a factor cancels; with a sink it does not", arguments: kernelSets)
    func homogeneity(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            func run(_ normaliser: AttentionNormaliser, scale: Double) throws -> [Float] {
                try problem.run(kernels, normaliser: normaliser, scale: scale).output
            }
            let plain = AttentionNormaliser.reluSquared(divisor: .fixed(3))
            try requireSameBits("plain", try run(plain, scale: 1), try run(plain, scale: 0.5).map { 4 * $0 }, "")
            let normalised = AttentionNormaliser.normalisedReluSquared()
            try requireSameBits(
                "normalised", try run(normalised, scale: 1), try run(normalised, scale: 0.5), "\(problem)")
            let quiet = AttentionNormaliser.normalisedReluSquared(sink: 1)
            let outputs = (try run(quiet, scale: 1), try run(quiet, scale: 0.5))
            if try run(normalised, scale: 1).contains(where: { $0 != 0 }) {
                try require(outputs.0 != outputs.1, "a sink that changes nothing: \(problem)")
            }
        }
    }

    @Test("softpick: no weight for scores of 0 and below, weights sum to less than 1", arguments: kernelSets)
    func softpick(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            var problem = problem
            (problem.headDimension, problem.mask, problem.keys) = (1, .none, min(problem.keys, 130))
            let weights = try problem.run(kernels, normaliser: .softpick(), scale: 1, unitValues: true).output
            for row in 0..<problem.queries {
                let picked = weights[row * problem.keys..<(row + 1) * problem.keys]
                for (key, weight) in zip(0..<problem.keys, picked) {
                    let score = problem.queryData[row] * problem.keyData[key]
                    try require(score > 0 ? weight >= 0 : weight == 0, "weight \(weight) of score \(score)")
                }
                try require(picked.reduce(0, +) < 1.00001, "weights of row \(row) sum to \(picked.reduce(0, +))")
            }
        }
    }

    @Test("rows without keys put out 0; hidden keys change no bit", arguments: kernelSets, SmallProblem.normalisers)
    func hiddenKeys(kernels: KernelSet, normaliser: AttentionNormaliser) throws {
        try forAll(SmallProblem.self, cases: 20) { problem in
            var problem = problem
            problem.mask = .causal.keyLengths([problem.keys / 2])
            let expected = try problem.run(kernels, normaliser: normaliser)
            for row in 0..<problem.queries where row + problem.keys - problem.queries < 0 || problem.keys < 2 {
                let output = expected.output[row * problem.valueDimension..<(row + 1) * problem.valueDimension]
                try require(output.allSatisfy { $0 == 0 }, "row \(row) sees no key: \(output)")
            }
            for key in problem.keys / 2..<problem.keys {
                problem.keyData[key * problem.headDimension] = .nan
                problem.valueData[key * problem.valueDimension] = .infinity
            }
            let actual = try problem.run(kernels, normaliser: normaliser)
            try requireSameBits("out", actual.output, expected.output, "\(problem)")
        }
    }

    @Test("NaN at a visible key makes its rows NaN and no others", arguments: kernelSets, SmallProblem.normalisers)
    func notANumber(kernels: KernelSet, normaliser: AttentionNormaliser) throws {
        try forAll(SmallProblem.self, cases: 20) { problem in
            var problem = problem
            (problem.mask, problem.queries) = (.causal, problem.keys)
            problem.refill()
            let expected = try problem.run(kernels, normaliser: normaliser).output
            let key = problem.keys / 2
            problem.keyData[key * problem.headDimension] = .nan
            let actual = try problem.run(kernels, normaliser: normaliser).output
            let before = 0..<key * problem.valueDimension
            try requireSameBits("rows before", Array(actual[before]), Array(expected[before]), "\(problem)")
            try require(actual[before.upperBound...].allSatisfy(\.isNaN), "rows from \(key) on: \(problem)")
        }
    }

    /// Two batch items, two heads on one, and as many keys as make two parts: output is weights times values.
    @Test("weights", arguments: kernelSets, [AttentionLayout.batchHeadsSequence, .batchSequenceHeads])
    func weights(kernels: KernelSet, layout: AttentionLayout) throws {
        let (queries, keys) = (3, 1030)
        let shape = try AttentionShape(
            batch: 2, queryHeads: 2, keyValueHeads: 1, queries: queries, keys: keys, headDimension: 4)
        var generator = SeededGenerator(seed: 5)
        let data = [shape.queryCount, shape.keyCount, shape.valueCount].map { generator.normals($0) }
        for normaliser in [AttentionNormaliser.softmax] + SmallProblem.normalisers {
            let attention = try Attention(
                shape, sink: normaliser.usualSink, mask: .causal.keyLengths([keys, 70]), softcap: 5, alibi: .standard,
                normaliser: normaliser,
                layout: layout, kernels: kernels)
            let weights = try attention.weights(queries: data[0], keys: data[1])
            let result = try attention.forward(queries: data[0], keys: data[1], values: data[2])
            #expect(weights.count == 2 * 2 * queries * keys)
            for row in 0..<shape.rowCount {
                let (item, head, query) = (row / queries / 2, row / queries % 2, row % queries)
                let picked = weights.rows(row, 1, keys)
                #expect(picked[((item == 0 ? keys : 70) - queries + query + 1)...].allSatisfy { $0 == 0 })
                // One key/value head: its rows are adjacent in both layouts.
                let expected = picked.indices.reduce(0.0) {
                    $0 + Double(picked[$1]) * Double(data[2][(item * keys + $1) * 4 + 1])
                }
                let place =
                    layout == .batchHeadsSequence ? row : (item * queries + query) * 2 + head
                #expect(abs(Double(result.output[place * 4 + 1]) - expected) < 1e-5 * max(1, abs(expected)))
                if normaliser == .softmax {
                    let sum = picked.reduce(0.0) { $0 + Double($1) }
                    #expect(abs(sum + Double(result.sinkShare[row]) - 1) < 1e-5)
                }
            }
        }
        let packed = try Attention(
            AttentionShape(packed: [0, 2, 5], queryHeads: 1, headDimension: 4), sink: .softmax1, kernels: kernels)
        let five = [Float](repeating: 0, count: 20)
        #expect(throws: AttentionError.self) { try packed.weights(queries: five, keys: five) }
    }

    // MARK: - Scores

    @Test("a table of factors is a scale per row, to the bit", arguments: kernelSets)
    func tableOfFactors(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            let factors = (0..<problem.queries).map { 0.25 + Double($0 % 5) / 3 }
            let table = ScoreScaling.table(try BroadcastTensor(factors, queries: problem.queries, keys: 1))
            let result = try problem.run(kernels, scaling: table)
            for (row, factor) in factors.enumerated() {
                let alone = try problem.run(kernels, scale: problem.scale * factor)
                let part = row * problem.valueDimension..<(row + 1) * problem.valueDimension
                try requireSameBits("row \(row)", Array(result.output[part]), Array(alone.output[part]), "\(problem)")
            }
        }
    }

    @Test("a softcap bounds scores, and a wide one changes little", arguments: kernelSets)
    func softcap(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            var problem = problem
            problem.mask = .none
            let cap = 2.0
            let capped = try problem.run(kernels, scale: 20, softcap: cap)
            let least = 1 / (1 + Double(problem.keys) * exponential(cap))
            let most = 1 / (1 + Double(problem.keys) * exponential(-cap))
            for share in capped.sinkShare.map(Double.init) {
                try require(share >= least * 0.9999 && share <= most * 1.0001, "\(share) is not in \(least)...\(most)")
            }
            let plain = try problem.run(kernels)
            let wide = try problem.run(kernels, softcap: 1e4)
            try requireClose("out", wide.output, plain.output.map(Double.init), tolerance: { _ in 2e-5 }, "\(problem)")
        }
    }

    /// Softmax does not mind the row's constant that the column-only shortcut drops; softmax_1 does.
    @Test("ALiBi is the bias of the whole distance", arguments: kernelSets)
    func alibi(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            let (queries, keys) = (problem.queries, problem.keys)
            let distances = (0..<queries * keys).map { Float(abs($0 / keys + keys - queries - $0 % keys)) }
            let bias = try BroadcastTensor(distances.map { -0.3 * $0 }, queries: queries, keys: keys)
            let expected = try problem.run(kernels, bias: bias)
            let actual = try problem.run(kernels, alibi: .slopes([0.3]))
            try requireClose(
                "out", actual.output, expected.output.map(Double.init), tolerance: { _ in 1e-5 }, "\(problem)")
            try requireClose(
                "sink share", actual.sinkShare, expected.sinkShare.map(Double.init), tolerance: { _ in 1e-5 },
                "\(problem)")
        }
    }

    @Test("golden ALiBi in one call, and its trap", arguments: kernelSets)
    func goldenALiBi(kernels: KernelSet) throws {
        let golden = try #require(Golden.shared.attention.first { $0.name == "softmax1_alibi" })
        let trap = try #require(Golden.shared.attention.first { $0.name == "softmax1_alibi_column_only_TRAP" })
        let result = try run(golden, kernels, alibi: .slopes([0.25]))
        try requireClose("out", result.output, golden.output.doubles, tolerance: { _ in 4e-7 }, "\(kernels)")
        #expect(relativeError(result.output, trap.output.doubles) > 0.01)
    }

    @Test(
        "golden log n scaling in one call", arguments: kernelSets,
        [("softmax1_log512n", ScoreScaling.logKeys(base: 512)), ("softmax1_clipped_logn", .clippedLogKeys(base: 4))])
    func goldenScaling(kernels: KernelSet, scaling: (name: String, value: ScoreScaling)) throws {
        let golden = try #require(Golden.shared.attention.first { $0.name == scaling.name })
        let result = try run(golden, kernels, scaling: scaling.value)
        try requireClose("out", result.output, golden.output.doubles, tolerance: { _ in 4e-7 }, "\(kernels)")
        try requireClose("lse", result.logSumExp, golden.logSumExp.doubles, tolerance: { _ in 6e-7 }, "\(kernels)")
    }

    private func run(
        _ golden: Golden.Attention, _ kernels: KernelSet, scaling: ScoreScaling = .constant, alibi: ALiBi? = nil
    ) throws -> AttentionResult {
        let shape = try AttentionShape(
            queryHeads: 1, queries: golden.queryCount, keys: golden.keyCount, headDimension: golden.headDimension,
            valueDimension: golden.valueDimension)
        let attention = try Attention(
            shape, sink: .logits([Float(golden.sink.value)]), mask: golden.mask == "none" ? .none : .causal,
            scaling: scaling, alibi: alibi, kernels: kernels)
        return try attention.forward(
            queries: golden.queries.floats, keys: golden.keys.floats, values: golden.values.floats)
    }

    @Test("a sink that counts keys keeps its share when every key comes twice", arguments: kernelSets)
    func countingSink(kernels: KernelSet) throws {
        try forAll(SmallProblem.self, cases: caseCount) { problem in
            var problem = problem
            problem.mask = .none
            var twice = problem
            twice.keys *= 2
            twice.keyData += problem.keyData
            twice.valueData += problem.valueData
            let (one, two) = (
                try problem.run(kernels, sink: .logKeys(offset: 0.5)),
                try twice.run(kernels, sink: .logKeys(offset: 0.5))
            )
            try requireClose(
                "sink share", two.sinkShare, one.sinkShare.map(Double.init), tolerance: { 2e-6 * $0 }, "\(problem)")
            let fixed = (try problem.run(kernels), try twice.run(kernels))
            try require(zip(fixed.1.sinkShare, fixed.0.sinkShare).allSatisfy { $0 < $1 || $1 < 1e-6 }, "\(problem)")
        }
    }
}
