// SPDX-License-Identifier: Apache-2.0
// AttentionCase+Scores.swift - a case's scaling, softcap, ALiBi and normaliser: for the library, and by their formulas.

import AttentionReference
import Foundation
import QuietAttention

extension AttentionCase {
    static let logKeysOffset: Float = -1.5
    private static let (base, kappa, alpha, fixedKeys) = (24.0, 0.75, 3.0, 40.0)

    /// The s of scalable softmax, one per query head.
    public var scalableFactors: [Double] { (0..<queryHeads).map { 0.25 + 0.125 * Double($0) } }

    /// [queries], by every batch item and head.
    private var tableFactors: [Double] { (0..<queries).map { 0.5 + Double($0 % 7) / 4 } }

    var attentionScaling: ScoreScaling {
        get throws {
            switch scaling {
            case .none: .constant
            case .clippedLogKeys: .clippedLogKeys(base: Self.base)
            case .logKeys: .logKeys(base: Self.base)
            case .logKeysPerDimension: .logKeysPerDimension(kappa: Self.kappa)
            case .scalableSoftmax: .scalableSoftmax(scalableFactors)
            case .table: .table(try BroadcastTensor(tableFactors, queries: queries, keys: 1))
            }
        }
    }

    var attentionNormaliser: AttentionNormaliser {
        switch normaliser {
        case .softmax, .softmaxLogKeys: .softmax
        case .clipped: .clippedSoftmax(gamma: .fixed(-0.03), zeta: 1.003)
        case .clippedOverKeys: .clippedSoftmax(gamma: .overKeys(alpha: Self.alpha, .visible))
        case .sigmoid: .sigmoid(bias: .fixed(-0.5))
        case .sigmoidOverKeys: .sigmoid(bias: .minusLog(.visible))
        case .softpick: .softpick()
        case .reluSquared: .reluSquared(divisor: .fixed(Self.fixedKeys))
        case .reluSquaredOverKeys: .reluSquared(divisor: .visible)
        case .normalisedReluSquared: .normalisedReluSquared(sink: 0)
        case .quietReluSquared: .normalisedReluSquared(sink: 1.5)
        }
    }

    /// The same for the reference, row by row.
    func addScoreRules(to problem: inout ReferenceProblem) {
        problem.softcap = softcap
        if hasALiBi { problem.alibiSlopes = publishedSlopes }
        let counts = problem.visibleKeyCounts
        if scaling != .none { problem.rowFactors = counts.indices.map { factor(row: $0, keys: counts[$0]) } }
        problem.rowConstants = counts.map { Float(constant(keys: Double($0))) }
        switch normaliser {
        case .softmax: break
        case .softmaxLogKeys: problem.sinks = problem.sinks.map { _ in Self.logKeysOffset }
        case .clipped: problem.normaliser = .clippedSoftmax(zeta: 1.003)
        case .clippedOverKeys: problem.normaliser = .clippedSoftmax(zeta: 1)
        case .sigmoid, .sigmoidOverKeys: problem.normaliser = .sigmoid
        case .softpick: problem.normaliser = .softpick
        case .reluSquared, .reluSquaredOverKeys: problem.normaliser = .reluSquared
        case .normalisedReluSquared, .quietReluSquared: problem.normaliser = .normalisedReluSquared
        }
    }

    private func factor(row: Int, keys: Int) -> Double {
        let n = Double(keys)
        if scaling == .table { return tableFactors[row % queries] }
        if keys == 0 { return 0 }
        return switch scaling {
        case .none, .table: 1
        case .clippedLogKeys: max(1, log(n) / log(Self.base))
        case .logKeys: log(n) / log(Self.base)
        case .logKeysPerDimension: Self.kappa * log(n) / Double(headDimension).squareRoot()
        case .scalableSoftmax: scalableFactors[row / queries % queryHeads] * log(n)
        }
    }

    private func constant(keys n: Double) -> Double {
        switch normaliser {
        case .softmax, .normalisedReluSquared: 0
        case .softmaxLogKeys: log(n)
        case .clipped: -0.03
        case .clippedOverKeys: n == 0 ? 0 : -Self.alpha / n
        case .sigmoid: -0.5
        case .sigmoidOverKeys: n == 0 ? 0 : -log(n)
        case .softpick: 1e-8
        case .reluSquared: Self.fixedKeys
        case .reluSquaredOverKeys: n
        case .quietReluSquared: 1.5
        }
    }

    /// 2^(-8 (h + 1) / H), and in between for other numbers of heads than powers of two.
    private var publishedSlopes: [Float] {
        let power = Int(exp2(floor(log2(Double(queryHeads)))))
        return (0..<queryHeads).map { head in
            let exponent = head < power ? 8 * Double(head + 1) : 4 * Double(2 * (head - power) + 1)
            return Float(exp2(-exponent / Double(power)))
        }
    }
}
