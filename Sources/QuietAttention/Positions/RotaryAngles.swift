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
    let concentration: Double
    /// ln zeta[j] / scaleBase of xPos, otherwise empty.
    let growth: [Double]
    private let centre: Int
    /// Positions are at most so far from the centre.
    private let reach: Int

    /// - Parameters:
    ///   - embedding: checked.
    ///   - dimensions: r.
    ///   - length: keys of the sequence, of which dynamic NTK scaling makes use if it has no length of its own.
    init(_ embedding: RotaryEmbedding, dimensions: Int, length: Int) throws(AttentionError) {
        let base = try Self.base(embedding, dimensions: dimensions, length: length)
        let logarithm = ElementaryFunctions.logarithm(base)
        var thetas = (0..<dimensions / 2).map {
            ElementaryFunctions.exponential(-(Double(2 * $0) / Double(dimensions)) * logarithm)
        }
        var (concentration, growth, centre, reach) = (1.0, [Double](), 0, AttentionShape.longestSequence * 2)
        switch embedding.scaling {
        case .none, .ntk, .dynamicNTK: break
        case .interpolation(let factor): thetas = thetas.map { $0 / factor }
        case .yarn(let factor, _, _, _, let given, _):
            concentration = given ?? 0.1 * ElementaryFunctions.logarithm(factor) + 1
            let ramp = Self.ramp(embedding.scaling, dimensions: dimensions, baseLogarithm: logarithm)
            for j in thetas.indices {
                thetas[j] = thetas[j] / factor * ramp[j] + thetas[j] * (1 - ramp[j])
            }
        case .xPos(let scaleBase, let middle):
            growth = thetas.indices.map { j in
                let zeta = (Double(2 * j) + 0.4 * Double(dimensions)) / (1.4 * Double(dimensions))
                return ElementaryFunctions.logarithm(zeta) / scaleBase
            }
            // zeta >= 0.4 / 1.4: factors of 2^-64 and more, and their inverses.
            (centre, reach) = (middle, Int(35 * scaleBase))
        }
        (self.thetas, self.concentration, self.growth) = (thetas, concentration, growth)
        (self.centre, self.reach) = (centre, reach)
    }

    private static func base(
        _ embedding: RotaryEmbedding, dimensions: Int, length: Int
    ) throws(AttentionError) -> Double {
        var growth = 1.0
        switch embedding.scaling {
        case .none, .interpolation, .yarn, .xPos: return embedding.base
        case .ntk(let factor): growth = factor
        case .dynamicNTK(let factor, let trainedLength, let given):
            let length = given ?? length
            if length <= trainedLength { return embedding.base }
            growth = factor * (Double(length) / Double(trainedLength)) - (factor - 1)
        }
        let exponent = Double(dimensions) / Double(dimensions - 2)
        let base = embedding.base * ElementaryFunctions.exponential(exponent * ElementaryFunctions.logarithm(growth))
        guard base <= RotaryEmbedding.largestBase else {
            throw RotaryEmbedding.refusal(
                "scaling", expected: "a scaled base of at most \(RotaryEmbedding.largestBase)", found: "\(base)")
        }
        return base
    }

    /// YaRN's share of interpolation per pair.
    private static func ramp(
        _ scaling: RotaryEmbedding.Scaling, dimensions: Int, baseLogarithm: Double
    ) -> [Double] {
        guard case .yarn(_, let trainedLength, let betaFast, let betaSlow, _, let wholePairs) = scaling else {
            return []
        }
        func pair(turning beta: Double) -> Double {
            let turns = Double(trainedLength) / (2 * Double.pi * beta)
            return Double(dimensions / 2) * ElementaryFunctions.logarithm(turns) / baseLogarithm
        }
        var (low, high) = (pair(turning: betaFast), pair(turning: betaSlow))
        if wholePairs {
            low = max(low.rounded(.down), 0)
            high = min(high.rounded(.up), Double(dimensions - 1))
            if low == high { high += 0.001 }
        }
        return (0..<dimensions / 2).map { min(max((Double($0) - low) / (high - low), 0), 1) }
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
                expected: "positions within \(reach) of the centre \(centre): a nearer centre, or a larger scaleBase",
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
        if growth.isEmpty { return concentration }
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
