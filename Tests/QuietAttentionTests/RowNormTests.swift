// SPDX-License-Identifier: Apache-2.0
// RowNormTests.swift - LayerNorm and RMSNorm against their formulas in Double, and what they do to rows without a spread.

import AttentionReference
import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct RowNormTests {
    /// Lengths around the 16 lanes.
    static let dimensions = [1, 2, 15, 16, 17, 64, 97]

    private func oracle(_ rows: [Float], _ norm: ReferenceNorm, dimension: Int) -> [Double] {
        (0..<rows.count / dimension).flatMap { norm.oracle(rows.rows($0, 1, dimension).map(Double.init)) }
    }

    /// Rows of different sizes and offsets; one channel cannot be centred without losing everything.
    private func rows(_ count: Int, _ dimension: Int, _ generator: inout SeededGenerator) -> [Float] {
        (0..<count).flatMap { row in generator.normals(dimension).map { $0 * Float(1 + row) + 0.5 } }
    }

    @Test(arguments: dimensions)
    func layerNorm(dimension: Int) throws {
        var generator = SeededGenerator(seed: UInt64(dimension))
        let input = rows(3, dimension, &generator)
        let (gain, bias) = (generator.normals(dimension), generator.normals(dimension))
        for (gain, bias) in [(gain, bias), (nil, bias), (gain, nil), (nil, nil)] as [([Float]?, [Float]?)] {
            var result = input
            try LayerNorm(dimension: dimension, gain: gain, bias: bias, epsilon: 1e-3).apply(to: &result)
            let expected = oracle(
                input, ReferenceNorm(.layer, epsilon: 1e-3, gain: gain, bias: bias), dimension: dimension)
            try requireClose("row", result, expected, tolerance: { 2e-6 * max(1, abs($0)) }, "\(dimension)")
        }
    }

    /// The bits of the reference on every kernel set, over more rows than one block of 64.
    @Test(arguments: dimensions, KernelSet.available)
    func gradients(dimension: Int, kernels: KernelSet) throws {
        var generator = SeededGenerator(seed: UInt64(dimension))
        let input = rows(70, dimension, &generator)
        let outputGradient = generator.normals(input.count)
        let (gain, bias) = (generator.normals(dimension), generator.normals(dimension))
        func check(_ found: RowNormGradients, _ norm: ReferenceNorm) throws {
            let (given, of) = (
                (0..<70).map { input.rows($0, 1, dimension) }, (0..<70).map { outputGradient.rows($0, 1, dimension) }
            )
            let expected = norm.parameterGradients(given, of: of)
            try requireSameBits("dx", found.rows, zip(given, of).flatMap { norm.gradient($0, of: $1) }, "\(dimension)")
            try requireSameBits("dgain", found.gain, norm.gain == nil ? [] : expected.gain, "\(dimension)")
            try requireSameBits("dbias", found.bias, norm.bias == nil ? [] : expected.bias, "\(dimension)")
        }
        for (gain, bias) in [(gain, bias), (nil, bias), (gain, nil), (nil, nil)] as [([Float]?, [Float]?)] {
            let layer = try LayerNorm(dimension: dimension, gain: gain, bias: bias, epsilon: 1e-3, kernels: kernels)
            try check(
                layer.gradients(rows: input, outputGradient: outputGradient),
                ReferenceNorm(.layer, epsilon: 1e-3, gain: gain, bias: bias))
            let rms = try RMSNorm(dimension: dimension, gain: gain, epsilon: 1e-3, kernels: kernels)
            try check(
                rms.gradients(rows: input, outputGradient: outputGradient),
                ReferenceNorm(.rms, epsilon: 1e-3, gain: gain))
        }
        let norm = try RMSNorm(dimension: dimension)
        expectRefusal(.elementCount, "outputGradient") { _ = try norm.gradients(rows: input, outputGradient: []) }
        #expect(try norm.gradients(rows: [], outputGradient: []).rows.isEmpty)
    }

    /// Gradients are added to what is there, -0 counting as +0, and buffers are written whole.
    @Test(arguments: [true, false])
    func gradientsAreAdded(isLayer: Bool) throws {
        let dimension = 19
        var generator = SeededGenerator(seed: 31)
        let input = rows(5, dimension, &generator)
        let outputGradient = generator.normals(2 * dimension) + [Float](repeating: 0, count: 3 * dimension)
        let (gain, bias) = (generator.normals(dimension), generator.normals(dimension))
        let layer = try LayerNorm(dimension: dimension, gain: gain, bias: bias)
        let rms = try RMSNorm(dimension: dimension, gain: gain)
        func add(_ gradients: inout RowNormGradients) throws {
            if isLayer {
                try layer.addGradients(rows: input, outputGradient: outputGradient, to: &gradients)
            } else {
                try rms.addGradients(rows: input, outputGradient: outputGradient, to: &gradients)
            }
        }
        let once =
            isLayer
            ? try layer.gradients(rows: input, outputGradient: outputGradient)
            : try rms.gradients(rows: input, outputGradient: outputGradient)
        #expect(once.bias.count == (isLayer ? dimension : 0))
        var found = once
        try add(&found)
        try requireSameBits("dx", found.rows, once.rows.map { $0 + $0 }, "twice")
        try requireSameBits("dgain", found.gain, once.gain.map { $0 + $0 }, "twice")
        try requireSameBits("dbias", found.bias, once.bias.map { $0 + $0 }, "twice")
        for start in [Float(-0.0), 7] {
            func filled(_ array: [Float]) -> [Float] { [Float](repeating: start, count: array.count) }
            found = RowNormGradients(rows: filled(once.rows), gain: filled(once.gain), bias: filled(once.bias))
            if start == 0 {
                try add(&found)
            } else {
                try input.withUnsafeBufferPointer { rows in
                    try outputGradient.withUnsafeBufferPointer { gradient in
                        try found.rows.withUnsafeMutableBufferPointer { dx in
                            try found.gain.withUnsafeMutableBufferPointer { gain in
                                try found.bias.withUnsafeMutableBufferPointer { bias in
                                    let buffers = RowNormGradientBuffers(
                                        rows: dx, gain: gain, bias: isLayer ? bias : nil)
                                    if isLayer {
                                        try layer.gradients(rows: rows, outputGradient: gradient, into: buffers)
                                    } else {
                                        try rms.gradients(rows: rows, outputGradient: gradient, into: buffers)
                                    }
                                }
                            }
                        }
                    }
                }
            }
            try requireSameBits("dx", found.rows, once.rows, "from \(start)")
            try requireSameBits("dgain", found.gain, once.gain, "from \(start)")
            try requireSameBits("dbias", found.bias, once.bias, "from \(start)")
        }
        (found.gain, found.bias) = ([], [])
        try add(&found)
        #expect(found.gain.isEmpty && found.bias.isEmpty)
        found.gain = [1]
        expectRefusal(.elementCount, "gradients.gain") { try add(&found) }
        found.gain = []
        let plain = try RMSNorm(dimension: dimension)
        found.bias = [1]
        expectRefusal(.composition, "gradients.bias") {
            try plain.addGradients(rows: input, outputGradient: outputGradient, to: &found)
        }
        (found.bias, found.rows) = ([], [1])
        expectRefusal(.elementCount, "gradients.rows") { try add(&found) }
    }

    @Test(arguments: dimensions)
    func rmsNorm(dimension: Int) throws {
        var generator = SeededGenerator(seed: UInt64(dimension) + 1)
        let input = rows(3, dimension, &generator)
        let gain = generator.normals(dimension)
        for gain in [gain, nil] {
            var result = input
            try RMSNorm(dimension: dimension, gain: gain).apply(to: &result)
            let expected = oracle(input, ReferenceNorm(.rms, epsilon: 1e-6, gain: gain), dimension: dimension)
            try requireClose("row", result, expected, tolerance: { 1e-6 * max(1, abs($0)) }, "\(dimension)")
        }
    }

    /// A row of zeros stays zero under RMSNorm; LayerNorm gives it the bias.
    @Test func zeroRows() throws {
        var rows = [Float](repeating: 0, count: 8)
        try RMSNorm(dimension: 4, gain: [1, 2, 3, 4]).apply(to: &rows)
        #expect(rows == [Float](repeating: 0, count: 8))
        try LayerNorm(dimension: 4, bias: [1, 2, 3, 4]).apply(to: &rows)
        #expect(rows == [1, 2, 3, 4, 1, 2, 3, 4])
    }

    @Test func notANumberStaysInItsRow() throws {
        var rows: [Float] = [1, 2, 3, 4, 1, .nan, 3, 4, 1, 2, 3, .infinity]
        try LayerNorm(dimension: 4).apply(to: &rows)
        #expect(rows[..<4].allSatisfy { $0.isFinite })
        #expect(rows[4...].allSatisfy { $0.isNaN })
    }

    @Test("bits are fixed", arguments: KernelSet.available)
    func bitsAreFixed(kernels: KernelSet) throws {
        var generator = SeededGenerator(seed: 9)
        var rows = generator.normals(5 * 67)
        let (gain, bias) = (generator.normals(67), generator.normals(67))
        try LayerNorm(dimension: 67, gain: gain, bias: bias, kernels: kernels).apply(to: &rows)
        try RMSNorm(dimension: 67, gain: gain, kernels: kernels).apply(to: &rows)
        var digest = BitDigest()
        digest.add(rows)
        #expect(digest.hexadecimal == "fad4aeb975683342")
    }

    @Test func errors() throws {
        expectRefusal(.dimension, "dimension") { _ = try LayerNorm(dimension: 0) }
        expectRefusal(.dimension, "dimension") { _ = try RMSNorm(dimension: -1) }
        expectRefusal(.elementCount, "gain") { _ = try LayerNorm(dimension: 3, gain: [1, 2]) }
        expectRefusal(.elementCount, "bias") { _ = try LayerNorm(dimension: 3, bias: [1, 2, 3, 4]) }
        expectRefusal(.epsilon, "epsilon") { _ = try RMSNorm(dimension: 3, epsilon: -1) }
        expectRefusal(.epsilon, "epsilon") { _ = try RMSNorm(dimension: 3, epsilon: .nan) }
        var rows: [Float] = [1, 2, 3, 4]
        expectRefusal(.elementCount, "rows") { try RMSNorm(dimension: 3).apply(to: &rows) }
        #expect(rows == [1, 2, 3, 4])
        var none: [Float] = []
        try LayerNorm(dimension: 3).apply(to: &none)
    }
}
