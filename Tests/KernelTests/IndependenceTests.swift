// SPDX-License-Identifier: Apache-2.0
// IndependenceTests.swift - the bits of a row depend on nothing but what the row sees.

import CKernels
import QuietAttention
import TestSupport
import Testing

@Suite struct IndependenceTests {
    static let masked: [AttentionCase] = [
        AttentionCase(queries: 10, keys: 90, headDimension: 7, valueDimension: 18) { $0.geometry = .causal },
        AttentionCase(queries: 10, keys: 1100, headDimension: 3, valueDimension: 5) { $0.geometry = .window(70) },
        AttentionCase(queries: 13, keys: 150, headDimension: 6) { ($0.allowed, $0.sink) = (.random, .amid) },
        AttentionCase(queries: 13, keys: 200, headDimension: 6) { ($0.allowed, $0.group) = (.blocksWithout, 2) },
        AttentionCase(queries: 13, keys: 150, headDimension: 6) { ($0.bias, $0.sink) = (.excluding, .none) },
        AttentionCase(queries: 7, keys: 130, headDimension: 6) { ($0.keyLengths, $0.batch) = (.partial, 3) },
        AttentionCase(queries: 5, keys: 70, headDimension: 6) { $0.allowed = .nothing },
    ]

    static let poisons: [Float] = [.nan, .infinity, -.infinity]

    /// Of each key alone: the rows that do not see it keep their bits when it and its value are poisoned.
    @Test("NaN and infinities where a row does not look", arguments: kernelSets, masked)
    func poisonedKeys(kernels: KernelSet, shape: AttentionCase) throws {
        let solved = shape.solved
        let problems = (0..<shape.batch * shape.queryHeads).map {
            shape.headProblem(solved.inputs, item: $0 / shape.queryHeads, head: $0 % shape.queryHeads)
        }
        for (index, key) in stride(from: 0, to: shape.keys, by: max(1, shape.keys / 11)).enumerated() {
            var inputs = solved.inputs
            let poison = Self.poisons[index % Self.poisons.count]
            for head in 0..<shape.batch * shape.keyValueHeads {
                let row = head * shape.keys + key
                for d in 0..<shape.headDimension { inputs.keys[row * shape.headDimension + d] = poison }
                for d in 0..<shape.valueDimension { inputs.values[row * shape.valueDimension + d] = poison }
            }
            let actual = try shape.run(inputs, kernels: kernels)
            for (head, problem) in problems.enumerated() {
                for query in 0..<shape.queries where !problem.visibleKeys(query).contains(key) {
                    let row = head * shape.queries + query
                    try requireSameBits(
                        actual.row(row), solved.expected.row(row), valueDimension: shape.valueDimension,
                        "\(kernels), key \(key) = \(poison), row \(row): \(shape)")
                }
            }
        }
    }

    /// Only the first keys are in memory; what the reference reads behind them is NaN.
    @Test(
        "keys behind the length are not touched", arguments: KernelTable.available, GuardedBuffer<UInt8>.Side.allCases)
    func unwrittenKeys(kernels: KernelTable, side: GuardedBuffer<UInt8>.Side) throws {
        for length in [0, 1, 16, 63, 64, 65, 130, 1025] {
            let shape = AttentionCase(queries: 5, keys: 1100, headDimension: 5, valueDimension: 9) {
                ($0.allowed, $0.bias) = (.random, .normal)
            }
            var problem = shape.headProblem(shape.inputs, item: 0, head: 0)
            problem.keyLength = length
            for index in length * 5..<problem.keys.count { problem.keys[index] = .nan }
            for index in length * 9..<problem.values.count { problem.values[index] = .nan }
            let actual = try DirectCall(guardSide: side).run(problem, kernels)
            try requireSameBits(
                actual, problem.reference, valueDimension: 9, "\(kernels), \(length) of 1100 keys, \(side)")
        }
    }

    static let split: [AttentionCase] = [
        AttentionCase(queries: 140, keys: 173, headDimension: 5, valueDimension: 17) { $0.geometry = .causal },
        AttentionCase(queries: 13, keys: 1090, headDimension: 5, valueDimension: 4) { $0.geometry = .window(1030) },
        AttentionCase(queries: 20, keys: 70, headDimension: 5) { ($0.allowed, $0.bias) = (.random, .excluding) },
        AttentionCase(queries: 20, keys: 70, headDimension: 5) { $0.family = .notANumber },
    ]

    /// One row a call is a decoder's step, 132 a prefill.
    @Test("splitting the queries", arguments: KernelTable.available, split)
    func splitQueries(kernels: KernelTable, shape: AttentionCase) throws {
        let problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        let expected = shape.solved.expected
        for rows in [1, 2, 5, 6, 7, 64, 131, 132] {
            let actual = try DirectCall(rowsPerCall: rows).run(problem, kernels)
            try requireSameBits(
                actual, expected, valueDimension: shape.valueDimension, "\(kernels), \(rows) rows a call: \(shape)")
        }
    }

    /// Any set's packing serves any other.
    @Test("packing by another kernel set", arguments: KernelTable.available, KernelTable.available)
    func packedByAnother(kernels: KernelTable, packing: KernelTable) throws {
        for storage in AttentionCase.StorageChoice.available {
            let shape = AttentionCase(queries: 7, keys: 150, headDimension: 18, valueDimension: 35) {
                $0.storage = storage
            }
            let problem = shape.headProblem(shape.solved.inputs, item: 0, head: 0)
            let actual = try DirectCall(padding: 3, storage: storage, packing: packing).run(problem, kernels)
            try requireSameBits(
                actual, shape.solved.expected, valueDimension: 35, "\(kernels), packed by \(packing), \(storage)")
        }
    }

    /// Work for several threads, in many items or in few.
    static let threaded: [AttentionCase] = [
        AttentionCase(queries: 150, keys: 200, headDimension: 64) {
            ($0.keyValueHeads, $0.group, $0.geometry) = (3, 2, .causal)
        },
        AttentionCase(queries: 40, keys: 300, headDimension: 48) {
            ($0.batch, $0.keyValueHeads, $0.allowed, $0.sink) = (3, 4, .random, .mixed)
        },
        AttentionCase(queries: 700, keys: 130, headDimension: 64) { ($0.keyLengths, $0.batch) = (.partial, 3) },
        AttentionCase(queries: 20, keys: 2100, headDimension: 80) {
            ($0.keyValueHeads, $0.group, $0.layout) = (1, 4, .sequenceFirst)
        },
    ]

    @Test("threads", arguments: kernelSets, threaded)
    func threads(kernels: KernelSet, shape: AttentionCase) throws {
        let inputs = shape.inputs
        let expected = try shape.run(inputs, kernels: kernels)
        for threads in [2, 3, 7] {
            let attention = try shape.attention(inputs, kernels: kernels, threads: threads)
            #expect(attention.threadsInUse > 1, "too little work for threads: \(shape)")
            try requireSameBits(
                try shape.run(inputs, attention), expected, valueDimension: shape.valueDimension,
                "\(kernels), \(threads) threads: \(shape)")
        }
    }

    /// A batch item, and a group of heads, alone and among others whose data are NaN.
    @Test("neighbours in the batch", arguments: kernelSets, AttentionCase.LayoutChoice.allCases)
    func neighbours(kernels: KernelSet, layout: AttentionCase.LayoutChoice) throws {
        let alone = AttentionCase(queries: 9, keys: 140, headDimension: 6, valueDimension: 10) {
            ($0.group, $0.sink, $0.geometry, $0.layout) = (2, .amid, .causal, layout)
        }
        let solved = alone.solved
        var crowd = alone
        (crowd.batch, crowd.keyValueHeads) = (3, 2)
        for place in 0..<6 {
            var inputs = crowd.inputs
            inputs.sinks = [Float](repeating: 0, count: 4)
            inputs.sinks.replaceSubrange(place % 2 * 2..<place % 2 * 2 + 2, with: solved.inputs.sinks)
            inputs.queries = placed(solved.inputs.queries, place, of: 6)
            inputs.keys = placed(solved.inputs.keys, place, of: 6)
            inputs.values = placed(solved.inputs.values, place, of: 6)
            let all = try crowd.run(inputs, kernels: kernels)
            for row in 0..<18 {
                try requireSameBits(
                    all.row(place * 18 + row), solved.expected.row(row), valueDimension: 10,
                    "\(kernels), head group \(place) of 6, row \(row): \(crowd)")
            }
        }
    }

    private func placed(_ tensor: [Float], _ place: Int, of places: Int) -> [Float] {
        (0..<places).flatMap { $0 == place ? tensor : [Float](repeating: .nan, count: tensor.count) }
    }

    /// Grouped heads are copies of their key/value head.
    @Test("grouped heads equal copied heads", arguments: kernelSets, [2, 3])
    func copiedHeads(kernels: KernelSet, group: Int) throws {
        let grouped = AttentionCase(queries: 6, keys: 80, headDimension: 8) {
            ($0.keyValueHeads, $0.group, $0.sink) = (2, group, .mixed)
        }
        var copied = grouped
        (copied.keyValueHeads, copied.group) = (grouped.queryHeads, 1)
        var inputs = grouped.inputs
        let expected = try grouped.run(inputs, kernels: kernels)
        inputs.keys = (0..<grouped.queryHeads).flatMap { inputs.keys.rows($0 / group, 1, 80 * 8) }
        inputs.values = (0..<grouped.queryHeads).flatMap { inputs.values.rows($0 / group, 1, 80 * 8) }
        try requireSameBits(
            try copied.run(inputs, kernels: kernels), expected, valueDimension: 8, "\(kernels): \(grouped)")
    }

    /// FlexAttention's bug: a partial sum over masked keys counted with a maximum of 0, so that real scores near -107
    /// underflowed. Here the masked keys are a part of a chunk, a chunk, and two chunks, masked in three ways.
    @Test("an empty partial sum is the identity", arguments: kernelSets, [512, 1024, 2048 + 64])
    func emptyPartial(kernels: KernelSet, masked: Int) throws {
        let shape = AttentionCase(queries: 1, keys: masked + 512, headDimension: 16) { $0.sink = .none }
        var inputs = shape.inputs
        for d in 0..<16 { inputs.queries[d] = d == 0 ? 4 : inputs.queries[d] * 0.5 }
        for key in 0..<shape.keys { inputs.keys[key * 16] = -107 - Float(key % 4) }
        let hidden = (0..<shape.keys).map { $0 < masked }
        var ways = [inputs, inputs, inputs]
        ways[0].allowed = (hidden.map { !$0 }, [1, 1, 1, shape.keys])
        ways[1].bias = (hidden.map { $0 ? -.infinity : 0 }, [1, 1, 1, shape.keys])
        for key in 0..<masked { ways[2].keys[key * 16] = -.infinity }
        let truth = shape.referenceProblem(ways[0])
            .oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        for (way, inputs) in ways.enumerated() {
            let actual = try shape.run(inputs, kernels: kernels)
            // Scores near -107 in natural units have an ulp of 1.5e-5 in base 2.
            let error = relativeError(actual.output, truth.output)
            #expect(error < 1e-4, "\(kernels), masked in way \(way)")
            try requireSameBits(
                actual, shape.reference(inputs), valueDimension: 16, "\(kernels), masked in way \(way)")
        }
    }

    /// 16-bit output is the Float output, rounded once.
    @Test("16-bit output", arguments: KernelTable.available, AttentionCase.StorageChoice.available)
    func storedOutput(kernels: KernelTable, outStorage: AttentionCase.StorageChoice) throws {
        // From below float16's subnormal numbers to beyond its largest, ties included.
        for (scale, family) in [
            (Float(1), InputFamily.unitNormal), (0x1p-20, .unitNormal), (0x1p-27, .unitNormal), (0x1p15, .unitNormal),
            (1, .notANumber), (1, .infinity), (1, .subnormal), (1, .zeros), (0x1p127, .unitNormal),
        ] {
            for queries in [1, 16] {
                let shape = AttentionCase(queries: queries, keys: 20, headDimension: 4, valueDimension: 37) {
                    ($0.family, $0.sink) = (family, .none)
                }
                var problem = shape.headProblem(shape.inputs, item: 0, head: 0)
                // A single visible key gives its value itself: all bit patterns pass.
                problem.allowed = (0..<queries * 20).map { $0 / 20 % 2 == 1 || $0 % 20 == 3 }
                problem.values = problem.values.map { $0 * scale }
                for d in 0..<37 {
                    problem.values[3 * 37 + d] = scale * (1 + Float(d) * 0x1p-11 + Float(d % 3) * 0x1p-16)
                }
                var expected = problem.reference
                expected.output = expected.output.map(outStorage.rounded)
                for padding in [0, 2] {
                    let actual = try DirectCall(padding: padding, outStorage: outStorage).run(problem, kernels)
                    try requireSameBits(
                        actual, expected, valueDimension: 37, "\(kernels), \(outStorage), \(family) times \(scale)")
                }
            }
        }
    }
}

extension AttentionOutputs {
    fileprivate func row(_ index: Int) -> AttentionOutputs {
        AttentionOutputs(
            output: output.rows(index, 1, output.count / logSumExp.count), logSumExp: [logSumExp[index]],
            sinkShare: [sinkShare[index]])
    }
}
