// SPDX-License-Identifier: Apache-2.0
// WeightInitialization.swift - the first weights of a linear layer, from a seed.

internal import SeededInputs

/// How the weights of a linear layer are drawn. The same seed gives the same bits on every platform and in every version.
///
/// A layer y = W x whose inputs and weights are independent and of mean 0 has `Var(y) = fanIn Var(w) Var(x)`; through L
/// such layers without activations the variance grows by `(fanIn Var(w))^L`.
///
/// *Source*: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010; the
/// deviation of 0.02 is that of GPT-2 and BERT.
public enum WeightInitialization: Sendable, Hashable {
    /// Uniform between the bounds `+-gain sqrt(6 / (fanIn + fanOut))`: variance `2 gain^2 / (fanIn + fanOut)`.
    case xavierUniform(gain: Double = 1)
    /// Normal with standard deviation `gain sqrt(2 / (fanIn + fanOut))`.
    case xavierNormal(gain: Double = 1)
    /// Normal with this standard deviation, whatever the layer's width.
    case normal(standardDeviation: Double = 0.02)

    /// Draws the weights `[fanOut, fanIn]` of a layer.
    ///
    /// - Parameters:
    ///   - fanIn: inputs of the layer, 0 and up.
    ///   - fanOut: outputs of the layer, 0 and up.
    ///   - seed: any number.
    ///   - stream: streams of one seed are independent: one for each layer of a model.
    /// - Throws: ``AttentionError`` of kind `dimension`, `overflow`, `memory` or `scale` (a gain or deviation that is negative, NaN
    ///   or infinite, or that gives weights beyond Float).
    public func weights(
        fanIn: Int, fanOut: Int, seed: UInt64, stream: UInt64 = 0
    ) throws(AttentionError) -> [Float] {
        for (name, fan) in [("fanIn", fanIn), ("fanOut", fanOut)] where fan < 0 {
            throw AttentionError(.dimension, name, expected: "0 or more", found: "\(fan)")
        }
        let count = try CheckedMemory.product("fanIn", fanIn, fanOut)
        try CheckedMemory.check("weights", count: count, of: Float.self)
        return try inFloatMode { () throws(AttentionError) in
            try weights(count, fanIn: fanIn, fanOut: fanOut, seed: seed, stream: stream)
        }
    }

    private func weights(
        _ count: Int, fanIn: Int, fanOut: Int, seed: UInt64, stream: UInt64
    ) throws(AttentionError) -> [Float] {
        let fans = Double(fanIn) + Double(fanOut)
        var generator = SeededGenerator(seed: seed, stream: stream)
        switch self {
        case .xavierUniform(let gain):
            let bound = try checked("gain", gain) * (6 / max(fans, 1)).squareRoot()
            return (0..<count).map { _ in Float((2 * uniform(&generator) - 1) * bound) }
        case .xavierNormal(let gain):
            return normals(count, deviation: try checked("gain", gain) * (2 / max(fans, 1)).squareRoot(), &generator)
        case .normal(let deviation):
            return normals(count, deviation: try checked("standardDeviation", deviation), &generator)
        }
    }

    /// A tenth of the largest Float: no normal number drawn here exceeds 9 deviations.
    private func checked(_ name: String, _ value: Double) throws(AttentionError) -> Double {
        guard value >= 0, value <= Double(Float.greatestFiniteMagnitude) / 10 else {
            throw AttentionError(
                .scale, name, expected: "a number from 0 to a tenth of Float's largest", found: "\(value)")
        }
        return value
    }

    /// A multiple of 2^-53 from 0 to 1, without 1.
    private func uniform(_ generator: inout SeededGenerator) -> Double {
        Double(generator.next() >> 11) * 0x1p-53
    }

    /// Marsaglia's polar method: a point drawn evenly from the unit disc gives two independent normal numbers,
    ///
    ///     (u, v) sqrt(-2 ln(s) / s),   s = u^2 + v^2 in (0, 1)
    ///
    /// True normal numbers, tails and kurtosis included, because a model's outliers are measured by them.
    private func normals(_ count: Int, deviation: Double, _ generator: inout SeededGenerator) -> [Float] {
        var values: [Float] = []
        values.reserveCapacity(count + 1)
        while values.count < count {
            let (u, v) = (2 * uniform(&generator) - 1, 2 * uniform(&generator) - 1)
            let s = u * u + v * v
            guard s > 0, s < 1 else { continue }
            let factor = (-2 * ElementaryFunctions.logarithm(s) / s).squareRoot() * deviation
            values.append(Float(u * factor))
            values.append(Float(v * factor))
        }
        if values.count > count { values.removeLast() }
        return values
    }
}
