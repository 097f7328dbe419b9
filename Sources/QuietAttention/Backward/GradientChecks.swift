// SPDX-License-Identifier: Apache-2.0
// GradientChecks.swift - whether buffers for gradients fit a problem.

extension Attention {
    /// - Throws: ``AttentionError`` of kind `elementCount`, or `composition` for a buffer of what the problem does not have.
    func check<Element: AttentionScalar>(_ gradients: AttentionGradientBuffers<Element>) throws(AttentionError) {
        try shape.checkCounts(
            of: "gradients.", gradients.queries.count, gradients.keys.count, gradients.values.count)
        if let sinks = gradients.sinks { try normaliser.checkSums("gradients.sinks", sinks.count, shape.queryHeads) }
        for (name, vector, norm) in [
            ("queryGain", gradients.queryGain, queryKeyNorm?.queryGain),
            ("queryBias", gradients.queryBias, queryKeyNorm?.queryBias),
            ("keyGain", gradients.keyGain, queryKeyNorm?.keyGain),
            ("keyBias", gradients.keyBias, queryKeyNorm?.keyBias),
        ] {
            try check(name, vector, norm?.count, unless: "the norm has none of it")
        }
        try check("bias", gradients.bias, bias?.extents.count, unless: "there is no bias")
        try check(
            "slopes", gradients.slopes, alibi == nil ? nil : shape.queryHeads, unless: "there are no slopes")
        try check("logScales", gradients.logScales, shape.queryHeads, unless: "")
        guard gradients.scalableSoftmax != nil else { return }
        guard case .scalableSoftmax = scaling else {
            return try check(
                "scalableSoftmax", gradients.scalableSoftmax, nil, unless: "the scaling is \(scaling.name)")
        }
        try check("scalableSoftmax", gradients.scalableSoftmax, shape.queryHeads, unless: "")
        _ = try scaling.divisors()
    }

    /// - Parameters:
    ///   - expected: the number of elements; nil: there can be no such buffer.
    ///   - reason: why there can be none.
    private func check(
        _ name: String, _ buffer: UnsafeMutableBufferPointer<Float>?, _ expected: Int?, unless reason: String
    ) throws(AttentionError) {
        guard let buffer else { return }
        guard let expected else {
            throw AttentionError(
                .composition, "gradients.\(name)", expected: "none, as \(reason)", found: "a buffer")
        }
        try checkCount("gradients.\(name)", buffer.count, expected)
    }
}
