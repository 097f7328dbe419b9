// SPDX-License-Identifier: Apache-2.0
// Normaliser.swift - how a row's scores become weights, beside softmax: one function per normaliser.

/// How the scores x of a row's visible keys become weights p. c stands for the row's constant,
/// ``ReferenceProblem/rowConstants``.
///
/// Only the two softmaxes have a sink, a log-sum-exp and a sink share; the results of others are 0 there.
public enum ReferenceNormaliser: Sendable, Hashable {
    /// `e^x[j] / (e^s + sum_k e^x[k])`; c, if there is one, is added to the sink logit s.
    case softmax
    /// `clip((zeta - c) softmax[j] + c, 0, 1)`: gamma = c <= 0, zeta >= 1.
    case clippedSoftmax(zeta: Float)
    /// `1 / (1 + e^-(x[j] + c))`.
    case sigmoid
    /// `max(e^x[j] - 1, 0) / (sum_k |e^x[k] - 1| + c)`, numerator and sum times e^-max(0, max x) before c is added.
    case softpick
    /// `max(x[j], 0)^2 / c`; 0 where c is 0.
    case reluSquared
    /// `max(x[j], 0)^2 / (c + sum_k max(x[k], 0)^2)`; 0 where the denominator is 0.
    case normalisedReluSquared

    /// Whether there are a sink, a log-sum-exp and a sink share.
    var hasSink: Bool {
        switch self {
        case .softmax, .clippedSoftmax: true
        default: false
        }
    }

    /// Whether weights are of the scores themselves, in natural units, instead of powers of 2.
    var takesScores: Bool { self == .reluSquared || self == .normalisedReluSquared }
}

/// The normaliser of one row.
enum RowNormaliser {
    case softmax
    /// `maximum` and `factor` are those of the whole row's softmax: p = 2^(t - maximum) factor.
    case clippedSoftmax(maximum: Float, factor: Float, gamma: Float, zeta: Float)
    case sigmoid(bias: Float)
    case softpick(epsilon: Float)
    case reluSquared(divisor: Float)
    case normalisedReluSquared(sink: Float)

    var isSoftmax: Bool { if case .softmax = self { true } else { false } }

    /// Whether sums are relative to a running maximum.
    var hasMaximum: Bool {
        switch self {
        case .softmax, .softpick: true
        default: false
        }
    }

    /// The weight of a score's value, and what the sum of the row counts; `rounds` tells that they will be rounded to bfloat16.
    func weight(_ t: Float, reference: Float, rounds: Bool = false) -> (weight: Float, counted: Float) {
        switch self {
        case .softmax:
            let p = rounds ? ReferenceMath.shortExp2(t - reference) : ReferenceMath.exp2(t - reference)
            return (p, p)
        case .clippedSoftmax(let maximum, let factor, let gamma, let zeta):
            let p = ReferenceMath.exp2(t - maximum) * factor
            let stretched = notNegative(fma(zeta - gamma, p, gamma))
            return (stretched > 1 ? 1 : stretched, 0)
        case .sigmoid(let bias):
            let x = t + bias * log2eFloat
            return (x < -125 ? 0 : 1 / (1 + ReferenceMath.exp2(-x)), 0)
        case .softpick:
            let difference = Self.powerMinusOne(t, reference: reference)
            return (notNegative(difference), abs(difference))
        case .reluSquared, .normalisedReluSquared:
            let x = notNegative(t)
            return (x * x, x * x)
        }
    }

    /// 2^t - 1, times 2^-reference. Near 0 the difference of powers would have few bits left.
    static func powerMinusOne(_ t: Float, reference: Float) -> Float {
        let base = ReferenceMath.exp2(-reference)
        return abs(t) <= 0.5 ? base * ReferenceMath.exp2m1(t) : ReferenceMath.exp2(t - reference) - base
    }

    /// What the output is multiplied by.
    func factor(sum: Float) -> Float {
        let divisor: Float =
            switch self {
            case .softmax, .clippedSoftmax, .sigmoid: 1
            case .softpick(let epsilon): sum + epsilon
            case .reluSquared(let divisor): divisor
            case .normalisedReluSquared(let sink): sum + sink
            }
        return divisor == 0 ? 0 : 1 / divisor
    }
}

/// x, or 0 where x is negative; NaN stays.
func notNegative(_ x: Float) -> Float { x < 0 ? 0 : x }
