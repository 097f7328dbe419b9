// SPDX-License-Identifier: Apache-2.0
// Positions.swift - rotary embeddings and collinear constrained attention: what becomes of a row at a position.

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

/// A rotary embedding, or collinear constrained attention on top of one. Pair j of a row at position p is turned by the
/// angle p theta[j]:
///
///     R (x1, x2) = (x1 cos - x2 sin, x2 cos + x1 sin)
///
/// | form | query pair | key pair |
/// |---|---|---|
/// | rotary | R (x1, x2) | R (x1, x2) |
/// | slack | (x1, x2) times R (x1, x2), by channels | R (t, t) |
/// | strict | R (x1^2 + x2^2, 0) | R (t, 0) |
///
/// with t = max(0, (x1 + x2) / 2).
public struct ReferencePositions: Sendable {
    public enum Pairing: Sendable, CaseIterable { case halves, interleaved }
    public enum Form: Sendable, CaseIterable { case rotary, slack, strict }
    public enum Side: Sendable, CaseIterable { case queries, keys }
    public enum Scaling: Sendable {
        case none
        case linear(factor: Double)
        case ntk(factor: Double)
        /// `length` of this and of longrope: the largest position + 1.
        case dynamic(factor: Double, trainedLength: Int, length: Int)
        case yarn(
            factor: Double, trainedLength: Int, betaFast: Double = 32, betaSlow: Double = 1,
            attentionFactor: Double? = nil, mscale: Double? = nil, mscaleAllDim: Double? = nil, truncate: Bool = true)
        case longrope(
            shortFactor: [Double], longFactor: [Double], factor: Double, trainedLength: Int,
            attentionFactor: Double? = nil, length: Int)
        case llama3(factor: Double, lowFreqFactor: Double, highFreqFactor: Double, trainedLength: Int)
        case thetas([Double], attentionFactor: Double)
        case xPos(scaleBase: Double, centre: Int)
    }

    public let base: Double
    /// Channels that are turned: an even number.
    public let dimensions: Int
    public let pairing: Pairing
    public let scaling: Scaling
    public let form: Form
    /// The angle of each pair per position.
    public private(set) var thetas: [Double] = []

    public init(
        base: Double = 10_000, dimensions: Int, pairing: Pairing = .halves, scaling: Scaling = .none,
        form: Form = .rotary
    ) {
        precondition(dimensions >= 2 && dimensions % 2 == 0, "dimensions are even")
        self.base = base
        self.dimensions = dimensions
        self.pairing = pairing
        self.scaling = scaling
        self.form = form
        thetas = (0..<dimensions / 2).map(theta)
    }

    /// The channels of pair j.
    public func channels(ofPair j: Int) -> (Int, Int) {
        pairing == .halves ? (j, j + dimensions / 2) : (2 * j, 2 * j + 1)
    }

    // MARK: - In Float

    /// The row at a position, operation by operation as every kernel set computes it.
    public func turned(_ row: [Float], position: Int, _ side: Side) -> [Float] {
        turned(row, side) { cosineAndSine(position: position, pair: $0, side) }
    }

    /// The row turned by cosines and sines given pair by pair.
    public func turned(_ row: [Float], _ side: Side, by table: (Int) -> (cosine: Float, sine: Float)) -> [Float] {
        var result = row
        for j in 0..<dimensions / 2 {
            let (first, second) = channels(ofPair: j)
            let (cosine, sine) = table(j)
            (result[first], result[second]) = turned(row[first], row[second], cosine, sine, side)
        }
        return result
    }

    private func turned(_ x1: Float, _ x2: Float, _ c: Float, _ s: Float, _ side: Side) -> (Float, Float) {
        func rotated(_ x1: Float, _ x2: Float) -> (Float, Float) { (fma(x1, c, -(x2 * s)), fma(x2, c, x1 * s)) }
        let mean = (x1 + x2) * 0.5
        let t = mean < 0 ? 0 : mean
        switch (form, side) {
        case (.rotary, _): return rotated(x1, x2)
        case (.slack, .queries):
            let (y1, y2) = rotated(x1, x2)
            return (x1 * y1, x2 * y2)
        case (.slack, .keys): return rotated(t, t)
        case (.strict, .queries):
            let length = fma(x1, x1, x2 * x2)
            return (length * c, length * s)
        case (.strict, .keys): return (t * c, t * s)
        }
    }

    /// The cosine and sine of a pair's angle times its factor: computed in Double, rounded once.
    public func cosineAndSine(position: Int, pair j: Int, _ side: Side) -> (cosine: Float, sine: Float) {
        let (sine, cosine) = ReferenceMath.sineAndCosine(position: position, theta: thetas[j])
        let factor = factor(position: position, pair: j, side)
        return (Float(cosine * factor), Float(sine * factor))
    }

    // MARK: - Angles, with bits

    private func theta(_ j: Int) -> Double {
        let theta = ReferenceMath.exponential(
            -(Double(2 * j) / Double(dimensions)) * ReferenceMath.logarithm(scaledBase))
        switch scaling {
        case .none, .ntk, .dynamic, .xPos: return theta
        case .linear(let factor): return theta / factor
        case .yarn(let factor, _, _, _, _, _, _, _), .llama3(let factor, _, _, _):
            let ramp = ramp(j, theta)
            return theta / factor * ramp + theta * (1 - ramp)
        case .longrope(let short, let long, _, let trainedLength, _, let length):
            return theta / (length > trainedLength ? long : short)[j]
        case .thetas(let thetas, _): return thetas[j]
        }
    }

    /// base g^(r / (r - 2)), with g the factor of NTK-aware scaling.
    public var scaledBase: Double {
        var growth = 1.0
        switch scaling {
        case .ntk(let factor): growth = factor
        case .dynamic(let factor, let trainedLength, let length):
            if length <= trainedLength { return base }
            growth = factor * (Double(length) / Double(trainedLength)) - (factor - 1)
        default: return base
        }
        let exponent = Double(dimensions) / Double(dimensions - 2)
        return base * ReferenceMath.exponential(exponent * ReferenceMath.logarithm(growth))
    }

    /// The share of interpolation of YaRN and Llama 3: 0 for pairs that turn often within the trained length, 1 for slow ones.
    private func ramp(_ j: Int, _ theta: Double) -> Double {
        switch scaling {
        case .yarn(_, let trainedLength, let betaFast, let betaSlow, _, _, _, let truncate):
            func pair(_ beta: Double) -> Double {
                let turns = Double(trainedLength) / (2 * Double.pi * beta)
                return Double(dimensions / 2) * ReferenceMath.logarithm(turns) / ReferenceMath.logarithm(base)
            }
            var (low, high) = (pair(betaFast), pair(betaSlow))
            if truncate { (low, high) = (low.rounded(.down), high.rounded(.up)) }
            (low, high) = (max(low, 0), min(high, Double(dimensions - 1)))
            return min(max((Double(j) - low) / max(high - low, 0.001), 0), 1)
        case .llama3(_, let lowFreqFactor, let highFreqFactor, let trainedLength):
            let turns = Double(trainedLength) * theta / (2 * Double.pi)
            return min(max((highFreqFactor - turns) / (highFreqFactor - lowFreqFactor), 0), 1)
        default: return 0
        }
    }

    /// What cosines and sines are multiplied by: the attention factor; of xPos zeta^((p - centre) / scaleBase) for queries
    /// and its inverse for keys.
    private func factor(position: Int, pair j: Int, _ side: Side) -> Double {
        switch scaling {
        case .yarn(let factor, _, _, _, let given, let mscale, let mscaleAllDim, _):
            func magnitude(_ mscale: Double) -> Double { 0.1 * mscale * ReferenceMath.logarithm(factor) + 1 }
            if let given { return given }
            guard let mscale, let mscaleAllDim, mscale != 0, mscaleAllDim != 0 else { return magnitude(1) }
            return magnitude(mscale) / magnitude(mscaleAllDim)
        case .longrope(_, _, let factor, let trainedLength, let given, _):
            if let given { return given }
            if factor == 1 { return 1 }
            let growth = ReferenceMath.logarithm(factor) / ReferenceMath.logarithm(Double(trainedLength))
            return (1 + growth).squareRoot()
        case .thetas(_, let given): return given
        case .xPos(let scaleBase, let centre):
            let zeta = (Double(2 * j) + 0.4 * Double(dimensions)) / (1.4 * Double(dimensions))
            let exponent = Double(position - centre) * (ReferenceMath.logarithm(zeta) / scaleBase)
            return ReferenceMath.exponential(side == .queries ? exponent : -exponent)
        default: return 1
        }
    }

    // MARK: - In Double

    /// The row at a position by the formulas, with the platform's functions: what is true.
    public func oracle(_ row: [Double], position: Int, _ side: Side) -> [Double] {
        var result = row
        for j in 0..<dimensions / 2 {
            let (first, second) = channels(ofPair: j)
            let (x1, x2) = (row[first], row[second])
            let (c, s) = oracleCosineAndSine(position: position, pair: j, side)
            let t = max(0, (x1 + x2) / 2)
            let (y1, y2) = (x1 * c - x2 * s, x2 * c + x1 * s)
            (result[first], result[second]) =
                switch (form, side) {
                case (.rotary, _): (y1, y2)
                case (.slack, .queries): (x1 * y1, x2 * y2)
                case (.slack, .keys): (t * c - t * s, t * c + t * s)
                case (.strict, .queries): ((x1 * x1 + x2 * x2) * c, (x1 * x1 + x2 * x2) * s)
                case (.strict, .keys): (t * c, t * s)
                }
        }
        return result
    }

    /// The cosine and sine of a pair's angle times its factor: what is true.
    func oracleCosineAndSine(position: Int, pair j: Int, _ side: Side) -> (cosine: Double, sine: Double) {
        let angle = Double(position) * oracleTheta(j)
        let factor = oracleFactor(position, j, side)
        return (cos(angle) * factor, sin(angle) * factor)
    }
}
