// SPDX-License-Identifier: Apache-2.0
// DifferentiationTests.swift - gradients that Swift derives through attention: those of the backward pass, bit for bit.

#if canImport(_Differentiation)
    import Differentiation
    import QuietAttention
    import SeededInputs
    import TestSupport
    import Testing
    import _Differentiation

    /// What is differentiated by.
    private struct Inputs: Differentiable {
        var q, k, v, sinks: [Float]
    }

    @Suite struct DifferentiationTests {
        private struct Tensors {
            let inputs: Inputs
            let weights: [Float]

            /// Rows of values are as long as those of queries, so that an output can be queries again.
            init(_ shape: AttentionShape) {
                var generator = SeededGenerator(seed: 20)
                inputs = Inputs(
                    q: generator.normals(shape.queryCount), k: generator.normals(shape.keyCount),
                    v: generator.normals(shape.valueCount), sinks: generator.normals(shape.queryHeads))
                weights = generator.normals(shape.outputCount)
            }
        }

        private static let shape = try! AttentionShape(
            queryHeads: 4, keyValueHeads: 2, queries: 7, keys: 70, headDimension: 3)

        private static func attention(
            _ sink: AttentionSink = .softmax, positions: AttentionPositions = .none,
            normaliser: AttentionNormaliser = .softmax, products: AttentionProducts = .float32
        ) throws -> Attention {
            try Attention(
                shape, sink: sink, mask: .causal, normaliser: normaliser, positions: positions,
                queryKeyNorm: positions == .none ? nil : .rms(), products: products,
                kernels: KernelSet.available[0])
        }

        private func backward(
            _ attention: Attention, _ q: [Float], _ k: [Float], _ v: [Float], _ dout: [Float]
        ) throws -> (output: [Float], gradients: AttentionGradients) {
            var record = ForwardRecord()
            let output = try attention.forward(queries: q, keys: k, values: v, recording: &record).output
            let gradients = try attention.backward(
                outputGradient: dout, queries: q, keys: k, values: v, output: output, record: record)
            return (output, gradients)
        }

        @Test(
            arguments: [AttentionPositions.none, .rotary(RotaryEmbedding(dimensions: 2))], AttentionProducts.allCases)
        func gradientsAreThoseOfBackward(positions: AttentionPositions, products: AttentionProducts) throws {
            let tensors = Tensors(Self.shape)
            let attention = DifferentiableAttention(
                try Self.attention(positions: positions, products: products))
            let weights = tensors.weights
            let (value, found) = valueWithGradient(at: tensors.inputs) {
                dot(attention($0.q, $0.k, $0.v, $0.sinks), weights)
            }
            let (output, expected) = try backward(
                Self.attention(.logits(tensors.inputs.sinks), positions: positions, products: products),
                tensors.inputs.q, tensors.inputs.k, tensors.inputs.v, weights)
            #expect(value == dot(output, weights))
            let context = "\(positions), \(products)"
            try requireSameBits("dq", found.q.base, expected.queries, context)
            try requireSameBits("dk", found.k.base, expected.keys, context)
            try requireSameBits("dv", found.v.base, expected.values, context)
            try requireSameBits("dsink", found.sinks.base, expected.sinks, context)
        }

        /// Two layers that share keys, values and sinks, with something of Swift's own between them.
        @Test func composedFunctions() throws {
            let tensors = Tensors(Self.shape)
            let attention = try DifferentiableAttention(Self.attention())
            let weights = tensors.weights
            let found = gradient(at: tensors.inputs) { x in
                dot(attention(doubled(attention(x.q, x.k, x.v, x.sinks)), x.k, x.v, x.sinks), weights)
            }
            let plain = try Self.attention(.logits(tensors.inputs.sinks))
            let hidden = try plain.forward(queries: tensors.inputs.q, keys: tensors.inputs.k, values: tensors.inputs.v)
                .output
            let second = try backward(plain, hidden.map { $0 * 2 }, tensors.inputs.k, tensors.inputs.v, weights)
                .gradients
            let first = try backward(
                plain, tensors.inputs.q, tensors.inputs.k, tensors.inputs.v, second.queries.map { $0 * 2 }
            ).gradients
            try requireSameBits("dq", found.q.base, first.queries, "")
            try requireSameBits("dk", found.k.base, zip(first.keys, second.keys).map { $0 + $1 }, "")
            try requireSameBits("dv", found.v.base, zip(first.values, second.values).map { $0 + $1 }, "")
            try requireSameBits("dsink", found.sinks.base, zip(first.sinks, second.sinks).map { $0 + $1 }, "")
        }

        /// A few steps downhill lower a loss, sinks and all.
        @Test func training() throws {
            let tensors = Tensors(Self.shape)
            let attention = try DifferentiableAttention(Self.attention())
            var (v, sinks) = (tensors.inputs.v, tensors.inputs.sinks)
            var losses: [Float] = []
            for _ in 0..<5 {
                let (loss, gradients) = valueWithGradient(at: v, sinks) { v, sinks in
                    distance(attention(tensors.inputs.q, tensors.inputs.k, v, sinks), tensors.weights)
                }
                losses.append(loss)
                for index in v.indices { v[index] -= 0.05 * gradients.0.base[index] }
                for index in sinks.indices { sinks[index] -= 0.05 * gradients.1.base[index] }
            }
            #expect(zip(losses, losses.dropFirst()).allSatisfy(>), "\(losses)")
        }

        /// Without sinks passed the problem's own counts, and normalisers without one are differentiable too.
        @Test(arguments: [AttentionNormaliser.softmax, .sigmoid(bias: .fixed(-1))])
        func theProblemsOwnSink(normaliser: AttentionNormaliser) throws {
            let tensors = Tensors(Self.shape)
            let plain = try Self.attention(normaliser.hasSink ? .softmax1 : .softmax, normaliser: normaliser)
            let attention = DifferentiableAttention(plain)
            let found = gradient(at: tensors.inputs.q, tensors.inputs.k, tensors.inputs.v) {
                dot(attention($0, $1, $2), tensors.weights)
            }
            let expected = try backward(plain, tensors.inputs.q, tensors.inputs.k, tensors.inputs.v, tensors.weights)
                .gradients
            try requireSameBits("dq", found.0.base, expected.queries, "\(normaliser)")
            try requireSameBits("dk", found.1.base, expected.keys, "\(normaliser)")
            try requireSameBits("dv", found.2.base, expected.values, "\(normaliser)")
        }

        /// A function that does not use the output has gradients of 0, and sinks that are no logits make all NaN.
        @Test func edges() throws {
            let tensors = Tensors(Self.shape)
            let attention = try DifferentiableAttention(Self.attention())
            let unused = gradient(at: tensors.inputs.q, tensors.inputs.sinks) { q, sinks in
                sinks[0] + 0
                    * Float(withoutDerivative(at: attention(q, tensors.inputs.k, tensors.inputs.v, sinks).count))
            }
            #expect(unused.0.base.allSatisfy { $0 == 0 } && unused.1.base == [1, 0, 0, 0])
            let (value, gradients) = valueWithGradient(at: tensors.inputs.q, [0, .nan, 0, 0]) { q, sinks in
                dot(attention(q, tensors.inputs.k, tensors.inputs.v, sinks), tensors.weights)
            }
            #expect(value.isNaN && gradients.0.base.allSatisfy(\.isNaN) && gradients.1.base.allSatisfy(\.isNaN))
        }

        @Test func errors() throws {
            let attention = try DifferentiableAttention(Self.attention())
            func kind(_ body: () throws(AttentionError) -> Void) -> AttentionError.Kind? {
                do throws(AttentionError) { try body() } catch { return error.kind }
                return nil
            }
            let shape = Self.shape
            let (q, k, v) = (shape.queryCount, shape.keyCount, shape.valueCount)
            #expect(kind { () throws(AttentionError) in try attention.check(queries: q, keys: k, values: v) } == nil)
            #expect(
                kind { () throws(AttentionError) in try attention.check(queries: q, keys: k, values: v, sinks: 4) }
                    == nil)
            #expect(
                kind { () throws(AttentionError) in try attention.check(queries: q + 1, keys: k, values: v) }
                    == .elementCount)
            #expect(
                kind { () throws(AttentionError) in try attention.check(queries: q, keys: k, values: v, sinks: 3) }
                    == .sinkCount)
            let sigmoid = try DifferentiableAttention(Self.attention(normaliser: .sigmoid(bias: .fixed(-1))))
            #expect(
                kind { () throws(AttentionError) in try sigmoid.check(queries: q, keys: k, values: v, sinks: 4) }
                    == .composition)
        }
    }

    @differentiable(reverse,wrt: x)
    private func dot(_ x: [Float], _ weights: [Float]) -> Float {
        var sum: Float = 0
        for index in 0..<withoutDerivative(at: x.count) { sum += x[index] * weights[index] }
        return sum
    }

    @differentiable(reverse,wrt: x)
    private func distance(_ x: [Float], _ goal: [Float]) -> Float {
        var sum: Float = 0
        for index in 0..<withoutDerivative(at: x.count) { sum += (x[index] - goal[index]) * (x[index] - goal[index]) }
        return sum
    }

    @differentiable(reverse)
    private func doubled(_ x: [Float]) -> [Float] { x.differentiableMap { $0 * 2 } }
#endif
