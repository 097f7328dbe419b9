// SPDX-License-Identifier: Apache-2.0
// Backward.swift - the backward pass in Float: the definition of every bit of the gradients.

extension ReferenceProblem {
    /// The backward pass, operation by operation as every kernel set does it, and so with the same bits: "The backward pass"
    /// of Documentation/Numerics.md.
    ///
    /// Edge cases: Keys that no row sees have gradients of +0, and nothing is read of them. A row that sees no key has a
    /// gradient of +0, gives -share * (0 - dL) to its sink, and nothing else is read of it. NaN in the gradient of
    /// an output makes that row's gradient NaN, and those of the keys and values it sees.
    ///
    /// - Parameters:
    ///   - queries: As for ``forward(queries:keys:values:)``, and so are keys and values.
    ///   - loss: The gradients of its results.
    ///   - rounded: What storing an element of the output made of it. Deltas are made of the stored output.
    ///   - start: What is added to; nil is zeros.
    public func backward(
        queries: [Float], keys: [Float], values: [Float], _ loss: ReferenceLoss,
        storedOutput rounded: (Float) -> Float = { $0 }, addedTo start: ReferenceGradients<Float>? = nil
    ) -> ReferenceGradients<Float> {
        precondition(storage == .float32, "keys and values of int8 have no gradients")
        loss.require(toFit: self)
        var sums = GradientSums(self, start)
        loss.outputGradient.withUnsafeBufferPointer { outputGradient in
            forEachRow(queries: queries, keys: keys, values: values) { row in
                let scores = scores(row)
                let solved = solved(row, scores.finished)
                sums.add(
                    RowGradient(
                        row, solved, scores, output: solved.output.map(rounded),
                        outputGradient: outputGradient.baseAddress! + row.index * valueDimension,
                        logSumExpGradient: loss.logSumExpGradient?[row.index], products: products))
            }
        }
        return sums.gradients
    }
}

/// Queries whose terms are summed from +0: queries 0 to 63, 64 to 127 and so on.
private let queryBlock = 64

/// Step B3: the sums of all gradients, to which rows are added in the order [batch, queryHeads, queries].
private struct GradientSums {
    let problem: ReferenceProblem
    var gradients: ReferenceGradients<Float>
    /// Of the keys and values of the key/value head, over a block of queries: [keys][dimension].
    private var keyBlockSums: BlockSums, valueBlockSums: BlockSums
    /// Over the queries of a head.
    private var sinkSums = LaneSums(), slopeSums = LaneSums(), logScaleSums = LaneSums()

    /// -0 in what is added to counts as +0.
    init(_ problem: ReferenceProblem, _ start: ReferenceGradients<Float>?) {
        self.problem = problem
        gradients = start ?? ReferenceGradients(zerosFor: problem)
        for tensor in [\ReferenceGradients<Float>.queries, \.keys, \.values, \.sinks, \.bias, \.slopes, \.logScales] {
            for index in gradients[keyPath: tensor].indices { gradients[keyPath: tensor][index] += 0 }
        }
        keyBlockSums = BlockSums(count: problem.keys * problem.headDimension, products: problem.products)
        valueBlockSums = BlockSums(count: problem.keys * problem.valueDimension, products: problem.products)
    }

    mutating func add(_ gradient: RowGradient) {
        let row = gradient.row
        let (query, head) = (row.index % problem.queries, row.index / problem.queries % problem.queryHeads)
        let (dimension, width) = (problem.headDimension, problem.valueDimension)
        var raised = [Float](repeating: 0, count: problem.keys)
        var slope = LaneSums()
        for j in 0..<problem.keys where row.isVisible[j] {
            raised[j] = gradient.raisedScoreGradient(j)
            let u = raised[j] / problem.products.raise
            slope.add(-u, times: problem.distance(row.position, j), at: j)
            if let biasStart = row.biasStart { gradients.bias[biasStart + j] += u }
            raised[j] = problem.products.raisedFactor(productGradient(raised[j], gradient.scores.capped[j], row))
            let place = query % queryBlock
            keyBlockSums.add(raised[j], times: row.query, width: dimension, toSumsFrom: j * dimension, at: place)
            valueBlockSums.add(
                problem.products.factor(gradient.weight(j)), times: gradient.raisedOutputGradient, width: width,
                toSumsFrom: j * width, at: place)
        }
        addQueryTerms(raised, row)
        if problem.normaliser.hasSink { sinkSums.add(-(gradient.solved.sinkShare * gradient.delta), at: query) }
        slopeSums.add(slope.total, at: query)
        if query % queryBlock == queryBlock - 1 || query == problem.queries - 1 {
            endQueryBlock(keyValueHead: row.keyValueHead)
        }
        if query == problem.queries - 1 { endHead(head) }
    }

    /// w of step B2, or w' of u': the gradient of q.k[j].
    private func productGradient(_ u: Float, _ capped: Float, _ row: Row) -> Float {
        let factor = Float(problem.scale * row.factor)
        guard let softcap = problem.softcap else { return u * factor }
        let y = capped * Float(1 / (softcap * problem.unit))
        return (u * fma(-y, y, 1)) * factor
    }

    /// - Parameter w: w', one per key.
    private mutating func addQueryTerms(_ w: [Float], _ row: Row) {
        let dimension = problem.headDimension
        var total = [Float](repeating: 0, count: dimension)
        for first in stride(from: 0, to: problem.keys, by: keyBlock) {
            var block = BlockSums(count: dimension, products: problem.products)
            for j in first..<min(first + keyBlock, problem.keys) where row.isVisible[j] {
                block.add(w[j], times: row.keys + j * dimension, width: dimension, toSumsFrom: 0, at: j - first)
            }
            for d in 0..<dimension {
                block.join(d, to: &total[d])
                block.join(d, to: &gradients.queries[row.index * dimension + d])
            }
        }
        var logScale = LaneSums()
        for d in 0..<dimension where total[d] != 0 { logScale.add(row.query[d], times: total[d], at: d) }
        logScaleSums.add(logScale.total, at: row.index % problem.queries)
    }

    private mutating func endQueryBlock(keyValueHead: Int) {
        keyBlockSums.move(to: &gradients.keys, from: keyValueHead * problem.keys * problem.headDimension)
        valueBlockSums.move(to: &gradients.values, from: keyValueHead * problem.keys * problem.valueDimension)
    }

    private mutating func endHead(_ head: Int) {
        gradients.sinks[head] += sinkSums.total
        gradients.slopes[head] += slopeSums.total
        gradients.logScales[head] += logScaleSums.total
        (sinkSums, slopeSums, logScaleSums) = (LaneSums(), LaneSums(), LaneSums())
    }
}
