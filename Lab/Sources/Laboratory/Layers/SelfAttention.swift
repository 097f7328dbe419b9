// SPDX-License-Identifier: Apache-2.0
// SelfAttention.swift - attention with all that the library offers, between four linear layers, with an output gate.

import QuietAttention

/// `out(gate o attention(q x, k x, v x))`. Rows are `[batch, sequence]`, heads side by side within a row.
struct SelfAttention: Sendable {
    let configuration: ModelConfiguration
    let query, key, value, out: Linear
    let gate: Linear?
    /// Learned numbers of heads and of norms of queries and keys; nil: none.
    let sinks, scales, queryGain, keyGain: Slot?
    let causal: Bool

    struct Saved {
        let x, q, k, v, attended, gated, gateLogits: [Float]
        let record: ForwardRecord
        let attention: Attention
    }

    init(_ name: String, _ builder: inout ModelBuilder) {
        let c = builder.configuration
        configuration = c
        causal = c.causal
        let (queries, keys) = (c.heads * c.headDimension, c.keyValueHeads * c.headDimension)
        query = Linear(name + ".query", inputs: c.dimension, outputs: queries, &builder)
        key = Linear(name + ".key", inputs: c.dimension, outputs: keys, &builder)
        value = Linear(name + ".value", inputs: c.dimension, outputs: keys, &builder)
        out = Linear(name + ".out", inputs: queries, outputs: c.dimension, &builder)
        func perHead(_ value: Double) -> [Float] { [Float](repeating: Float(value), count: c.heads) }
        gate =
            switch c.gate {
            case .none: nil
            case .head: Linear(name + ".outputGate", inputs: c.dimension, outputs: c.heads, &builder)
            case .element: Linear(name + ".outputGate", inputs: c.dimension, outputs: queries, &builder)
            }
        sinks = c.sink == .learned ? builder.vector(name + ".sinks", perHead(0)) : nil
        scales = c.scaling == .scalable ? builder.vector(name + ".scales", perHead(c.scalableStart)) : nil
        let ones = [Float](repeating: 1, count: c.headDimension)
        queryGain = c.queryKeyNorm ? builder.vector(name + ".queryGain", ones) : nil
        keyGain = c.queryKeyNorm ? builder.vector(name + ".keyGain", ones) : nil
    }

    func forward(
        _ x: [Float], batch: Int, _ parameters: FlatBuffer, workspace: AttentionWorkspace
    ) throws -> ([Float], Saved) {
        let attention = try problem(rows: x.count / configuration.dimension, batch: batch, parameters, workspace)
        let (q, k, v) = (query.forward(x, parameters), key.forward(x, parameters), value.forward(x, parameters))
        var record = ForwardRecord()
        let attended = try attention.forward(queries: q, keys: k, values: v, recording: &record).output
        let logits = gate?.forward(x, parameters) ?? []
        let gated = logits.isEmpty ? attended : apply(logits, to: attended)
        let saved = Saved(
            x: x, q: q, k: k, v: v, attended: attended, gated: gated, gateLogits: logits, record: record,
            attention: attention)
        return (out.forward(gated, parameters), saved)
    }

    func backward(_ dy: [Float], _ saved: Saved, _ parameters: FlatBuffer, _ gradients: FlatBuffer) throws -> [Float] {
        var dattended = out.backward(dy, x: saved.gated, parameters, gradients)
        var dlogits: [Float] = []
        if gate != nil { (dattended, dlogits) = gateGradients(dattended, saved) }
        let result = try saved.attention.backward(
            outputGradient: dattended, queries: saved.q, keys: saved.k, values: saved.v, output: saved.attended,
            record: saved.record)
        if let sinks { gradients.add(result.sinks, to: sinks) }
        if let scales { gradients.add(result.scalableSoftmax, to: scales) }
        if let queryGain { gradients.add(result.queryGain, to: queryGain) }
        if let keyGain { gradients.add(result.keyGain, to: keyGain) }
        var dx = query.backward(result.queries, x: saved.x, parameters, gradients)
        key.addBackward(result.keys, x: saved.x, parameters, gradients, to: &dx)
        value.addBackward(result.values, x: saved.x, parameters, gradients, to: &dx)
        gate?.addBackward(dlogits, x: saved.x, parameters, gradients, to: &dx)
        return dx
    }

    // MARK: - The gate: sigmoid of a logit per head or per element

    private var gateWidth: Int { configuration.gate == .head ? configuration.headDimension : 1 }

    private func apply(_ logits: [Float], to output: [Float]) -> [Float] {
        var gated = output
        for index in gated.indices { gated[index] *= sigmoid(logits[index / gateWidth]) }
        return gated
    }

    private func gateGradients(_ dgated: [Float], _ saved: Saved) -> (attended: [Float], logits: [Float]) {
        var (dattended, dlogits) = (dgated, [Float](repeating: 0, count: saved.gateLogits.count))
        for index in dgated.indices {
            let s = sigmoid(saved.gateLogits[index / gateWidth])
            dattended[index] *= s
            dlogits[index / gateWidth] += dgated[index] * saved.attended[index] * s * (1 - s)
        }
        return (dattended, dlogits)
    }

    // MARK: - The problem

    /// The library's attention with this layer's options and learned numbers.
    private func problem(
        rows: Int, batch: Int, _ parameters: FlatBuffer, _ workspace: AttentionWorkspace
    ) throws -> Attention {
        let c = configuration
        let length = rows / batch
        let shape = try AttentionShape(
            batch: batch, queryHeads: c.heads, keyValueHeads: c.keyValueHeads, queries: length, keys: length,
            headDimension: c.headDimension)
        let scaling: ScoreScaling =
            switch c.scaling {
            case .constant: .constant
            case .logKeys: .logKeys(base: Double(c.trainedLength))
            case .clippedLogKeys: .clippedLogKeys(base: Double(c.trainedLength))
            case .scalable: .scalableSoftmax(parameters[scales!].map(Double.init))
            }
        let sink: AttentionSink =
            switch c.sink {
            case .softmax: .softmax
            case .softmax1: .softmax1
            case .learned: .logits(parameters[sinks!])
            case .logKeys: .logKeys()
            }
        return try Attention(
            shape, sink: sink, mask: causal ? .causal : .none, scale: c.scale, scaling: scaling,
            alibi: c.positions == .alibi ? .standard : nil,
            normaliser: c.clipGamma.map { .clippedSoftmax(gamma: .fixed($0)) } ?? .softmax, positions: c.rotation,
            queryKeyNorm: queryGain.map { .rms(queryGain: parameters[$0], keyGain: parameters[keyGain!]) },
            products: c.products == .float32 ? .float32 : .bfloat16,
            layout: .batchSequenceHeads, threads: 1, workspace: workspace)
    }
}
