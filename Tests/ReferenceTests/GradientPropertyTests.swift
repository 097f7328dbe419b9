// SPDX-License-Identifier: Apache-2.0
// GradientPropertyTests.swift - what is true of gradients: ghosts, permutation, linearity, sums that go on.

import AttentionReference
import SeededInputs
import TestSupport
import Testing

@Suite struct GradientPropertyTests {
    private static let shape = AttentionCase(queries: 9, keys: 12, headDimension: 5, valueDimension: 3) {
        ($0.batch, $0.keyValueHeads, $0.group, $0.geometry, $0.sink) = (2, 2, 2, .causal, .one)
    }

    /// `count` rows of zeros before those of every head.
    private func prefixed(_ tensor: [Float], _ count: Int, rows: Int, width: Int) -> [Float] {
        (0..<tensor.count / (rows * width)).flatMap { head in
            [Float](repeating: 0, count: count * width) + tensor.rows(head * rows, rows, width)
        }
    }

    /// Without the first rows of every head.
    private func dropped(_ tensor: [Float], _ count: Int, rows: Int, width: Int) -> [Double] {
        (0..<tensor.count / ((rows + count) * width)).flatMap { head in
            tensor.rows(head * (rows + count) + count, rows, width).map(Double.init)
        }
    }

    /// n keys and values of 0 before all others, visible to every row, are a sink of log n: their own gradients are not 0
    /// and have to be dropped, and those of their scores are the sink's.
    @Test(arguments: [1, 2, 5])
    func ghostsAreASink(count: Int) throws {
        let shape = Self.shape
        let (inputs, loss) = (shape.inputs, shape.loss)
        var quiet = shape.referenceProblem(inputs)
        quiet.sinks = quiet.sinks.map { _ in Float(ReferenceMath.logarithm(Double(count))) }
        let expected = quiet.backward(queries: inputs.queries, keys: inputs.keys, values: inputs.values, loss)

        var plain = quiet
        plain.sinks = quiet.sinks.map { _ in -.infinity }
        (plain.keys, plain.lastKeyOffset) = (shape.keys + count, nil)
        let own = shape.keys - shape.queries
        let allowed = (0..<shape.queries).flatMap { row in
            (0..<plain.keys).map { $0 < count || $0 - count <= row + own }
        }
        plain.allowed = ReferenceBroadcast(allowed, extents: [1, 1, shape.queries, plain.keys])
        plain.bias = ReferenceBroadcast(
            [Float](repeating: 0, count: shape.queryHeads * plain.keys), extents: [1, shape.queryHeads, 1, plain.keys])
        let result = plain.backward(
            queries: inputs.queries, keys: prefixed(inputs.keys, count, rows: shape.keys, width: 5),
            values: prefixed(inputs.values, count, rows: shape.keys, width: 3), loss)

        let close: (Double) -> Double = { _ in 4e-6 }
        try requireClose("dq", result.queries, expected.queries.map(Double.init), tolerance: close, "\(count)")
        let keys = dropped(result.keys, count, rows: shape.keys, width: 5)
        let values = dropped(result.values, count, rows: shape.keys, width: 3)
        try requireClose("dk", expected.keys, keys, tolerance: close, "\(count)")
        try requireClose("dv", expected.values, values, tolerance: close, "\(count)")
        let ghosts = (0..<shape.queryHeads).map { result.bias.rows($0 * plain.keys, count, 1).reduce(0, +) }
        try requireClose("dsink", expected.sinks, ghosts.map(Double.init), tolerance: close, "\(count)")
        #expect(result.values[0] != 0 && result.keys[0] != 0)
    }

    /// Keys in another order have their gradients in that order, and queries, sinks have the same, up to rounding.
    @Test func permutation() throws {
        var shape = Self.shape
        (shape.geometry, shape.bias, shape.broadcast) = (.none, .normal, .allButKeys)
        let (inputs, loss) = (shape.inputs, shape.loss)
        let order = (0..<shape.keys).map { ($0 * 5 + 3) % shape.keys }
        func permuted(_ tensor: [Float], _ width: Int) -> [Float] {
            (0..<tensor.count / (shape.keys * width)).flatMap { head in
                order.flatMap { tensor.rows(head * shape.keys + $0, 1, width) }
            }
        }
        var other = inputs
        (other.keys, other.values) = (permuted(inputs.keys, 5), permuted(inputs.values, 3))
        other.bias?.values = permuted(inputs.bias?.values ?? [], 1)
        let (first, second) = (shape.referenceGradients(inputs, loss), shape.referenceGradients(other, loss))
        let pairs = [
            ("dq", second.queries, first.queries), ("dk", second.keys, permuted(first.keys, 5)),
            ("dv", second.values, permuted(first.values, 3)), ("dsink", second.sinks, first.sinks),
            ("dbias", second.bias, permuted(first.bias, 1)),
        ]
        for (name, actual, expected) in pairs {
            try requireClose(name, actual, expected.map(Double.init), tolerance: { _ in 4e-6 }, "\(order)")
        }
    }

    /// Twice the loss has twice the gradients, to the bit; a sum of losses the sum of gradients.
    @Test(arguments: AttentionCase.NormaliserChoice.allCases)
    func linearity(normaliser: AttentionCase.NormaliserChoice) throws {
        var shape = Self.shape
        (shape.normaliser, shape.bias) = (normaliser, .normal)
        let inputs = shape.inputs
        let first = shape.loss
        shape.seed += 1
        let second = shape.loss
        shape.seed -= 1
        func combined(_ a: Float, _ b: Float) -> ReferenceLoss {
            func sum(_ x: [Float], _ y: [Float]) -> [Float] { zip(x, y).map { a * $0 + b * $1 } }
            return ReferenceLoss(
                outputGradient: sum(first.outputGradient, second.outputGradient),
                logSumExpGradient: first.logSumExpGradient.map { sum($0, second.logSumExpGradient ?? []) })
        }
        let gradients = [combined(1, 0), combined(2, 0), combined(0, 1), combined(1, 1)].map {
            shape.referenceGradients(inputs, $0).named
        }
        for index in gradients[0].indices {
            let (name, once) = gradients[0][index]
            try requireSameBits(name, gradients[1][index].values, once.map { 2 * $0 }, "\(shape)")
            let sum = zip(once, gradients[2][index].values).map { Double($0) + Double($1) }
            let size = sum.reduce(1) { max($0, abs($1)) }
            try requireClose(name, gradients[3][index].values, sum, tolerance: { _ in 1e-5 * size }, "\(shape)")
        }
    }

    /// Queries cut at a multiple of 64: sums over queries go on where they stood.
    @Test(arguments: [64, 128], [ReferenceProducts.float32, .bfloat16])
    func cutQueries(cut: Int, products: ReferenceProducts) throws {
        let shape = AttentionCase(queries: 150, keys: 70, headDimension: 3) {
            ($0.sink, $0.geometry, $0.products) = (.amid, .window(40), products)
        }
        let (inputs, loss) = (shape.inputs, shape.loss)
        var uncut = shape.referenceProblem(inputs)
        uncut.rowConstants = nil
        let whole = uncut
        func part(_ rows: Range<Int>, addedTo start: ReferenceGradients<Float>?) -> ReferenceGradients<Float> {
            var problem = whole
            problem.queries = rows.count
            problem.places = rows.map { $0 + shape.keys - shape.queries }
            // Offsets are those of rows that stand at the end.
            let moved = shape.queries - rows.count
            problem.firstKeyOffset = whole.firstKeyOffset.map { $0 + moved }
            problem.lastKeyOffset = whole.lastKeyOffset.map { $0 + moved }
            var start = start
            start?.queries = [Float](repeating: 0, count: rows.count * 3)
            return problem.backward(
                queries: inputs.queries.rows(rows.lowerBound, rows.count, 3), keys: inputs.keys, values: inputs.values,
                ReferenceLoss(
                    outputGradient: loss.outputGradient.rows(rows.lowerBound, rows.count, 3),
                    logSumExpGradient: loss.logSumExpGradient.map { Array($0[rows]) }), addedTo: start)
        }
        let first = part(0..<cut, addedTo: nil)
        let second = part(cut..<150, addedTo: first)
        let expected = shape.referenceGradients(inputs, loss)
        try requireSameBits("dq", first.queries + second.queries, expected.queries, "\(cut)")
        try requireSameBits("dk", second.keys, expected.keys, "\(cut)")
        try requireSameBits("dv", second.values, expected.values, "\(cut)")
    }

    /// Batch items one after another, each added to the ones before: all have the bits of one call.
    @Test func cutBatch() throws {
        let shape = Self.shape
        let (inputs, loss) = (shape.inputs, shape.loss)
        let expected = shape.referenceGradients(inputs, loss)
        var alone = shape.referenceProblem(inputs)
        (alone.batch, alone.rowConstants) = (1, nil)
        var sum: ReferenceGradients<Float>?
        let (rows, pairs) = (shape.queryHeads * shape.queries, shape.keyValueHeads * shape.keys)
        for item in 0..<2 {
            let result = alone.backward(
                queries: inputs.queries.rows(item * rows, rows, 5), keys: inputs.keys.rows(item * pairs, pairs, 5),
                values: inputs.values.rows(item * pairs, pairs, 3),
                ReferenceLoss(
                    outputGradient: loss.outputGradient.rows(item * rows, rows, 3),
                    logSumExpGradient: loss.logSumExpGradient.map { $0.rows(item * rows, rows, 1) }),
                addedTo: sum.map { sum in
                    var start = ReferenceGradients<Float>(zerosFor: alone)
                    start.sinks = sum.sinks
                    return start
                })
            try requireSameBits("dq", result.queries, expected.queries.rows(item * rows, rows, 5), "item \(item)")
            try requireSameBits("dk", result.keys, expected.keys.rows(item * pairs, pairs, 5), "item \(item)")
            try requireSameBits("dv", result.values, expected.values.rows(item * pairs, pairs, 3), "item \(item)")
            sum = result
        }
        try requireSameBits("dsink", sum?.sinks ?? [], expected.sinks, "both items")
    }
}
