// SPDX-License-Identifier: Apache-2.0
// AttentionOutputs.swift - what a forward pass gives, and what the reference gives for a case.

import AttentionReference

/// Outputs of a head or of a whole case, in [batch][query heads][queries] order.
public struct AttentionOutputs: Sendable, Equatable {
    public var output, logSumExp, sinkShare: [Float]
    public init(output: [Float], logSumExp: [Float], sinkShare: [Float]) {
        self.output = output
        self.logSumExp = logSumExp
        self.sinkShare = sinkShare
    }
}

/// Throws unless the bits of all outputs are equal.
public func requireSameBits(
    _ actual: AttentionOutputs, _ expected: AttentionOutputs, valueDimension: Int,
    _ context: @autoclosure () -> String
) throws {
    let rows = expected.logSumExp.count
    try requireSameBits("out", actual.output, expected.output, extents: [rows, valueDimension], context())
    try requireSameBits("lse", actual.logSumExp, expected.logSumExp, context())
    try requireSameBits("sink share", actual.sinkShare, expected.sinkShare, context())
}

extension AttentionCase {
    public func referenceProblem(_ inputs: AttentionInputs) -> ReferenceProblem {
        var problem = ReferenceProblem(
            batch: batch, queryHeads: queryHeads, keyValueHeads: keyValueHeads, queries: queries, keys: keys,
            headDimension: headDimension, valueDimension: valueDimension, scale: inputs.scale, sinks: inputs.sinks)
        (problem.firstKeyOffset, problem.lastKeyOffset) = keyOffsets
        (problem.keyLengths, problem.padsQueries) = (inputs.keyLengths, padsQueries)
        problem.allowed = inputs.allowed.map { ReferenceBroadcast($0.values, extents: $0.extents) }
        problem.bias = inputs.bias.map { ReferenceBroadcast($0.values, extents: $0.extents) }
        addScoreRules(to: &problem)
        problem.products = products
        return problem
    }

    /// What every kernel set gives, bit for bit.
    public func reference(_ inputs: AttentionInputs) -> AttentionOutputs {
        let result = referenceProblem(inputs)
            .forward(queries: inputs.queries, keys: inputs.keys, values: inputs.values)
        return AttentionOutputs(
            output: result.output, logSumExp: result.logSumExp, sinkShare: result.sinkShare)
    }
}

extension HeadProblem {
    /// With so many query heads alike on the key/value head.
    public func referenceProblem(heads: Int = 1) -> ReferenceProblem {
        var problem = ReferenceProblem(
            queryHeads: heads, keyValueHeads: 1, queries: queryCount, keys: keyCount, headDimension: headDimension,
            valueDimension: valueDimension, scale: scale, sinks: [Float](repeating: sink, count: heads))
        problem.firstKeyOffset = firstKeyOffset
        problem.lastKeyOffset = lastKeyOffset
        (problem.keyLengths, problem.padsQueries) = ([keyLength], true)
        problem.allowed = allowed.map { ReferenceBroadcast($0, extents: [1, 1, queryCount, keyCount]) }
        problem.bias = bias.map { ReferenceBroadcast($0, extents: [1, 1, queryCount, keyCount]) }
        problem.rowFactors = rowFactors.map { [[Double]](repeating: $0, count: heads).flatMap { $0 } }
        (problem.softcap, problem.normaliser) = (softcap, normaliser)
        problem.alibiSlopes = alibiSlope.map { [Float](repeating: $0, count: heads) }
        problem.rowConstants = [Float](repeating: constant, count: heads * queryCount)
        (problem.storage, problem.products) = (packedStorage, products)
        return problem
    }

    public var reference: AttentionOutputs {
        let result = referenceProblem().forward(queries: queries, keys: keys, values: values)
        return AttentionOutputs(
            output: result.output, logSumExp: result.logSumExp, sinkShare: result.sinkShare)
    }
}
