// SPDX-License-Identifier: Apache-2.0
// RecurrenceGradients.swift - the gradients of linear attention and retention by their formulas over all pairs.

extension ReferenceProblem {
    /// The gradients of queries, keys and values in Double, with D = dO[i].out[i] and Z the sum of the row's w:
    ///
    ///     linear:     dw[j] = (dO[i].v[j] - D) / Z,  dq = sum_j dw[j] phi(k[j]) phi'(q),  dk[j] = sum_i dw[j] phi(q) phi'(k[j]),
    ///                 dv[j] = sum_i w[j] / Z dO[i]
    ///     retention:  b[j] = g^|p - j| / sqrt(D sum_j g^|p - j|),  dq = sum_j b[j] (dO[i].v[j]) k[j],  dk[j] = sum_i of the same
    ///                 times q,  dv[j] = sum_i b[j] (q.k[j]) dO[i]
    ///
    /// phi' is 1 above 0 and e^x below. A row whose dO is 0 is not read. Shapes as for ``backward(queries:keys:values:_:storedOutput:addedTo:)``; all else is 0.
    public func oracleGradients(
        _ recurrence: ReferenceRecurrence, queries: [Float], keys: [Float], values: [Float], outputGradient: [Float]
    ) -> ReferenceGradients<Double> {
        var gradients = ReferenceGradients<Double>(zerosFor: self)
        forEachRow(queries: queries, keys: keys, values: values) { row in
            let first = row.index * valueDimension
            let gradient = Array(outputGradient[first..<first + valueDimension]).map(Double.init)
            if gradient.contains(where: { $0 != 0 }) { add(row, recurrence, gradient, to: &gradients) }
        }
        return gradients
    }

    private func add(
        _ row: Row, _ recurrence: ReferenceRecurrence, _ gradient: [Double],
        to gradients: inout ReferenceGradients<Double>
    ) {
        let (pairs, divisor) = recurrentPairs(row, recurrence)
        if divisor == 0 { return }
        let products = pairs.map { pair in
            (0..<valueDimension).reduce(0) {
                $0 + gradient[$1] * Double(row.values[pair.key * valueDimension + $1])
            }
        }
        let mean = zip(pairs, products).reduce(0) { $0 + $1.0.weight * $1.1 } / divisor
        for (pair, product) in zip(pairs, products) {
            let w = pair.kept / divisor * (recurrence == .linear ? product - mean : product)
            let (query, key) = (row.index * headDimension, (row.keyValueHead * keys + pair.key) * headDimension)
            for d in 0..<headDimension {
                let (q, k) = (Double(row.query[d]), Double(row.keys[pair.key * headDimension + d]))
                gradients.queries[query + d] += w * recurrence.feature(k) * recurrence.featureSlope(q)
                gradients.keys[key + d] += w * recurrence.feature(q) * recurrence.featureSlope(k)
            }
            let value = (row.keyValueHead * keys + pair.key) * valueDimension
            for c in 0..<valueDimension { gradients.values[value + c] += pair.weight / divisor * gradient[c] }
        }
    }
}

extension ReferenceRecurrence {
    /// phi, or x itself.
    func feature(_ x: Double) -> Double {
        self == .retention ? x : x > 0 ? x + 1 : Double.exponential(x)
    }

    func featureSlope(_ x: Double) -> Double {
        self == .retention || x > 0 ? 1 : Double.exponential(x)
    }
}
