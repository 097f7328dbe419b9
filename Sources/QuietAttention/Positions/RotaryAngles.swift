// SPDX-License-Identifier: Apache-2.0
// RotaryAngles.swift - a rotary embedding made numbers: the angle of every pair, and tables of cosines and sines.

import CKernels

/// The angles per position of an embedding's pairs, and the factors of their cosines and sines.
struct RotaryAngles: Sendable {
    /// Queries and keys differ in the factors of xPos.
    enum Side { case queries, keys }

    /// theta[j].
    let thetas: [Double]
    /// Of queries and keys alike.
    let attentionFactor: Double
    /// ln zeta[j] / scaleBase of xPos, otherwise empty.
    let growth: [Double]
    let centre: Int
    /// Positions are at most so far from the centre.
    private let reach: Int

    /// - Parameters:
    ///   - embedding: checked.
    ///   - dimensions: r.
    ///   - length: the largest position + 1, which scalings that count positions go by if they have no length of their own.
    init(_ embedding: RotaryEmbedding, dimensions: Int, length: Int) throws(AttentionError) {
        let scaling = embedding.scaling
        let length = scaling.length ?? length
        let base = try Self.base(embedding, dimensions: dimensions, length: length)
        let logarithm = ElementaryFunctions.logarithm(base)
        var thetas = (0..<dimensions / 2).map {
            ElementaryFunctions.exponential(-(Double(2 * $0) / Double(dimensions)) * logarithm)
        }
        attentionFactor = scaling.factorOfTables
        var (growth, centre) = ([Double](), 0)
        var reach = AttentionShape.longestSequence * 2
        switch scaling {
        case .none, .ntk, .dynamic: break
        case .linear(let factor): thetas = thetas.map { $0 / factor }
        case .yarn(let factor, _, _, _, _, _, _, _), .llama3(let factor, _, _, _):
            let ramp = scaling.ramp(thetas, baseLogarithm: logarithm)
            for j in thetas.indices {
                thetas[j] = thetas[j] / factor * ramp[j] + thetas[j] * (1 - ramp[j])
            }
        case .longrope(let short, let long, _, let trainedLength, _, _):
            thetas = zip(thetas, length > trainedLength ? long : short).map { $0 / $1 }
        case .thetas(let own, _): thetas = own
        case .xPos(let scaleBase, let middle):
            growth = thetas.indices.map { j in
                let zeta = (Double(2 * j) + 0.4 * Double(dimensions)) / (1.4 * Double(dimensions))
                return ElementaryFunctions.logarithm(zeta) / scaleBase
            }
            // zeta >= 0.4 / 1.4: factors of 2^-64 and more, and their inverses.
            (centre, reach) = (middle, Int(35 * scaleBase))
        }
        // Sines and cosines are right up to so large an angle.
        if let fastest = thetas.map(abs).max(), fastest > 1 { reach = min(reach, Int(Double(reach) / fastest)) }
        (self.thetas, self.growth, self.centre, self.reach) = (thetas, growth, centre, reach)
    }

    private static func base(
        _ embedding: RotaryEmbedding, dimensions: Int, length: Int
    ) throws(AttentionError) -> Double {
        var growth = 1.0
        switch embedding.scaling {
        case .ntk(let factor): growth = factor
        case .dynamic(let factor, let trainedLength, _):
            if length <= trainedLength { return embedding.base }
            growth = factor * (Double(length) / Double(trainedLength)) - (factor - 1)
        default: return embedding.base
        }
        let exponent = Double(dimensions) / Double(dimensions - 2)
        let base = embedding.base * ElementaryFunctions.exponential(exponent * ElementaryFunctions.logarithm(growth))
        guard base <= RotaryEmbedding.largestBase else {
            throw RotaryEmbedding.refusal(
                "scaling", expected: "a scaled base of at most \(RotaryEmbedding.largestBase)", found: "\(base)")
        }
        return base
    }

    // MARK: - Tables

    /// Floats of the table of one position: `[2][pairs rounded up to QATTN_LANES]`, cosines first.
    var rowFloats: Int { 2 * lanes }
    private var lanes: Int { (thetas.count + QATTN_LANES - 1) / QATTN_LANES * QATTN_LANES }

    /// Checks that positions are in reach.
    func check(_ positions: ClosedRange<Int>) throws(AttentionError) {
        // Positions are within 2^42 of 0: these sums fit.
        let valid = centre - reach...centre + reach
        guard valid.contains(positions.lowerBound), valid.contains(positions.upperBound) else {
            throw AttentionError(
                .position, "positions",
                expected: "positions within \(reach) of \(centre)"
                    + (growth.isEmpty ? ", where angles are exact" : ": a nearer centre, or a larger scaleBase"),
                found: "\(positions)")
        }
    }

    /// Fills the table of some positions.
    ///
    /// - Parameter table: `positions.count * rowFloats` floats.
    func fill(_ table: UnsafeMutablePointer<Float>, positions: some Collection<Int>, _ side: Side) {
        var row = table
        for position in positions {
            thetas.withUnsafeBufferPointer { thetas in
                for j in thetas.indices {
                    let (sine, cosine) = ElementaryFunctions.sineAndCosine(Double(position), thetas[j])
                    let factor = factor(position, pair: j, side)
                    row[j] = Float(cosine * factor)
                    row[lanes + j] = Float(sine * factor)
                }
            }
            for padding in thetas.count..<lanes { (row[padding], row[lanes + padding]) = (0, 0) }
            row += rowFloats
        }
    }

    private func factor(_ position: Int, pair: Int, _ side: Side) -> Double {
        if growth.isEmpty { return attentionFactor }
        let exponent = Double(position - centre) * growth[pair]
        return ElementaryFunctions.exponential(side == .queries ? exponent : -exponent)
    }
}

/// The cosines and sines of some positions in memory of their own.
final class RotaryTable: @unchecked Sendable {
    let address: UnsafeMutablePointer<Float>

    init(_ angles: RotaryAngles, positions: some Collection<Int>, _ side: RotaryAngles.Side) throws(AttentionError) {
        let bytes = max(1, positions.count * angles.rowFloats * MemoryLayout<Float>.stride)
        guard let memory = AlignedMemory.allocate(bytes) else {
            throw AttentionError(.memory, "positions", expected: "\(bytes) bytes of memory", found: "none")
        }
        address = memory.assumingMemoryBound(to: Float.self)
        angles.fill(address, positions: positions, side)
    }

    deinit {
        AlignedMemory.free(UnsafeMutableRawPointer(address))
    }
}

extension RotaryEmbedding.Scaling {
    /// What cosines and sines are multiplied by, of queries and keys alike.
    fileprivate var factorOfTables: Double {
        switch self {
        case .yarn(let factor, _, _, _, let given, let mscale, let mscaleAllDim, _):
            func magnitude(_ mscale: Double) -> Double { 0.1 * mscale * ElementaryFunctions.logarithm(factor) + 1 }
            if let given { return given }
            guard let mscale, let mscaleAllDim, mscale != 0, mscaleAllDim != 0 else { return magnitude(1) }
            return magnitude(mscale) / magnitude(mscaleAllDim)
        case .longrope(_, _, let factor, let trainedLength, let given, _):
            if let given { return given }
            if factor == 1 { return 1 }
            let trained = ElementaryFunctions.logarithm(Double(trainedLength))
            return (1 + ElementaryFunctions.logarithm(factor) / trained).squareRoot()
        case .thetas(_, let given): return given
        default: return 1
        }
    }

    /// The share of interpolation of YaRN and Llama 3, per pair.
    fileprivate func ramp(_ thetas: [Double], baseLogarithm: Double) -> [Double] {
        switch self {
        case .yarn(_, let trainedLength, let betaFast, let betaSlow, _, _, _, let truncate):
            func pair(turning beta: Double) -> Double {
                let turns = Double(trainedLength) / (2 * Double.pi * beta)
                return Double(thetas.count) * ElementaryFunctions.logarithm(turns) / baseLogarithm
            }
            var (low, high) = (pair(turning: betaFast), pair(turning: betaSlow))
            if truncate { (low, high) = (low.rounded(.down), high.rounded(.up)) }
            (low, high) = (max(low, 0), min(high, Double(2 * thetas.count - 1)))
            return thetas.indices.map { min(max((Double($0) - low) / max(high - low, 0.001), 0), 1) }
        case .llama3(_, let lowFreqFactor, let highFreqFactor, let trainedLength):
            return thetas.map { theta in
                let turns = Double(trainedLength) * theta / (2 * Double.pi)
                return min(max((highFreqFactor - turns) / (highFreqFactor - lowFreqFactor), 0), 1)
            }
        default: return [Double](repeating: 0, count: thetas.count)
        }
    }
}
