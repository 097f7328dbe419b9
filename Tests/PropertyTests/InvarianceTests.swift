// SPDX-License-Identifier: Apache-2.0
// InvarianceTests.swift - what must not change the bits of a row, and what may change them only by rounding.

import AttentionReference
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct InvarianceTests {
    // MARK: - Not a bit

    @Test("masked keys and values of NaN and infinity", arguments: kernelSets)
    func maskedNaN(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { shape in
            let inputs = shape.inputs
            let expected = try shape.run(inputs, kernels: kernels)
            var seen = Set<Int>()
            for item in 0..<shape.batch {
                for head in 0..<shape.queryHeads {
                    let problem = shape.headProblem(inputs, item: item, head: head)
                    let start = (item * shape.keyValueHeads + head / shape.group) * shape.keys
                    for query in 0..<shape.queries { seen.formUnion(problem.visibleKeys(query).map { start + $0 }) }
                }
            }
            var poisoned = inputs
            for row in 0..<shape.batch * shape.keyValueHeads * shape.keys where !seen.contains(row) {
                let poison = [Float.nan, .infinity, -.infinity][row % 3]
                for d in 0..<shape.headDimension { poisoned.keys[row * shape.headDimension + d] = poison }
                for d in 0..<shape.valueDimension { poisoned.values[row * shape.valueDimension + d] = poison }
            }
            try requireSameBits(
                try shape.run(poisoned, kernels: kernels), expected, valueDimension: shape.valueDimension,
                "\(kernels), \(seen.count) keys seen")
        }
    }

    @Test("batch items and layouts", arguments: kernelSets)
    func surroundings(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { shape in
            let inputs = shape.inputs
            let expected = try shape.run(inputs, kernels: kernels)
            var other = shape
            other.layout = shape.layout == .headsFirst ? .sequenceFirst : .headsFirst
            try requireSameBits(
                try other.run(inputs, kernels: kernels), expected, valueDimension: shape.valueDimension,
                "\(kernels), \(other.layout)")
            for item in 0..<shape.batch {
                let (alone, aloneInputs) = self.item(item, of: shape, inputs)
                let rows = shape.queryHeads * shape.queries
                let actual = try alone.run(aloneInputs, kernels: kernels)
                try requireSameBits(
                    actual,
                    AttentionOutputs(
                        output: expected.output.rows(item * rows, rows, shape.valueDimension),
                        logSumExp: expected.logSumExp.rows(item, 1, rows),
                        sinkShare: expected.sinkShare.rows(item, 1, rows)),
                    valueDimension: shape.valueDimension, "\(kernels), batch item \(item) alone")
            }
        }
    }

    /// Work that is enough for several threads.
    @Test("threads", arguments: kernelSets)
    func threads(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount / 12) { original in
            var shape = original
            shape.queries = max(30, shape.queries)
            shape.keyValueHeads = 3
            shape.geometry = shape.geometry == .none ? .none : .causal
            if shape.keyLengths != .none { shape.keyLengths = .full }
            let inputs = shape.inputs
            let expected = try shape.run(inputs, kernels: kernels)
            for threads in [2, 5] {
                let attention = try shape.attention(inputs, kernels: kernels, threads: threads)
                try require(attention.threadsInUse > 1, "too little work")
                try requireSameBits(
                    try shape.run(inputs, attention), expected, valueDimension: shape.valueDimension,
                    "\(kernels), \(threads) threads")
            }
        }
    }

    /// One batch item as a problem of its own.
    private func item(
        _ item: Int, of shape: AttentionCase, _ inputs: AttentionInputs
    ) -> (AttentionCase, AttentionInputs) {
        func part<Element>(_ tensor: [Element], _ parts: Int) -> [Element] {
            tensor.rows(parts == 1 ? 0 : item, 1, tensor.count / parts)
        }
        var (alone, result) = (shape, inputs)
        alone.batch = 1
        result.queries = part(inputs.queries, shape.batch)
        result.keys = part(inputs.keys, shape.batch)
        result.values = part(inputs.values, shape.batch)
        result.keyLengths = inputs.keyLengths.map { [$0[item]] }
        result.allowed = inputs.allowed.map { (part($0.values, $0.extents[0]), [1] + $0.extents.dropFirst()) }
        result.bias = inputs.bias.map { (part($0.values, $0.extents[0]), [1] + $0.extents.dropFirst()) }
        return (alone, result)
    }

    /// The first rows alone: under a causal mask with the keys that they see, as a prefill in parts would have them.
    @Test("splitting the queries", arguments: kernelSets)
    func splitQueries(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var shape = original
            (shape.batch, shape.keyValueHeads, shape.group, shape.layout) = (1, 1, 1, .headsFirst)
            (shape.allowed, shape.bias, shape.keyLengths) = (.none, .none, .none)
            if shape.geometry != .none { shape.keys = max(shape.keys, shape.queries) }
            let inputs = shape.inputs
            let expected = try shape.run(inputs, kernels: kernels)
            let head = 1 + Int(shape.seed % UInt64(shape.queries))
            var (part, partInputs) = (shape, inputs)
            part.queries = head
            if case .around = shape.geometry { part.geometry = .causal }
            // The part's last row stands at its last key, where it stood before.
            if shape.geometry != .none { part.keys -= shape.queries - head }
            partInputs.queries = inputs.queries.rows(0, head, shape.headDimension)
            partInputs.keys = inputs.keys.rows(0, part.keys, shape.headDimension)
            partInputs.values = inputs.values.rows(0, part.keys, shape.valueDimension)
            var whole = expected
            if part.geometry != shape.geometry {
                var causal = shape
                causal.geometry = .causal
                whole = try causal.run(inputs, kernels: kernels)
            }
            try requireSameBits(
                try part.run(partInputs, kernels: kernels),
                AttentionOutputs(
                    output: whole.output.rows(0, head, shape.valueDimension),
                    logSumExp: whole.logSumExp.rows(0, head, 1), sinkShare: whole.sinkShare.rows(0, head, 1)),
                valueDimension: shape.valueDimension, "\(kernels), the first \(head) rows")
        }
    }

    /// Sequences packed one after another, each with its own alignment.
    @Test("packed sequences", arguments: kernelSets)
    func packedSequences(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount / 2) { original in
            var generator = SeededGenerator(seed: original.seed)
            var parts: [(AttentionCase, AttentionInputs)] = []
            for _ in 0..<3 {
                var part = original
                (part.batch, part.layout, part.scale) = (1, .sequenceFirst, .standard)
                (part.allowed, part.bias, part.keyLengths, part.sink) = (.none, .none, .none, .mixed)
                part.queries = generator.next(in: 0...original.queries)
                part.keys = generator.next(in: 0...original.keys)
                part.seed = generator.next()
                parts.append((part, part.inputs))
            }
            let expected = try parts.map { try $0.run($1, kernels: kernels) }
            let packed = try pack(parts, original, kernels)
            var start = 0
            for ((part, _), expected) in zip(parts, expected) {
                for head in 0..<part.queryHeads {
                    let rows = (start..<start + part.queries).map { head * packed.rows + $0 }
                    try requireSameBits(
                        packed.outputs.picked(rows, original.valueDimension),
                        expected.picked(
                            (0..<part.queries).map { head * part.queries + $0 }, original.valueDimension),
                        valueDimension: original.valueDimension, "\(kernels), head \(head), sequence \(part)")
                }
                start += part.queries
            }
        }
    }

    /// The parts in one call; rows of the outputs are [heads][total].
    private func pack(
        _ parts: [(AttentionCase, AttentionInputs)], _ original: AttentionCase, _ kernels: KernelSet
    ) throws -> (outputs: AttentionOutputs, rows: Int) {
        func offsets(_ counts: [Int]) -> [Int] { counts.reduce(into: [0]) { $0.append($0.last! + $1) } }
        let queryOffsets = offsets(parts.map(\.0.queries))
        let shape = try AttentionShape(
            packed: queryOffsets, keyOffsets: offsets(parts.map(\.0.keys)), queryHeads: original.queryHeads,
            keyValueHeads: original.keyValueHeads, headDimension: original.headDimension,
            valueDimension: original.valueDimension)
        let mask: AttentionMask =
            switch original.geometry {
            case .none: .none
            case .causal: .causal
            case .window(let width): .window(width)
            case .around(let before, let after): .window(before: before, after: after)
            }
        let attention = try Attention(
            shape, sink: .logits(parts[0].1.sinks), mask: mask, layout: .batchHeadsSequence, kernels: kernels)
        func joined(_ tensor: (AttentionInputs) -> [Float], _ heads: Int) -> [Float] {
            (0..<heads).flatMap { head in
                parts.flatMap { tensor($0.1).rows(head, 1, tensor($0.1).count / heads) }
            }
        }
        let result = try attention.forward(
            queries: joined(\.queries, original.queryHeads), keys: joined(\.keys, original.keyValueHeads),
            values: joined(\.values, original.keyValueHeads))
        return (
            AttentionOutputs(output: result.output, logSumExp: result.logSumExp, sinkShare: result.sinkShare),
            queryOffsets.last!
        )
    }

    /// Products with powers of two are exact, so they may stand at either place.
    @Test("powers of two", arguments: kernelSets)
    func powersOfTwo(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var shape = original
            // Scale 1 as a number, so that it can be given another value.
            shape.scale = .one
            let inputs = shape.inputs
            let expected = try shape.run(inputs, kernels: kernels)
            var moved = inputs
            moved.scale /= 8
            moved.queries = inputs.queries.map { $0 * 32 }
            moved.keys = inputs.keys.map { $0 / 4 }
            moved.values = inputs.values.map { $0 * -16 }
            var actual = try shape.run(moved, kernels: kernels)
            actual.output = actual.output.map { $0 / -16 }
            // Zeros change their sign.
            try requireSameBits(
                "out", actual.output.map { $0 + 0 }, expected.output.map { $0 + 0 }, "\(kernels)")
            try requireSameBits("lse", actual.logSumExp, expected.logSumExp, "\(kernels)")
            try requireSameBits("sink share", actual.sinkShare, expected.sinkShare, "\(kernels)")
        }
    }

    // MARK: - Rounding only

    @Test("permuting the keys", arguments: kernelSets)
    func permutation(kernels: KernelSet) throws {
        try forAll(AttentionCase.self, cases: caseCount) { original in
            var shape = original
            (shape.batch, shape.keyValueHeads, shape.geometry, shape.keyLengths) = (1, 1, .none, .none)
            (shape.allowed, shape.bias) = (.none, .none)
            let inputs = shape.inputs
            var generator = SeededGenerator(seed: shape.seed)
            let order = (0..<shape.keys).shuffled(using: &generator)
            var permuted = inputs
            permuted.keys = order.flatMap { inputs.keys.rows($0, 1, shape.headDimension) }
            permuted.values = order.flatMap { inputs.values.rows($0, 1, shape.valueDimension) }
            let truth = shape.referenceProblem(inputs)
                .oracle(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
            // Scores without a scale reach 50, and their rounding counts as an error of the weight.
            let tolerance = shape.scale == .standard ? 2e-6 : 2e-5
            for outputs in [try shape.run(inputs, kernels: kernels), try shape.run(permuted, kernels: kernels)] {
                let error = relativeError(outputs.output, truth.output)
                let norm = truth.output.reduce(0) { $0 + $1 * $1 }.squareRoot()
                try require(error <= tolerance || norm < 1e-30, "relative error \(error)")
                try requireClose(
                    "lse", outputs.logSumExp, truth.logSumExp, tolerance: { 2e-6 * max(1, abs($0)) }, "\(kernels)")
            }
        }
    }
}

extension AttentionOutputs {
    fileprivate func picked(_ rows: [Int], _ width: Int) -> AttentionOutputs {
        AttentionOutputs(
            output: rows.flatMap { output.rows($0, 1, width) }, logSumExp: rows.map { logSumExp[$0] },
            sinkShare: rows.map { sinkShare[$0] })
    }
}
