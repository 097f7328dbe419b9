// SPDX-License-Identifier: Apache-2.0
// TensorStatistics.swift - what outliers do to a tensor: moments, the largest element, and the loss of int8.

/// Statistics of the elements of a tensor: how far they spread, and what a few large ones cost a quantised model.
///
/// With the mean m, and the population's central moments c2 and c4, of n elements:
///
/// | property | formula |
/// |---|---|
/// | ``standardDeviation`` | `sqrt(c2)` |
/// | ``infinityNorm`` | `max abs(x)` |
/// | ``l1OverL2`` | `sum abs(x) / sqrt(n sum x^2)` |
/// | ``meanOverMaximum`` | `(sum abs(x) / n) / max abs(x)` |
/// | ``rawKurtosis`` | `c4 / c2^2` |
/// | ``excessKurtosis`` | `c4 / c2^2 - 3` |
/// | ``sampleKurtosis`` | `c4 / (s^4 + 1e-6)`, `s^2 = c2 n / (n - 1)` |
/// | ``outlierShare`` | share of x with `abs(x - m) > 6 sqrt(c2)` |
/// | ``int8Step`` | `max abs(x) / 127` |
/// | ``int8SignalToNoise`` | `10 log10(sum x^2 / sum (x - step round(x / step))^2)` |
///
/// All sums are in Double and in a fixed order: the same bits on every platform.
///
/// *Edge cases*: NaN anywhere makes every property but ``count`` NaN, and so does an infinity, all but the
/// ``infinityNorm``. No elements: the infinity norm and the step are 0, all else is NaN. Equal elements: raw and
/// excess kurtosis are NaN (0/0), the sample's 0, or NaN for a single element, where s is 0/0. Zeros alone: the measures of
/// sparsity are NaN.
///
/// *Sources*: Bondarenko et al., "Quantizable Transformers", arXiv 2306.12929, 2023, whose code has the kurtosis by the
/// sample's deviation; the excess kurtosis is that of EsperBERTo and Flash-Attention-Softmax-N.
public struct TensorStatistics: Sendable, Hashable {
    /// Elements.
    public let count: Int
    public let mean: Double
    /// Of the population: divided by n.
    public let standardDeviation: Double
    /// The largest magnitude. What one step of absmax quantisation is proportional to: every doubling costs 6 dB.
    public let infinityNorm: Double
    /// How evenly magnitudes are spread: 1 where all are equal, 1 / sqrt(n) where all but one are 0.
    public let l1OverL2: Double
    /// The same by the largest: 1 where all are equal, 1 / n where all but one are 0.
    public let meanOverMaximum: Double
    /// By population moments: 3 for a normal distribution, 1 at least.
    public let rawKurtosis: Double
    /// The same convention, less 3: 0 for a normal distribution. It is that of the softmax1 projects.
    public let excessKurtosis: Double
    /// The fourth population moment over the fourth power of the sample's deviation (divided by n - 1), with 1e-6 beside
    /// it: another convention, that of Qualcomm's outlier-free transformers, to compare with published numbers. Near 3 for
    /// a normal distribution of unit variance; it shrinks with the variance, and so depends on the unit.
    public let sampleKurtosis: Double
    /// The share of elements farther than six standard deviations from the mean, 0...1.
    public let outlierShare: Double
    /// One step of symmetric int8 quantisation whose largest integer, 127, is the largest magnitude.
    public let int8Step: Double
    /// What that quantisation leaves, in dB: the energy of the elements over the energy of the errors. +inf where nothing
    /// is lost. About 52.9 - 20 log10(infinityNorm / standardDeviation) for elements of mean 0 that are many steps wide.
    public let int8SignalToNoise: Double

    /// The statistics of an array.
    public init(_ values: [Float]) { self.init(values.span) }

    /// The statistics of a span.
    public init(_ values: Span<Float>) {
        self = values.withUnsafeBufferPointer { values in inFloatMode { TensorStatistics(values) } }
    }

    private init(_ values: UnsafeBufferPointer<Float>) {
        count = values.count
        let n = Double(values.count)
        let mean = orderedSum(count) { Double(values[$0]) } / n
        let variance = orderedSum(count) { (Double(values[$0]) - mean) * (Double(values[$0]) - mean) } / n
        let fourth = orderedSum(count) { index in
            let square = (Double(values[index]) - mean) * (Double(values[index]) - mean)
            return square * square
        }
        self.mean = mean
        standardDeviation = variance.squareRoot()
        rawKurtosis = fourth / n / (variance * variance)
        excessKurtosis = rawKurtosis - 3
        let sampleVariance = variance * n / (n - 1)
        sampleKurtosis = fourth / n / (sampleVariance * sampleVariance + 1e-6)
        let limit = 6 * standardDeviation
        // The sum of no elements is 0, and 0 / 0 the NaN it has to be; NaN is on neither side of a limit.
        outlierShare =
            limit.isNaN ? .nan : orderedSum(count) { abs(Double(values[$0]) - mean) > limit ? 1 : 0 } / n
        let magnitudes = orderedSum(count) { Double(abs(values[$0])) }
        let squares = orderedSum(count) { Double(values[$0]) * Double(values[$0]) }
        infinityNorm = Self.infinityNorm(values)
        l1OverL2 = magnitudes / (n * squares).squareRoot()
        meanOverMaximum = magnitudes / n / infinityNorm
        int8Step = infinityNorm / 127
        int8SignalToNoise = Self.int8SignalToNoise(values, step: int8Step, signal: squares)
    }

    private static func infinityNorm(_ values: UnsafeBufferPointer<Float>) -> Double {
        var largest: Float = 0
        for value in values where !(abs(value) <= largest) {
            if value.isNaN { return .nan }
            largest = abs(value)
        }
        return Double(largest)
    }

    /// The integer next to x, ties to even: adding 1.5 * 2^52 leaves no bits for a fraction.
    private static func rounded(_ x: Double) -> Double { (x + 0x1.8p52) - 0x1.8p52 }

    private static func int8SignalToNoise(_ values: UnsafeBufferPointer<Float>, step: Double, signal: Double) -> Double
    {
        guard !values.isEmpty, step.isFinite else { return .nan }
        if step == 0 { return .infinity }
        let noise = orderedSum(values.count) { index in
            let value = Double(values[index])
            let error = value - step * rounded(value / step)
            return error * error
        }
        // ln 10, to the nearest Double.
        return noise == 0 ? .infinity : 10 * ElementaryFunctions.logarithm(signal / noise) / 0x1.26bb1bbb55516p+1
    }
}
