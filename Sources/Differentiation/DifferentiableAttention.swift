// SPDX-License-Identifier: Apache-2.0
// DifferentiableAttention.swift - attention as a function that Swift differentiates.

#if canImport(_Differentiation)
    import QuietAttention
    import _Differentiation

    /// An attention problem as a differentiable function of its queries, keys, values and sinks, for programs whose gradients Swift
    /// derives: forward and backward of ``Attention`` with their bits.
    ///
    ///     let attention = DifferentiableAttention(try Attention(shape, sink: .softmax1, mask: .causal))
    ///     let gradients = gradient(at: inputs) { loss(attention($0.q, $0.k, $0.v, $0.sinks)) }
    ///
    /// where `inputs` is a `Differentiable` structure of arrays, as a model's parameters are.
    ///
    /// It uses the module `_Differentiation`, which toolchains from swift.org have (6.3 on Linux: dynamic and static) and Apple's
    /// for macOS and iOS 26.4 no longer: where there is none, this type is not there either. That module is not stable, and so this
    /// is a product of its own.
    ///
    /// *Errors*: a differentiable function cannot throw. ``check(queries:keys:values:sinks:)`` tells beforehand, as an error,
    /// whether tensors have the counts that the problem asks for; a call with others ends the process with the error's words, and so
    /// does one for which there is no memory, like Swift's own arrays. Sinks that no problem takes, NaN or above
    /// ``AttentionSink/largestLogit``, as come of a training that diverges, make all results NaN.
    ///
    /// *Memory*: between forward and backward the tensors, the output and 12 bytes a row.
    public struct DifferentiableAttention: Sendable {
        /// The problem.
        public let attention: Attention

        /// - Parameter attention: the problem. Its sink counts where no sinks are passed.
        public init(_ attention: Attention) { self.attention = attention }

        /// Whether a call with tensors of such counts has a result.
        ///
        /// - Parameter sinks: nil: the problem's own.
        /// - Throws: ``AttentionError`` of kind `elementCount`, `sinkCount` or `composition` (sinks for a normaliser that has none).
        public func check(queries: Int, keys: Int, values: Int, sinks: Int? = nil) throws(AttentionError) {
            try attention.shape.checkCounts(queries, keys, values)
            if let sinks { _ = try attention.with(sink: .logits([Float](repeating: 0, count: sinks))) }
        }

        /// The output, in the order of the problem's layout, with learned sinks.
        ///
        /// - Parameters:
        ///   - queries: `[B, H, L, D]`, or as the problem's layout has it.
        ///   - keys: `[B, G, S, D]`.
        ///   - values: `[B, G, S, E]`.
        ///   - sinks: one logit per query head.
        /// - Returns: `[B, H, L, E]`.
        public func callAsFunction(
            _ queries: [Float], _ keys: [Float], _ values: [Float], _ sinks: [Float]
        ) -> [Float] {
            pass(queries, keys, values, sinks).output
        }

        /// The output, in the order of the problem's layout, with the problem's own sink.
        ///
        /// - Parameters:
        ///   - queries: `[B, H, L, D]`, or as the problem's layout has it.
        ///   - keys: `[B, G, S, D]`.
        ///   - values: `[B, G, S, E]`.
        /// - Returns: `[B, H, L, E]`.
        public func callAsFunction(_ queries: [Float], _ keys: [Float], _ values: [Float]) -> [Float] {
            pass(queries, keys, values, nil).output
        }
    }

    // MARK: - Derivatives

    extension DifferentiableAttention {
        /// A gradient in an array. An empty one stands for zeros.
        public typealias Gradient = [Float].TangentVector

        /// What `callAsFunction` with sinks is differentiated by.
        @derivative(of: callAsFunction(_:_:_:_:))
        public func valueWithPullback(
            _ queries: [Float], _ keys: [Float], _ values: [Float], _ sinks: [Float]
        ) -> (value: [Float], pullback: (Gradient) -> (Gradient, Gradient, Gradient, Gradient)) {
            let pass = pass(queries, keys, values, sinks)
            return (
                pass.output,
                { gradient in
                    guard let gradients = pass.gradients(of: gradient.base) else { return (.zero, .zero, .zero, .zero) }
                    return (
                        Gradient(gradients.queries), Gradient(gradients.keys), Gradient(gradients.values),
                        Gradient(gradients.sinks)
                    )
                }
            )
        }

        /// What `callAsFunction` without sinks is differentiated by.
        @derivative(of: callAsFunction(_:_:_:))
        public func valueWithPullback(
            _ queries: [Float], _ keys: [Float], _ values: [Float]
        ) -> (value: [Float], pullback: (Gradient) -> (Gradient, Gradient, Gradient)) {
            let pass = pass(queries, keys, values, nil)
            return (
                pass.output,
                { gradient in
                    guard let gradients = pass.gradients(of: gradient.base) else { return (.zero, .zero, .zero) }
                    return (Gradient(gradients.queries), Gradient(gradients.keys), Gradient(gradients.values))
                }
            )
        }

        private func pass(_ queries: [Float], _ keys: [Float], _ values: [Float], _ sinks: [Float]?) -> AttentionPass {
            do throws(AttentionError) {
                try check(queries: queries.count, keys: keys.count, values: values.count, sinks: sinks?.count)
                return try AttentionPass(attention, queries, keys, values, sinks)
            } catch {
                fatalError("\(error)")
            }
        }
    }

    /// A forward pass, with what its backward pass needs.
    private struct AttentionPass {
        let queries, keys, values, output: [Float]
        private let attention: Attention
        /// nil where the sinks are no logits, and all is NaN.
        private let record: ForwardRecord?

        init(
            _ attention: Attention, _ queries: [Float], _ keys: [Float], _ values: [Float], _ sinks: [Float]?
        ) throws(AttentionError) {
            (self.queries, self.keys, self.values) = (queries, keys, values)
            guard sinks?.allSatisfy({ $0 <= AttentionSink.largestLogit }) != false else {
                self.attention = attention
                output = [Float](repeating: .nan, count: attention.shape.outputCount)
                record = nil
                return
            }
            self.attention = if let sinks { try attention.with(sink: .logits(sinks)) } else { attention }
            var record = ForwardRecord()
            output = try self.attention.forward(queries: queries, keys: keys, values: values, recording: &record).output
            self.record = record
        }

        /// nil: all are 0.
        func gradients(of outputGradient: [Float]) -> AttentionGradients? {
            if outputGradient.isEmpty { return nil }
            func all(_ value: Float, _ count: Int) -> [Float] { [Float](repeating: value, count: count) }
            let shape = attention.shape
            guard let record else {
                return AttentionGradients(
                    queries: all(.nan, shape.queryCount), keys: all(.nan, shape.keyCount),
                    values: all(.nan, shape.valueCount), sinks: all(.nan, shape.queryHeads))
            }
            var gradients = AttentionGradients(
                queries: all(0, shape.queryCount), keys: all(0, shape.keyCount), values: all(0, shape.valueCount),
                sinks: attention.normaliser.hasSink ? all(0, shape.queryHeads) : [])
            do throws(AttentionError) {
                // Those of norms, biases, slopes and scales are not asked for.
                try attention.addGradients(
                    outputGradient: outputGradient, queries: queries, keys: keys, values: values, output: output,
                    record: record, to: &gradients)
            } catch {
                fatalError("\(error)")
            }
            return gradients
        }
    }
#endif
