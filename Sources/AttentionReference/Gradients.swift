// SPDX-License-Identifier: Apache-2.0
// Gradients.swift - what a backward pass gives.

/// The gradients of a loss with regard to everything that a ``ReferenceProblem`` is computed from.
public struct ReferenceGradients<Scalar: BinaryFloatingPoint & Sendable>: Sendable {
    /// [batch, queryHeads, queries, headDimension].
    public var queries: [Scalar]
    /// [batch, keyValueHeads, keys, headDimension].
    public var keys: [Scalar]
    /// [batch, keyValueHeads, keys, valueDimension].
    public var values: [Scalar]
    /// [queryHeads]; 0 for normalisers that have no sink.
    public var sinks: [Scalar]
    /// In the extents of the bias, each element summed over what it served; empty where there is none.
    public var bias: [Scalar]
    /// Of ALiBi's slopes, [queryHeads].
    public var slopes: [Scalar]
    /// Of the logarithm of each query head's scale, [queryHeads]: sum of score * its gradient before softcap, ALiBi and
    /// bias. A number s of the head that its scores are proportional to, as in SSMax, has the gradient logScales / s.
    public var logScales: [Scalar]

    /// All zero.
    public init(zerosFor problem: ReferenceProblem) {
        let pairs = problem.batch * problem.keyValueHeads * problem.keys
        queries = [Scalar](
            repeating: 0, count: problem.batch * problem.queryHeads * problem.queries * problem.headDimension)
        keys = [Scalar](repeating: 0, count: pairs * problem.headDimension)
        values = [Scalar](repeating: 0, count: pairs * problem.valueDimension)
        sinks = [Scalar](repeating: 0, count: problem.queryHeads)
        bias = [Scalar](repeating: 0, count: problem.bias?.values.count ?? 0)
        (slopes, logScales) = (sinks, sinks)
    }
}

/// What of a loss is known: its gradients with regard to the results of a forward pass.
public struct ReferenceLoss: Sendable {
    /// [batch, queryHeads, queries, valueDimension].
    public var outputGradient: [Float]
    /// [batch, queryHeads, queries], or nil: 0. For the softmaxes alone; others have no log-sum-exp.
    public var logSumExpGradient: [Float]?

    public init(outputGradient: [Float], logSumExpGradient: [Float]? = nil) {
        self.outputGradient = outputGradient
        self.logSumExpGradient = logSumExpGradient
    }

    func require(toFit problem: ReferenceProblem) {
        let rows = problem.batch * problem.queryHeads * problem.queries
        precondition(outputGradient.count == rows * problem.valueDimension, "count of output gradients")
        precondition((logSumExpGradient?.count ?? rows) == rows, "one log-sum-exp gradient per row")
        precondition(logSumExpGradient == nil || problem.normaliser.hasSink, "no log-sum-exp, no gradient of it")
    }
}
