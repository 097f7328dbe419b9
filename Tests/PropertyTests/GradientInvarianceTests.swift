// SPDX-License-Identifier: Apache-2.0
// GradientInvarianceTests.swift - what must not change a bit of gradients, by either products.

import AttentionReference
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct GradientInvarianceTests {
    /// Random cases, by these products, with every kernel set that makes them.
    private func forEach(
        _ products: ReferenceProducts, _ property: (_ shape: AttentionCase, _ kernels: KernelSet) throws -> Void
    ) throws {
        try forAll(AttentionCase.self, cases: 12) { shape in
            var shape = shape
            (shape.products, shape.layout) = (products, .headsFirst)
            for kernels in products.kernelSets { try property(shape, kernels) }
        }
    }

    /// The gradient of the output, of values and of queries in other units: all sums are in theirs, to the bit, where weights
    /// are not so small that products of bfloat16 take them for 0.
    @Test(arguments: ReferenceProducts.all)
    func powersOfTwo(products: ReferenceProducts) throws {
        try forEach(products) { original, kernels in
            var shape = original
            (shape.scale, shape.sink) = (.one, .amid)
            var (inputs, loss) = (shape.inputs, shape.loss)
            inputs.scale = 0.25
            let expected = try shape.gradients(inputs, loss, kernels: kernels)
            inputs.scale /= 8
            inputs.queries = inputs.queries.map { $0 * 32 }
            inputs.keys = inputs.keys.map { $0 / 4 }
            inputs.values = inputs.values.map { $0 * -16 }
            loss.outputGradient = loss.outputGradient.map { $0 * 0x1p10 }
            loss.logSumExpGradient = loss.logSumExpGradient?.map { $0 * -0x1p14 }
            let actual = try shape.gradients(inputs, loss, kernels: kernels)
            // Zeros change their sign.
            func require(_ name: String, _ actual: [Float], _ expected: [Float], times power: Float) throws {
                try requireSameBits(
                    name, actual.map { $0 / power + 0 }, expected.map { $0 + 0 }, "\(kernels), \(shape)")
            }
            try require("dq", actual.queries, expected.queries, times: -0x1p14 / 32)
            try require("dk", actual.keys, expected.keys, times: -0x1p14 * 4)
            try require("dv", actual.values, expected.values, times: 0x1p10)
            try require("dsink", actual.sinks, expected.sinks, times: -0x1p14)
            try require("dbias", actual.bias, expected.bias, times: -0x1p14)
        }
    }

    /// Batch items have gradients of their own, and sums over items go on from one to the next.
    @Test(arguments: ReferenceProducts.all)
    func batchItemsAlone(products: ReferenceProducts) throws {
        try forEach(products) { original, kernels in
            var shape = original
            (shape.batch, shape.allowed, shape.bias, shape.keyLengths) = (2, .none, .none, .none)
            let (inputs, loss) = (shape.inputs, shape.loss)
            let expected = try shape.gradients(inputs, loss, kernels: kernels)
            var alone = shape
            alone.batch = 1
            var (queries, keys, values): ([Float], [Float], [Float]) = ([], [], [])
            var sinks = [Float](repeating: 0, count: shape.queryHeads)
            for item in 0..<2 {
                func part(_ tensor: [Float]) -> [Float] { tensor.rows(item, 1, tensor.count / 2) }
                var own = inputs
                (own.queries, own.keys, own.values) = (part(inputs.queries), part(inputs.keys), part(inputs.values))
                let gradients = try alone.gradients(
                    own,
                    ReferenceLoss(
                        outputGradient: part(loss.outputGradient),
                        logSumExpGradient: loss.logSumExpGradient.map(part)), kernels: kernels)
                queries += gradients.queries
                keys += gradients.keys
                values += gradients.values
                for (head, sum) in gradients.sinks.enumerated() { sinks[head] += sum }
            }
            let context = "\(kernels), \(shape)"
            try requireSameBits("dq", queries, expected.queries, context)
            try requireSameBits("dk", keys, expected.keys, context)
            try requireSameBits("dv", values, expected.values, context)
            try requireSameBits("dsink", sinks, expected.sinks, context)
        }
    }

    /// Key/value heads in another order, with their query heads.
    @Test(arguments: ReferenceProducts.all)
    func orderOfHeads(products: ReferenceProducts) throws {
        try forEach(products) { original, kernels in
            var shape = original
            (shape.batch, shape.keyValueHeads, shape.sink) = (1, 3, .one)
            (shape.allowed, shape.bias, shape.keyLengths) = (.none, .none, .none)
            let (inputs, loss) = (shape.inputs, shape.loss)
            func permuted(_ tensor: [Float]) -> [Float] {
                [2, 0, 1].flatMap { tensor.rows($0, 1, tensor.count / 3) }
            }
            var moved = inputs
            (moved.queries, moved.keys) = (permuted(inputs.queries), permuted(inputs.keys))
            moved.values = permuted(inputs.values)
            let expected = try shape.gradients(inputs, loss, kernels: kernels)
            let actual = try shape.gradients(
                moved,
                ReferenceLoss(
                    outputGradient: permuted(loss.outputGradient),
                    logSumExpGradient: loss.logSumExpGradient.map(permuted)), kernels: kernels)
            let context = "\(kernels), \(shape)"
            try requireSameBits("dq", actual.queries, permuted(expected.queries), context)
            try requireSameBits("dk", actual.keys, permuted(expected.keys), context)
            try requireSameBits("dv", actual.values, permuted(expected.values), context)
            try requireSameBits("dsink", actual.sinks, permuted(expected.sinks), context)
        }
    }

    /// NaN in rows that see no key, and in keys that no row sees.
    @Test(arguments: ReferenceProducts.all)
    func hiddenPlaces(products: ReferenceProducts) throws {
        try forEach(products) { shape, kernels in
            let (inputs, loss) = (shape.inputs, shape.loss)
            let spoiled = shape.spoiled(inputs, loss)
            let expected = try shape.gradients(inputs, loss, kernels: kernels)
            let actual = try shape.gradients(spoiled.inputs, spoiled.loss, kernels: kernels)
            let context = "\(kernels), \(shape)"
            try requireSameBits("dq", actual.queries, expected.queries, context)
            try requireSameBits("dk", actual.keys, expected.keys, context)
            try requireSameBits("dv", actual.values, expected.values, context)
            try requireSameBits("dsink", actual.sinks, expected.sinks, context)
            try requireSameBits("dbias", actual.bias, expected.bias, context)
        }
    }
}
