// SPDX-License-Identifier: Apache-2.0
// Oracle.swift - attention by its formula: in Double, what is true; in Float, how near the formula itself comes.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Android)
    import Android
#elseif canImport(ucrt)
    import ucrt
#endif

extension ReferenceProblem {
    /// The forward pass in Double, by the formula of ``ReferenceProblem``, one pass over the whole row: what the results
    /// in Float are measured against. Arguments, shapes and edge cases as in ``forward(queries:keys:values:)``.
    public func oracle(queries: [Float], keys: [Float], values: [Float]) -> ForwardResult<Double> {
        formula(queries, keys, values)
    }

    /// The same formula in Float, as a textbook writes it. Its own error is the measure of what may be asked: the
    /// forward pass is to have at most twice as much. Its bits depend on the platform's `exp` and `log`.
    public func textbook(queries: [Float], keys: [Float], values: [Float]) -> ForwardResult<Float> {
        formula(queries, keys, values)
    }

    private func formula<Scalar: FormulaScalar>(
        _ queries: [Float], _ keys: [Float], _ values: [Float]
    ) -> ForwardResult<Scalar> {
        var result = ForwardResult<Scalar>(output: [], logSumExp: [], sinkShare: [])
        forEachRow(queries: queries, keys: keys, values: values) { row in
            let (output, logSumExp, sinkShare) = formula(row) as (output: [Scalar], Scalar, Scalar)
            result.output += output
            result.logSumExp.append(logSumExp)
            result.sinkShare.append(sinkShare)
        }
        return result
    }

    private func formula<Scalar: FormulaScalar>(
        _ row: Row
    ) -> (output: [Scalar], logSumExp: Scalar, sinkShare: Scalar) {
        let visible = (0..<keys).filter { row.isVisible[$0] }
        let scores = visible.map { j in
            let score = Scalar(scale) * Scalar.dot(row.query, row.keys + j * headDimension, count: headDimension)
            return score + (row.bias.map { Scalar($0[j]) } ?? 0)
        }
        var output = [Scalar](repeating: 0, count: valueDimension)
        let sink = Scalar(row.sink)
        let maximum = scores.reduce(sink) { $1.isNaN ? $1 : max($0, $1) }
        // -infinity - -infinity is NaN, so scores that are all -infinity are compared with 0.
        let reference = maximum == -.infinity ? 0 : maximum
        let weights = scores.map { Scalar.exponential($0 - reference) }
        let sinkWeight = Scalar.exponential(sink - reference)
        let sum = weights.reduce(sinkWeight, +)
        // The sum is 0 only where no key has a weight and there is no sink. Then every share is 0.
        let divisor = sum == 0 ? 1 : sum
        for (weight, j) in zip(weights, visible) {
            Scalar.add(weight / divisor, times: row.values + j * valueDimension, to: &output)
        }
        return (output, reference + Scalar.logarithm(sum), sinkWeight / divisor)
    }
}

/// What the formula needs of a type. The loops over a dimension are here because generic code is slow without
/// optimisation, as tests run it.
private protocol FormulaScalar: BinaryFloatingPoint & Sendable {
    static func exponential(_ x: Self) -> Self
    static func logarithm(_ x: Self) -> Self
    /// sum_d a[d] b[d].
    static func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Self
    /// output[d] += weight * value[d].
    static func add(_ weight: Self, times value: UnsafePointer<Float>, to output: inout [Self])
}

extension Double: FormulaScalar {
    fileprivate static func exponential(_ x: Double) -> Double { exp(x) }
    fileprivate static func logarithm(_ x: Double) -> Double { log(x) }

    fileprivate static func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Double {
        var sum = 0.0
        for d in 0..<count { sum += Double(a[d]) * Double(b[d]) }
        return sum
    }

    fileprivate static func add(_ weight: Double, times value: UnsafePointer<Float>, to output: inout [Double]) {
        for d in output.indices { output[d] += weight * Double(value[d]) }
    }
}

extension Float: FormulaScalar {
    fileprivate static func exponential(_ x: Float) -> Float { exp(x) }
    fileprivate static func logarithm(_ x: Float) -> Float { log(x) }

    fileprivate static func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Float {
        var sum: Float = 0
        for d in 0..<count { sum += a[d] * b[d] }
        return sum
    }

    fileprivate static func add(_ weight: Float, times value: UnsafePointer<Float>, to output: inout [Float]) {
        for d in output.indices { output[d] += weight * value[d] }
    }
}
