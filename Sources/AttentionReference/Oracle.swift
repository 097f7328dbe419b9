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
        let scores: [Scalar] = visible.map { formulaScores(row, $0).finished }
        let (weights, logSumExp, sinkShare) = weights(scores, row)
        var output = [Scalar](repeating: 0, count: valueDimension)
        for (weight, j) in zip(weights, visible) {
            Scalar.add(weight, times: row.values + j * valueDimension, to: &output)
        }
        return (output, logSumExp, sinkShare)
    }

    /// The score of a key: scale factor q.k[j], and after softcap, ALiBi and bias.
    func formulaScores<Scalar: FormulaScalar>(_ row: Row, _ j: Int) -> (scaled: Scalar, finished: Scalar) {
        let scaled = Scalar(scale * row.factor) * .dot(row.query, row.keys + j * headDimension, count: headDimension)
        var score = scaled
        if let softcap { score = Scalar(softcap) * Scalar.hyperbolicTangent(score / Scalar(softcap)) }
        score -= Scalar(row.slope) * Scalar(abs(row.position - j))
        return (scaled, score + (row.bias.map { Scalar($0[j]) } ?? 0))
    }

    /// The weights of the scores by the normaliser's formula.
    func weights<Scalar: FormulaScalar>(
        _ scores: [Scalar], _ row: Row
    ) -> (weights: [Scalar], logSumExp: Scalar, sinkShare: Scalar) {
        let c = Scalar(row.constant)
        func divided(_ weights: [Scalar], by divisor: Scalar) -> ([Scalar], Scalar, Scalar) {
            (weights.map { divisor == 0 ? 0 : $0 / divisor }, 0, 0)
        }
        switch normaliser {
        case .softmax: return softmax(scores, sink: Scalar(row.sink) + c)
        case .clippedSoftmax(let zeta):
            var result = softmax(scores, sink: Scalar(row.sink))
            result.weights = result.weights.map { ((Scalar(zeta) - c) * $0 + c).clamped(to: 0...1) }
            return result
        case .sigmoid: return divided(scores.map { 1 / (1 + Scalar.exponential(-($0 + c))) }, by: 1)
        case .softpick:
            let maximum = scores.reduce(0) { max($0, $1) }
            let scaled = scores.map {
                $0 < 1
                    ? Scalar.exponentialMinusOne($0) * Scalar.exponential(-maximum)
                    : Scalar.exponential($0 - maximum) - Scalar.exponential(-maximum)
            }
            return divided(scaled.map { max($0, 0) }, by: scaled.reduce(0) { $0 + abs($1) } + c)
        case .reluSquared: return divided(scores.map { max($0, 0) * max($0, 0) }, by: c)
        case .normalisedReluSquared:
            let squares = scores.map { max($0, 0) * max($0, 0) }
            return divided(squares, by: squares.reduce(c, +))
        }
    }

    func softmax<Scalar: FormulaScalar>(
        _ scores: [Scalar], sink: Scalar
    ) -> (weights: [Scalar], logSumExp: Scalar, sinkShare: Scalar) {
        let maximum = scores.reduce(sink) { $1.isNaN ? $1 : max($0, $1) }
        // -infinity - -infinity is NaN, so scores that are all -infinity are compared with 0.
        let reference = maximum == -.infinity ? 0 : maximum
        let weights = scores.map { Scalar.exponential($0 - reference) }
        let sinkWeight = Scalar.exponential(sink - reference)
        let sum = weights.reduce(sinkWeight, +)
        // The sum is 0 only where no key has a weight and there is no sink. Then every share is 0.
        let divisor = sum == 0 ? 1 : sum
        return (weights.map { $0 / divisor }, reference + Scalar.logarithm(sum), sinkWeight / divisor)
    }
}

/// What the formula needs of a type. The loops over a dimension are here because generic code is slow without
/// optimisation, as tests run it.
protocol FormulaScalar: BinaryFloatingPoint & Sendable {
    static func exponential(_ x: Self) -> Self
    static func exponentialMinusOne(_ x: Self) -> Self
    static func logarithm(_ x: Self) -> Self
    static func hyperbolicTangent(_ x: Self) -> Self
    /// sum_d a[d] b[d].
    static func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Self
    /// output[d] += weight * value[d].
    static func add(_ weight: Self, times value: UnsafePointer<Float>, to output: inout [Self])
}

extension Double: FormulaScalar {
    static func exponential(_ x: Double) -> Double { exp(x) }
    static func exponentialMinusOne(_ x: Double) -> Double { expm1(x) }
    static func logarithm(_ x: Double) -> Double { log(x) }
    static func hyperbolicTangent(_ x: Double) -> Double { tanh(x) }

    static func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Double {
        var sum = 0.0
        for d in 0..<count { sum += Double(a[d]) * Double(b[d]) }
        return sum
    }

    static func add(_ weight: Double, times value: UnsafePointer<Float>, to output: inout [Double]) {
        for d in output.indices { output[d] += weight * Double(value[d]) }
    }
}

extension Float: FormulaScalar {
    static func exponential(_ x: Float) -> Float { exp(x) }
    static func exponentialMinusOne(_ x: Float) -> Float { expm1(x) }
    static func logarithm(_ x: Float) -> Float { log(x) }
    static func hyperbolicTangent(_ x: Float) -> Float { tanh(x) }

    static func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, count: Int) -> Float {
        var sum: Float = 0
        for d in 0..<count { sum += a[d] * b[d] }
        return sum
    }

    static func add(_ weight: Float, times value: UnsafePointer<Float>, to output: inout [Float]) {
        for d in output.indices { output[d] += weight * value[d] }
    }
}

extension BinaryFloatingPoint {
    /// The nearest number within the range.
    fileprivate func clamped(to range: ClosedRange<Self>) -> Self { min(max(self, range.lowerBound), range.upperBound) }
}
