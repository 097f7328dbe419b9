// SPDX-License-Identifier: Apache-2.0
// KernelScores.swift - the rules for scores, checked and made ready for the kernels.

import CKernels

/// Rules that make sense, for queries and keys of one head dimension.
struct CheckedScores: Sendable {
    let rules: ScoreRules
    /// What all scores are multiplied by.
    let scale: Double

    /// - Throws: ``AttentionError`` of kind `scale`, `softcap`, `normaliser` or `composition`.
    init(_ rules: ScoreRules, headDimension: Int) throws(AttentionError) {
        self.rules = rules
        scale = try Self.checked(rules.scale, headDimension: headDimension)
        try rules.normaliser.check()
        try checkComposition()
        if let softcap = rules.softcap {
            guard softcap > 0, softcap <= Self.largestSoftcap else {
                throw AttentionError(
                    .softcap, "softcap", expected: "a number above 0, up to \(Self.largestSoftcap)", found: "\(softcap)"
                )
            }
        }
    }

    private static func checked(_ scale: Double?, headDimension: Int) throws(AttentionError) -> Double {
        guard let scale else { return 1 / Double(headDimension).squareRoot() }
        guard abs(scale) <= largestFactor else {
            throw AttentionError(
                .scale, "scale", expected: "a finite number within the range of Float", found: "\(scale)")
        }
        return scale
    }

    /// What makes no sense together.
    private func checkComposition() throws(AttentionError) {
        if !rules.normaliser.hasSink, rules.sink != .softmax {
            throw AttentionError(
                .composition, "sink",
                expected: "none with \(rules.normaliser.name), which has no softmax denominator to join",
                found: rules.sink.name)
        }
        if case .clippedSoftmax = rules.normaliser, case .logKeys = rules.sink {
            throw AttentionError(
                .composition, "sink", expected: "a logit that is the same for all rows with clipped softmax",
                found: rules.sink.name)
        }
        if rules.normaliser == .normalisedReluSquared(sink: 0), !rules.scaling.isConstant {
            throw AttentionError(
                .composition, "scaling",
                expected: "constant with normalised squared ReLU without a sink, where a row's factor cancels",
                found: rules.scaling.name)
        }
    }

    /// Kernels multiply by log2(e) and round to Float.
    private static let largestFactor = Double(Float.greatestFiniteMagnitude) / 1.5
    /// Smaller ones would lose bits there, and scores with them; 0 is exact.
    private static let leastFactor = Double(Float.leastNormalMagnitude)
    /// Scores divided by more would lose bits.
    private static let largestSoftcap = 0x1p64

    /// Whether queries may be multiplied by this and divided by the softcap.
    private func isInRange(_ factor: Double) -> Bool {
        let (product, quotient) = (abs(factor), abs(factor) / (rules.softcap ?? 1))
        return product == 0 || (product <= Self.largestFactor && Self.leastFactor...Self.largestFactor ~= quotient)
    }

    private func checkedFactor(_ factor: Double, query: Int) throws(AttentionError) -> Double {
        guard isInRange(scale * factor) else {
            throw AttentionError(
                .scaling, "scaling", expected: "factors whose product with the scale is within the range of Float",
                found: "\(factor) in row \(query)")
        }
        return factor
    }

    /// Whether rows have factors or constants of their own.
    private var hasRowNumbers: Bool {
        !rules.scaling.isConstant || rules.normaliser != .softmax || rules.sink.countsKeys
    }

    /// Whether some number of a row depends on how many keys it sees.
    private var countsKeys: Bool { rules.scaling.countsKeys || rules.normaliser.countsKeys || rules.sink.countsKeys }

    /// The rules for a problem.
    ///
    /// - Parameters:
    ///   - plans: of the sequences that have queries.
    ///   - isUniform: whether there is one plan, of every batch item.
    func kernelScores(
        _ shape: AttentionShape, plans: [SequencePlan], isUniform: Bool, mask: AttentionMask,
        bias: BroadcastTensor<Float>?
    ) throws(AttentionError) -> KernelScores {
        let slopes = try rules.alibi?.checkedSlopes(queryHeads: shape.queryHeads) ?? []
        try rules.scaling.check(fits: shape)
        if let softcap = rules.softcap, !isInRange(scale) {
            throw AttentionError(
                .softcap, "softcap",
                expected: "a quotient of scale and softcap of magnitude \(Self.leastFactor) to \(Self.largestFactor)",
                found: "\(scale / softcap)")
        }
        guard isInRange(scale) else {
            throw AttentionError(
                .scale, "scale", expected: "0, or a magnitude of \(Self.leastFactor) to \(Self.largestFactor)",
                found: "\(scale)")
        }
        guard hasRowNumbers, shape.rowCount > 0 else { return KernelScores(self, slopes: slopes, rows: nil) }
        let keys = VisibleKeys(shape, plans: plans, isUniform: isUniform, allowed: mask.allowed, bias: bias)
        let rows = countsKeys ? keys.rows(of: rules.scaling) : VisibleKeys.Rows(of: rules.scaling, shape)
        // Twice: here, and where kernels read them.
        try CheckedMemory.check(
            "scaling", count: CheckedMemory.product("scaling", 2, rows.count), of: (Double, Float).self)
        var factors = [Double](repeating: 1, count: rows.count)
        var constants = [Float](repeating: 0, count: rows.count)
        for index in 0..<rows.count {
            let (item, head, query) = rows[index]
            // Counting may go through a mask: only where a formula asks for it.
            let count = countsKeys ? keys.count(item: item, head: head, query: query) : 1
            factors[index] = try checkedFactor(
                rules.scaling.factor(
                    keys: count, headDimension: shape.headDimension, item: item, head: head, query: query), query: query
            )
            constants[index] =
                rules.sink.countsKeys
                ? (count == 0 ? -.infinity : Float(ElementaryFunctions.logarithm(Double(count))))
                : rules.normaliser.constant(keys: count)
        }
        return KernelScores(self, slopes: slopes, rows: (rows.strides, factors, constants))
    }
}

/// The rules in memory that kernels read, for as long as this lives.
final class KernelScores: @unchecked Sendable {
    private let scores: CheckedScores
    private let slopes: UnsafeMutableBufferPointer<Float>
    private let factors: UnsafeMutableBufferPointer<Double>
    private let constants: UnsafeMutableBufferPointer<Float>
    private let strides: BroadcastTensor<Double>.Strides

    init(
        _ scores: CheckedScores, slopes: [Float],
        rows: (strides: BroadcastTensor<Double>.Strides, factors: [Double], constants: [Float])?
    ) {
        func copy<Element>(_ elements: [Element]) -> UnsafeMutableBufferPointer<Element> {
            let buffer = UnsafeMutableBufferPointer<Element>.allocate(capacity: elements.count)
            _ = buffer.initialize(from: elements)
            return buffer
        }
        self.scores = scores
        self.slopes = copy(slopes)
        factors = copy(rows?.factors ?? [])
        constants = copy(rows?.constants ?? [])
        strides = rows?.strides ?? .init(batch: 0, heads: 0, queries: 0, keys: 0)
    }

    deinit {
        slopes.deallocate()
        factors.deallocate()
        constants.deallocate()
    }

    /// Whether ALiBi's slopes join the scores.
    var hasSlopes: Bool { !slopes.isEmpty }

    /// Factors of rows where rows have some.
    var rowFactors: (values: UnsafeMutableBufferPointer<Double>, strides: BroadcastTensor<Double>.Strides)? {
        factors.isEmpty || scores.rules.scaling.isConstant ? nil : (factors, strides)
    }

    /// Everything that the kernels need of the rules but the sinks.
    ///
    /// - Parameters:
    ///   - head: the query head that the arguments begin with.
    ///   - keyOrigin: the sequence's key that the arguments begin with.
    func add(to problem: inout qattn_problem, _ plan: SequencePlan, head: Int, keyOrigin: Int) {
        problem.scale = scores.scale
        problem.softcap = scores.rules.softcap ?? 0
        if !slopes.isEmpty {
            problem.alibi_slopes = UnsafePointer(slopes.baseAddress! + head)
            problem.alibi_offset = plan.diagonal - keyOrigin
        }
        (problem.normaliser, problem.zeta) = scores.rules.normaliser.kernelNormaliser
        guard !factors.isEmpty else { return }
        let first = plan.item * strides.batch + head * strides.heads
        let rowStrides = qattn_strides(head: strides.heads, query: strides.queries, key: 0)
        problem.row_factors = UnsafePointer(factors.baseAddress! + first)
        problem.row_factor_strides = rowStrides
        problem.row_constants = UnsafePointer(constants.baseAddress! + first)
        problem.row_constant_strides = rowStrides
    }
}

extension AttentionNormaliser {
    fileprivate var kernelNormaliser: (qattn_normaliser, zeta: Float) {
        switch self {
        case .softmax: (QATTN_SOFTMAX, 0)
        case .clippedSoftmax(_, let zeta): (QATTN_CLIPPED_SOFTMAX, Float(zeta))
        case .sigmoid: (QATTN_SIGMOID, 0)
        case .softpick: (QATTN_SOFTPICK, 0)
        case .reluSquared: (QATTN_RELU_SQUARED, 0)
        case .normalisedReluSquared: (QATTN_NORMALISED_RELU_SQUARED, 0)
        }
    }
}
