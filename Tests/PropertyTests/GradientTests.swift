// SPDX-License-Identifier: Apache-2.0
// GradientTests.swift - the gradients of every kernel set have the bits of the reference, on random problems.

import AttentionReference
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct GradientTests {
    /// Throws unless every kernel set gives the reference's bits, by these products and any number of threads.
    private func requireReference(
        _ shape: AttentionCase, _ inputs: AttentionInputs, _ loss: ReferenceLoss,
        by allProducts: [ReferenceProducts] = ReferenceProducts.all
    ) throws {
        for products in allProducts {
            var shape = shape
            shape.products = products
            let expected = shape.referenceGradients(inputs, loss)
            for (index, kernels) in products.kernelSets.enumerated() {
                // One of the two asks for all gradients, and adds them to zeros.
                for (turn, threads) in [1, 3].enumerated() {
                    let asksForAll = (index + turn) % 2 == 1
                    let actual =
                        asksForAll
                        ? try shape.allGradients(inputs, loss, kernels: kernels, threads: threads)
                        : try shape.gradients(inputs, loss, kernels: kernels, threads: threads)
                    try requireSame(
                        actual, expected, shape, asksForAll: asksForAll, "\(shape), \(kernels), \(threads) threads")
                }
            }
        }
    }

    private func requireSame(
        _ actual: AttentionGradients, _ expected: ReferenceGradients<Float>, _ shape: AttentionCase, asksForAll: Bool,
        _ context: String
    ) throws {
        try requireSameBits("dq", actual.queries, expected.queries, context)
        try requireSameBits("dk", actual.keys, expected.keys, context)
        try requireSameBits("dv", actual.values, expected.values, context)
        if shape.normaliser.hasSink { try requireSameBits("dsink", actual.sinks, expected.sinks, context) }
        if asksForAll {
            try requireSameBits("dlogscale", actual.logScales, expected.logScales, context)
            if shape.hasALiBi { try requireSameBits("dslope", actual.slopes, expected.slopes, context) }
        } else {
            try requireSameBits("dbias", actual.bias, expected.bias, context)
        }
        guard shape.scaling == .scalableSoftmax else { return }
        let scalable = zip(expected.logScales, shape.scalableFactors).map { $0 / Float($1) + 0 }
        try requireSameBits("ds", actual.scalableSoftmax, scalable, context)
    }

    @Test func kernelsHaveTheReferencesBits() throws {
        try forAll(AttentionCase.self, cases: 40) { shape in
            var shape = shape
            shape.layout = .headsFirst
            try requireReference(shape, shape.inputs, shape.loss)
        }
    }

    /// The micro-batches of a step: sums go on from those of the one before, and from -0 as from +0; of whatever size, though
    /// products of bfloat16 make those from 2^80 on infinite.
    @Test(arguments: [1, 0x1p-140, 0x1p78, 0x1p100] as [Float])
    func sumsGoOn(unit: Float) throws {
        try forAll(AttentionCase.self, cases: 12) { shape in
            var (shape, generator) = (shape, SeededGenerator(seed: shape.seed))
            shape.layout = .headsFirst
            func numbers(_ count: Int) -> [Float] { generator.normals(count).map { $0 < -1 ? -0.0 : $0 * unit } }
            let (inputs, loss) = (shape.inputs, shape.loss)
            var start = ReferenceGradients<Float>(zerosFor: shape.referenceProblem(inputs))
            for tensor in [\ReferenceGradients<Float>.queries, \.keys, \.values, \.sinks, \.bias] {
                start[keyPath: tensor] = numbers(start[keyPath: tensor].count)
            }
            for products in ReferenceProducts.all {
                shape.products = products
                let expected = shape.referenceGradients(inputs, loss, addedTo: start)
                for (index, kernels) in products.kernelSets.enumerated() {
                    var actual = AttentionGradients(
                        queries: start.queries, keys: start.keys, values: start.values, sinks: start.sinks)
                    actual.bias = start.bias
                    try shape.addGradients(
                        inputs, loss, to: &actual, kernels: kernels, threads: index % 2 == 0 ? 3 : 1)
                    let context = "\(shape), \(kernels)"
                    try requireSameBits("dq", actual.queries, expected.queries, context)
                    try requireSameBits("dk", actual.keys, expected.keys, context)
                    try requireSameBits("dv", actual.values, expected.values, context)
                    try requireSameBits("dsink", actual.sinks, expected.sinks, context)
                    try requireSameBits("dbias", actual.bias, expected.bias, context)
                }
            }
        }
    }

    /// Tensors of every type in every layout, for spans: gradients in Float have the bits of the reference over what is stored, and
    /// those of 16 bits are the same, rounded once.
    private func requireStored(
        _ shape: AttentionCase, rounded: Bool, by allProducts: [ReferenceProducts] = ReferenceProducts.all
    ) throws {
        let (inputs, loss) = (shape.inputs, shape.loss)
        func stored(_ gradients: [Float]) -> [Float] {
            rounded ? gradients.map(shape.storage.rounded) : gradients
        }
        for products in allProducts {
            var shape = shape
            shape.products = products
            let expected = shape.referenceGradients(inputs, loss)
            for (index, kernels) in products.kernelSets.enumerated() {
                let threads = index % 2 == 0 ? 1 : 3
                let actual = try shape.storedGradients(
                    inputs, loss, rounded: rounded, kernels: kernels, threads: threads)
                let context = "\(shape), \(kernels), \(threads) threads, rounded: \(rounded)"
                try requireSameBits("dq", actual.queries, stored(expected.queries), context)
                try requireSameBits("dk", actual.keys, stored(expected.keys), context)
                try requireSameBits("dv", actual.values, stored(expected.values), context)
                if shape.normaliser.hasSink { try requireSameBits("dsink", actual.sinks, expected.sinks, context) }
            }
        }
    }

    @Test(arguments: [false, true]) func storagesAndLayouts(rounded: Bool) throws {
        try forAll(AttentionCase.self, cases: 30) { try requireStored($0, rounded: rounded) }
        for storage in AttentionCase.StorageChoice.available {
            for layout in AttentionCase.LayoutChoice.allCases {
                // Whole vectors of channels and others: rows that are read where they stand, and rows that are copied.
                for dimension in [32, 9] {
                    let shape = AttentionCase(queries: 70, keys: 140, headDimension: dimension) {
                        ($0.batch, $0.keyValueHeads, $0.group, $0.geometry) = (2, 2, 2, .causal)
                        ($0.sink, $0.storage, $0.layout) = (.mixed, storage, layout)
                    }
                    let both = (layout == .headsFirst) == (dimension == 32)
                    try requireStored(shape, rounded: rounded, by: both ? ReferenceProducts.all : [.float32])
                }
            }
        }
    }

    /// Every normaliser with softcap, ALiBi and row factors, over several blocks of rows and keys; by products of bfloat16
    /// one of the three, in turn: the C interface has met all.
    @Test(
        arguments: AttentionCase.NormaliserChoice.allCases,
        [InputFamily.unitNormal, .wide, .minusInfinity, .subnormal, .notANumber, .infinity])
    func normalisers(normaliser: AttentionCase.NormaliserChoice, family: InputFamily) throws {
        for option in 0..<3 {
            var shape = AttentionCase(queries: 70, keys: 140, headDimension: 5, valueDimension: 3) {
                ($0.group, $0.sink, $0.geometry) = (2, .mixed, .causal)
                if option == 1 { ($0.softcap, $0.hasALiBi) = (2, true) }
                if option == 1 && normaliser != .normalisedReluSquared { $0.scaling = .scalableSoftmax }
                if option == 2 { ($0.allowed, $0.bias, $0.geometry) = (.rowsWithout, .excluding, .none) }
            }
            (shape.normaliser, shape.family) = (normaliser, family)
            let turn =
                AttentionCase.NormaliserChoice.allCases.firstIndex(of: normaliser)!
                + InputFamily.allCases.firstIndex(of: family)!
            try requireReference(
                shape, shape.inputs, shape.loss, by: option == turn % 3 ? ReferenceProducts.all : [.float32])
        }
    }

    /// Biases that batch items, heads and rows share or not, over several blocks of keys, and behind chunks that no row sees.
    @Test(arguments: AttentionCase.Broadcast.allCases, AttentionCase.BiasChoice.allCases.dropFirst())
    func biases(broadcast: AttentionCase.Broadcast, bias: AttentionCase.BiasChoice) throws {
        for isLong in [false, true] {
            let shape = AttentionCase(queries: isLong ? 5 : 70, keys: isLong ? 1200 : 140, headDimension: 3) {
                ($0.batch, $0.keyValueHeads, $0.group, $0.sink) = (2, 2, 2, .mixed)
                ($0.geometry, $0.keyLengths) = isLong ? (.window(20), .none) : (.causal, .partial)
                ($0.bias, $0.broadcast, $0.hasALiBi, $0.scaling) = (bias, broadcast, true, .scalableSoftmax)
            }
            try requireReference(
                shape, shape.inputs, shape.loss,
                by: isLong && bias != .normal ? [.float32] : ReferenceProducts.all)
        }
    }

    /// More rows of a head than are at work at a time.
    @Test func manyRows() throws {
        let shape = AttentionCase(queries: 400, keys: 70, headDimension: 2) {
            ($0.group, $0.bias, $0.broadcast, $0.softcap, $0.hasALiBi) = (2, .excluding, .heads, 1.5, true)
        }
        try requireReference(shape, shape.inputs, shape.loss)
    }

    /// Scores of exactly 0 lie on softpick's edge.
    @Test(arguments: AttentionCase.NormaliserChoice.allCases)
    func scoresOfZero(normaliser: AttentionCase.NormaliserChoice) throws {
        var shape = AttentionCase(queries: 7, keys: 66, headDimension: 4)
        (shape.normaliser, shape.scale) = (normaliser, .zero)
        try requireReference(shape, shape.inputs, shape.loss)
    }

    /// NaN where nothing looks: rows of queries that see no key, with their gradients, and keys that no row sees.
    @Test(arguments: AttentionCase.NormaliserChoice.allCases)
    func hiddenPlaces(normaliser: AttentionCase.NormaliserChoice) throws {
        var shape = AttentionCase(queries: 90, keys: 70, headDimension: 4) {
            ($0.batch, $0.geometry, $0.keyLengths, $0.sink) = (2, .causal, .partial, .amid)
        }
        shape.normaliser = normaliser
        let (inputs, loss) = (shape.inputs, shape.loss)
        let spoiled = shape.spoiled(inputs, loss)
        try requireReference(shape, spoiled.inputs, spoiled.loss)
        for products in ReferenceProducts.all {
            shape.products = products
            let (clean, dirty) = (
                shape.referenceGradients(inputs, loss), shape.referenceGradients(spoiled.inputs, spoiled.loss)
            )
            try requireSameBits(dirty, clean, "\(shape)")
        }
    }
}
