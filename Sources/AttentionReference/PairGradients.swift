// SPDX-License-Identifier: Apache-2.0
// PairGradients.swift - what one query and one key have of a gradient: steps B1 and B2 of Documentation/Numerics.md.

/// A row and what the gradient of its output is known to be.
struct RowGradient {
    let row: Row
    let solved: SolvedRow
    /// The row's scores, before and after ALiBi and bias.
    let scores: (capped: [Float], finished: [Float])
    let products: ReferenceProducts
    /// dO' as it is multiplied, [valueDimension]: whatever has an apostrophe here stands higher by
    /// ``ReferenceProducts/raise``.
    let raisedOutputGradient: [Float]
    /// What every dp[j] of the row is compared with, without raise.
    var delta: Float = 0
    /// dp'[j] = dO'.v[j] for every key; 0 for those that the row does not see.
    var raisedProductGradients: [Float] = []

    /// - Parameters:
    ///   - output: O in its storage, widened.
    ///   - outputGradient: dO as given, [valueDimension].
    ///   - logSumExpGradient: dL, or nil.
    init(
        _ row: Row, _ solved: SolvedRow, _ scores: (capped: [Float], finished: [Float]), output: [Float],
        outputGradient: UnsafePointer<Float>, logSumExpGradient: Float?, products: ReferenceProducts
    ) {
        (self.row, self.solved, self.scores, self.products) = (row, solved, scores, products)
        let factors = output.indices.map { products.raisedFactor(outputGradient[$0] * products.raise) }
        raisedOutputGradient = factors
        raisedProductGradients = scores.finished.indices.map { j in
            row.isVisible[j] ? products.dot(factors, row.values + j * output.count, count: output.count) : 0
        }
        let mean = meanOfProductGradients(output)
        delta = logSumExpGradient.map { mean - $0 } ?? mean
    }

    /// D: what dp[j] is on the average over the weights. 0 where the factor is 0: then the output is 0 whatever its gradient,
    /// which is not read.
    private func meanOfProductGradients(_ output: [Float]) -> Float {
        var sums = LaneSums()
        if case .clippedSoftmax = solved.normaliser {
            for j in scores.finished.indices where row.isVisible[j] {
                let (share, gradient) = clipped(j)
                sums.add(gradient, times: share, at: j)
            }
        } else if solved.factor != 0 {
            for c in output.indices { sums.add(raisedOutputGradient[c], times: output[c], at: c) }
        }
        return sums.total / products.raise
    }

    /// p of step B2: the weight with which forward took the value of a key that the row sees.
    func weight(_ j: Int) -> Float {
        let weight = solved.normaliser.weight(scores.finished[j], reference: solved.reference).weight
        return switch solved.normaliser {
        case .clippedSoftmax, .sigmoid: weight
        default: weight * solved.factor
        }
    }

    /// u' of step B2: the gradient of the finished score, in natural units, of a key that the row sees.
    func raisedScoreGradient(_ j: Int) -> Float {
        let (t, dp, factor) = (scores.finished[j], raisedProductGradients[j], solved.factor)
        let delta = delta * products.raise
        switch solved.normaliser {
        case .softmax: return weight(j) * (dp - delta)
        case .clippedSoftmax:
            let (share, gradient) = clipped(j)
            return share * (gradient - delta)
        case .sigmoid:
            let p = weight(j)
            return dp * fma(-p, p, p)
        case .softpick:
            let d = RowNormaliser.powerMinusOne(t, reference: solved.reference)
            let power = ReferenceMath.exp2(t - solved.reference)
            return (power * factor) * (d > 0 ? dp - delta : d < 0 ? delta : 0)
        case .reluSquared:
            let x = notNegative(t)
            return dp * ((x + x) * factor)
        case .normalisedReluSquared:
            let x = notNegative(t)
            return ((x + x) * factor) * (dp - delta)
        }
    }

    /// The key's share s of the softmax that is clipped, and the gradient g' of that share.
    private func clipped(_ j: Int) -> (share: Float, gradient: Float) {
        guard case .clippedSoftmax(let maximum, let factor, let gamma, let zeta) = solved.normaliser else {
            return (0, 0)
        }
        let share = ReferenceMath.exp2(scores.finished[j] - maximum) * factor
        let stretched = fma(zeta - gamma, share, gamma)
        return (share, stretched > 0 && stretched < 1 ? raisedProductGradients[j] * (zeta - gamma) : 0)
    }
}
