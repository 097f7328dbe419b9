// SPDX-License-Identifier: Apache-2.0
// ScoreRules.swift - what becomes of the products of queries and keys, checked and made ready for the kernels.

import CKernels

/// All that stands between the products of queries and keys and their weights, apart from masks and bias.
struct ScoreRules: Sendable {
    let sink: AttentionSink
    var scale: Double
    let scaling: ScoreScaling
    let softcap: Double?
    let alibi: ALiBi?
    let normaliser: AttentionNormaliser

    init(
        sink: AttentionSink, scale: Double, scaling: ScoreScaling, softcap: Double?, alibi: ALiBi?,
        normaliser: AttentionNormaliser
    ) throws(AttentionError) {
        self.sink = sink
        (self.scale, self.scaling, self.softcap, self.alibi) = (scale, scaling, softcap, alibi)
        self.normaliser = normaliser
        try normaliser.check()
        try checkComposition()
        if let softcap {
            guard softcap > 0, softcap <= Self.largestSoftcap else {
                throw AttentionError(
                    .softcap, "softcap", expected: "a number above 0, up to \(Self.largestSoftcap)", found: "\(softcap)"
                )
            }
        }
    }

    /// What makes no sense together.
    private func checkComposition() throws(AttentionError) {
        if !normaliser.hasSink, sink != .softmax {
            throw AttentionError(
                .composition, "sink",
                expected: "none with \(normaliser.name), which has no softmax denominator to join",
                found: sink.name)
        }
        if case .clippedSoftmax = normaliser, case .logKeys = sink {
            throw AttentionError(
                .composition, "sink", expected: "a logit that is the same for all rows with clipped softmax",
                found: sink.name)
        }
        if normaliser == .normalisedReluSquared(sink: 0), !scaling.isConstant {
            throw AttentionError(
                .composition, "scaling",
                expected: "constant with normalised squared ReLU without a sink, where a row's factor cancels",
                found: scaling.name)
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
        let (product, quotient) = (abs(factor), abs(factor) / (softcap ?? 1))
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
        !scaling.isConstant || normaliser != .softmax || sink.countsKeys
    }

    /// Whether some number of a row depends on how many keys it sees.
    private var countsKeys: Bool { scaling.countsKeys || normaliser.countsKeys || sink.countsKeys }

    /// The rules for a problem.
    ///
    /// - Parameters:
    ///   - plans: of the sequences that have queries.
    ///   - isUniform: whether there is one plan, of every batch item.
    func kernelScores(
        _ shape: AttentionShape, plans: [SequencePlan], isUniform: Bool, mask: AttentionMask,
        bias: BroadcastTensor<Float>?
    ) throws(AttentionError) -> KernelScores {
        let slopes = try alibi?.checkedSlopes(queryHeads: shape.queryHeads) ?? []
        try scaling.check(fits: shape)
        if let softcap, !isInRange(scale) {
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
        let rows = countsKeys ? keys.rows(of: scaling) : VisibleKeys.Rows(of: scaling, shape)
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
                scaling.factor(
                    keys: count, headDimension: shape.headDimension, item: item, head: head, query: query), query: query
            )
            constants[index] =
                sink.countsKeys
                ? (count == 0 ? -.infinity : Float(ElementaryFunctions.logarithm(Double(count))))
                : normaliser.constant(keys: count)
        }
        return KernelScores(self, slopes: slopes, rows: (rows.strides, factors, constants))
    }
}

/// The rules in memory that kernels read, for as long as this lives.
final class KernelScores: @unchecked Sendable {
    private let rules: ScoreRules
    private let slopes: UnsafeMutableBufferPointer<Float>
    private let factors: UnsafeMutableBufferPointer<Double>
    private let constants: UnsafeMutableBufferPointer<Float>
    private let strides: BroadcastTensor<Double>.Strides

    init(
        _ rules: ScoreRules, slopes: [Float],
        rows: (strides: BroadcastTensor<Double>.Strides, factors: [Double], constants: [Float])?
    ) {
        func copy<Element>(_ elements: [Element]) -> UnsafeMutableBufferPointer<Element> {
            let buffer = UnsafeMutableBufferPointer<Element>.allocate(capacity: elements.count)
            _ = buffer.initialize(from: elements)
            return buffer
        }
        self.rules = rules
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

    /// Factors of rows where rows have some.
    var rowFactors: (values: UnsafeMutableBufferPointer<Double>, strides: BroadcastTensor<Double>.Strides)? {
        factors.isEmpty || rules.scaling.isConstant ? nil : (factors, strides)
    }

    /// Everything that the kernels need of the rules but the sinks.
    ///
    /// - Parameters:
    ///   - head: the query head that the arguments begin with.
    ///   - keyOrigin: the sequence's key that the arguments begin with.
    func add(to problem: inout qattn_problem, _ plan: SequencePlan, head: Int, keyOrigin: Int) {
        problem.scale = rules.scale
        problem.softcap = rules.softcap ?? 0
        if !slopes.isEmpty {
            problem.alibi_slopes = UnsafePointer(slopes.baseAddress! + head)
            problem.alibi_offset = plan.diagonal - keyOrigin
        }
        (problem.normaliser, problem.zeta) = rules.normaliser.kernelNormaliser
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
