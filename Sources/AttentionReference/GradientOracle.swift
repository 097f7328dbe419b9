// SPDX-License-Identifier: Apache-2.0
// GradientOracle.swift - the backward pass by its formulas, in Double: what is true.

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
    /// The gradients in Double, by the derivatives of the formula of ``ReferenceProblem``: what those in Float are measured
    /// against. Arguments and shapes as for ``backward(queries:keys:values:_:storedOutput:addedTo:)``. With products of
    /// bfloat16, of queries, keys and values as they are rounded; the gradients of outputs are taken as given.
    public func oracleGradients(
        queries: [Float], keys: [Float], values: [Float], _ loss: ReferenceLoss
    ) -> ReferenceGradients<Double> {
        loss.require(toFit: self)
        var gradients = ReferenceGradients<Double>(zerosFor: self)
        forEachRow(queries: queries, keys: keys, values: values) { row in
            let first = row.index * valueDimension
            let outputGradient = Array(loss.outputGradient[first..<first + valueDimension])
            add(row, outputGradient, Double(loss.logSumExpGradient?[row.index] ?? 0), to: &gradients)
        }
        return gradients
    }

    private func add(
        _ row: Row, _ outputGradient: [Float], _ dL: Double, to gradients: inout ReferenceGradients<Double>
    ) {
        let visible = (0..<keys).filter { row.isVisible[$0] }
        let scores: [(scaled: Double, finished: Double)] = visible.map { formulaScores(row, $0) }
        let x = scores.map(\.finished)
        let (p, _, sinkShare) = weights(x, row)
        let dp = visible.map { Double.dot(outputGradient, row.values + $0 * valueDimension, count: valueDimension) }
        let (u, sinkGradient) = scoreGradients(x, p, sinkShare, dp, dL, row)
        let head = row.index / queries % queryHeads
        gradients.sinks[head] += sinkGradient
        for (index, j) in visible.enumerated() {
            let tangent = softcap.map { tanh(scores[index].scaled / $0) } ?? 0
            let scaled = u[index] * (1 - tangent * tangent)
            let w = scaled * scale * row.factor
            let (query, key) = (row.index * headDimension, (row.keyValueHead * keys + j) * headDimension)
            for d in 0..<headDimension {
                gradients.queries[query + d] += w * Double(row.keys[j * headDimension + d])
                gradients.keys[key + d] += w * Double(row.query[d])
            }
            let value = (row.keyValueHead * keys + j) * valueDimension
            for c in 0..<valueDimension { gradients.values[value + c] += p[index] * Double(outputGradient[c]) }
            if let biasStart = row.biasStart { gradients.bias[biasStart + j] += u[index] }
            gradients.slopes[head] -= u[index] * Double(abs(row.position - j))
            gradients.logScales[head] += scaled * scores[index].scaled
        }
    }

    /// The gradients of the finished scores x of the keys that the row sees, and of its sink.
    private func scoreGradients(
        _ x: [Double], _ p: [Double], _ sinkShare: Double, _ dp: [Double], _ dL: Double, _ row: Row
    ) -> (scores: [Double], sink: Double) {
        func sum(_ terms: [Double]) -> Double { terms.reduce(0, +) }
        let c = Double(row.constant)
        let mean = sum(zip(p, dp).map(*))
        switch normaliser {
        case .softmax: return (zip(p, dp).map { $0 * ($1 - mean + dL) }, sinkShare * (dL - mean))
        case .clippedSoftmax(let zeta):
            let shares = softmax(x, sink: Double(row.sink)).weights
            let stretch = Double(zeta) - c
            let g = zip(shares, dp).map { s, dp in 0 < stretch * s + c && stretch * s + c < 1 ? stretch * dp : 0 }
            let mean = sum(zip(shares, g).map(*))
            return (zip(shares, g).map { $0 * ($1 - mean + dL) }, sinkShare * (dL - mean))
        case .sigmoid: return (zip(p, dp).map { $0 * (1 - $0) * $1 }, 0)
        case .softpick:
            let maximum = max(0, x.max() ?? 0)
            let divisor = sum(x.map { abs(exp($0 - maximum) - exp(-maximum)) }) + c
            return (
                zip(x, dp).map { x, dp in
                    exp(x - maximum) / divisor * ((x > 0 ? dp : 0) - (x > 0 ? mean : x < 0 ? -mean : 0))
                }, 0
            )
        case .reluSquared: return (zip(x, dp).map { c == 0 ? 0 : 2 * max($0, 0) / c * $1 }, 0)
        case .normalisedReluSquared:
            let divisor = sum(x.map { max($0, 0) * max($0, 0) }) + c
            return (zip(x, dp).map { divisor == 0 ? 0 : 2 * max($0, 0) / divisor * ($1 - mean) }, 0)
        }
    }
}
