// SPDX-License-Identifier: Apache-2.0
// Transformer.swift - embedding, blocks of attention and feed-forward, a last norm, logits; forward and backward by hand.

import QuietAttention

/// A block, pre-norm: `x += attention(norm x)`, `x += feedForward(norm x)`; post-norm: `x = norm(x + attention(x))` and so on.
public struct Block: Sendable {
    let attention: SelfAttention
    let attentionNorm: Norm
    let feedForward: FeedForward?
    let feedForwardNorm: Norm?
}

public struct Transformer: Sendable {
    public let configuration: ModelConfiguration
    public let parameters: ParameterList
    let embedding: Embedding
    let blocks: [Block]
    /// nil with post-norm, whose last block ends in one.
    let lastNorm: Norm?
    let head: Linear

    /// - Throws: ``LabError`` where the configuration makes no sense, AttentionError where the library says so.
    public init(_ configuration: ModelConfiguration, seed: UInt64) throws {
        try configuration.check()
        self.configuration = configuration
        var builder = ModelBuilder(configuration, seed: seed)
        embedding = Embedding("embedding", &builder)
        blocks = (0..<configuration.layers).map { layer in
            let name = "blocks.\(layer)"
            let attention = SelfAttention(name + ".attention", &builder)
            let norm = Norm(name + ".attentionNorm", &builder)
            guard configuration.hidden > 0 else {
                return Block(attention: attention, attentionNorm: norm, feedForward: nil, feedForwardNorm: nil)
            }
            return Block(
                attention: attention, attentionNorm: norm, feedForward: FeedForward(name + ".feedForward", &builder),
                feedForwardNorm: Norm(name + ".feedForwardNorm", &builder))
        }
        lastNorm = configuration.placement == .pre ? Norm("lastNorm", &builder) : nil
        head = Linear("head", inputs: configuration.dimension, outputs: configuration.vocabulary, &builder)
        if let failure = builder.failure { throw failure }
        parameters = builder.list
    }

    /// What a pass forward leaves for the pass back, and for whoever wants to look.
    struct Trace {
        let batch: Int
        let tokens: [Int32]
        var layers: [Layer] = []
        /// Before and after the last norm.
        var residual: [Float] = []
        var last: [Float] = []
        var logits: [Float] = []

        struct Layer {
            /// What comes in, what stands between attention and feed-forward, before and after norms.
            let input: [Float]
            var attentionSum: [Float] = []
            var attention: SelfAttention.Saved?
            var attentionOutput: [Float] = []
            var middle: [Float] = []
            var feedForwardSum: [Float] = []
            var feedForward: FeedForward.Saved?
        }
    }

    func forward(
        _ tokens: [Int32], batch: Int, _ p: FlatBuffer, workspace: AttentionWorkspace
    ) throws -> Trace {
        guard batch > 0, tokens.count % batch == 0, tokens.allSatisfy({ 0 <= $0 && $0 < configuration.vocabulary })
        else {
            throw LabError("tokens: expected \(batch) sequences of numbers from 0 to \(configuration.vocabulary - 1)")
        }
        var trace = Trace(batch: batch, tokens: tokens)
        var x = embedding.forward(tokens, p)
        for block in blocks {
            let (layer, next) = try forward(block, x, batch, p, workspace)
            trace.layers.append(layer)
            x = next
        }
        trace.residual = x
        trace.last = try lastNorm?.forward(x, p) ?? x
        trace.logits = head.forward(trace.last, p)
        return trace
    }

    private func forward(
        _ block: Block, _ x: [Float], _ batch: Int, _ p: FlatBuffer, _ workspace: AttentionWorkspace
    ) throws -> (Trace.Layer, [Float]) {
        var layer = Trace.Layer(input: x)
        let pre = configuration.placement == .pre
        let (attended, saved) = try block.attention.forward(
            pre ? block.attentionNorm.forward(x, p) : x, batch: batch, p, workspace: workspace)
        layer.attention = saved
        layer.attentionOutput = attended
        layer.attentionSum = add(x, attended)
        layer.middle = pre ? layer.attentionSum : try block.attentionNorm.forward(layer.attentionSum, p)
        guard let feedForward = block.feedForward, let norm = block.feedForwardNorm else {
            return (layer, layer.middle)
        }
        let normed = pre ? try norm.forward(layer.middle, p) : layer.middle
        (layer.feedForwardSum, layer.feedForward) = feedForward.forward(normed, addedTo: layer.middle, p)
        return (layer, pre ? layer.feedForwardSum : try norm.forward(layer.feedForwardSum, p))
    }

    /// Adds the gradients of all parameters, from that of the logits.
    func backward(_ dlogits: [Float], _ trace: Trace, _ p: FlatBuffer, _ g: FlatBuffer) throws {
        var dx = head.backward(dlogits, x: trace.last, p, g)
        if let lastNorm { dx = try lastNorm.backward(dx, x: trace.residual, p, g) }
        for (block, layer) in zip(blocks, trace.layers).reversed() { try backward(block, &dx, layer, p, g) }
        embedding.backward(dx, tokens: trace.tokens, g)
    }

    /// Makes the gradient of what comes out of a block that of what comes in.
    private func backward(
        _ block: Block, _ dx: inout [Float], _ layer: Trace.Layer, _ p: FlatBuffer, _ g: FlatBuffer
    ) throws {
        let pre = configuration.placement == .pre
        if let feedForward = block.feedForward, let norm = block.feedForwardNorm {
            if !pre { dx = try norm.backward(dx, x: layer.feedForwardSum, p, g) }
            let inner = feedForward.backward(dx, layer.feedForward!, p, g)
            if pre { try norm.addBackward(inner, x: layer.middle, p, g, to: &dx) } else { add(inner, to: &dx) }
        }
        let norm = block.attentionNorm
        if !pre { dx = try norm.backward(dx, x: layer.attentionSum, p, g) }
        let inner = try block.attention.backward(dx, layer.attention!, p, g)
        if pre { try norm.addBackward(inner, x: layer.input, p, g, to: &dx) } else { add(inner, to: &dx) }
    }
}
