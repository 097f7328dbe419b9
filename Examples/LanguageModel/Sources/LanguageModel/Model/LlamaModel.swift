// SPDX-License-Identifier: Apache-2.0
// LlamaModel.swift - the weights of a Llama model, read from a GGUF file.

import QuietAttention

/// A language model of the Llama architecture: RMSNorm, grouped-query attention with rotary embeddings, SwiGLU.
///
///     h = x + o(attention(q(n), k(n), v(n))),  n = RMSNorm(x)
///     y = h + down(silu(gate(m)) up(m)),       m = RMSNorm(h)
///
/// Attention is the library's ``CachedAttention`` over one ``KeyValueCache`` per layer and conversation. With exact
/// projections the logits of a token have the same bits however the text before it was read: at once, in parts, token by
/// token, beside other conversations, with any number of threads.
///
/// Not safe to use from several tasks at once: calls share memory.
public final class LlamaModel {
    public let configuration: LlamaConfiguration
    public let options: ModelOptions

    struct Layer {
        let attentionNorm, feedForwardNorm: RMSNorm
        let queries, keys, values, output: Projection
        let gate, up, down: Projection
        let attention: CachedAttention
    }

    let layers: [Layer]
    let embedding: WeightMatrix
    let outputNorm: RMSNorm
    let head: Projection
    let projector: Projector
    let memory = EvaluationMemory()
    /// Time spent since the model was read.
    public internal(set) var timings = EvaluationTimings()

    /// The kernel sets of exact projections that this processor runs, best first.
    public static var projectionKernels: [String] { Projector.kernelSets }

    /// Reads the weights, tensor by tensor.
    ///
    /// - Throws: ``GGUFError``, or ``AttentionError`` where the options make no sense.
    public init(_ file: GGUFFile, options: ModelOptions = ModelOptions()) throws {
        let configuration = try LlamaConfiguration(file)
        (self.configuration, self.options) = (configuration, options)
        guard
            let projector = Projector(
                options.projections, threads: options.threads, kernels: options.projectionKernels)
        else {
            throw GGUFError.invalidValue(
                key: "projection kernels", found: options.projectionKernels ?? "",
                expected: Projector.kernelSets.joined(separator: ", "))
        }
        self.projector = projector
        var reader = LayerReader(file, configuration, options)
        embedding = try WeightMatrix(
            file, reader.use("token_embd.weight"), rows: configuration.vocabulary, columns: configuration.width,
            memory: reader.memory)
        layers = try (0..<configuration.layers).map { try reader.layer($0) }
        outputNorm = try reader.norm("output_norm.weight")
        if file.tensor(named: "output.weight") == nil {
            head = Projection(embedding, options.projections)
        } else {
            head = try reader.projection("output.weight", rows: configuration.vocabulary, columns: configuration.width)
        }
        if let unknown = file.tensors.first(where: { !reader.used.contains($0.name) }) {
            throw GGUFError.unsupportedTensor(
                unknown.name, type: unknown.type.name, expected: "no such tensor in this architecture")
        }
    }

    /// Bytes of weights that a token needs: all matrices, and the head once.
    public var weightBytesPerToken: Int {
        let layers = layers.reduce(0) { sum, layer in
            let all = [layer.queries, layer.keys, layer.values, layer.output, layer.gate, layer.up, layer.down]
            return sum + all.reduce(0) { $0 + bytes($1) }
        }
        return layers + bytes(head)
    }

    private func bytes(_ projection: Projection) -> Int {
        projection.floats.map { $0.count * 4 } ?? projection.matrix.byteCount
    }

    /// Most of the memory that weights are in, for measuring how fast it is read.
    func forEachMatrix(_ body: (WeightMatrix) -> Void) {
        for layer in layers {
            for projection in [layer.queries, layer.keys, layer.values, layer.output, layer.gate, layer.up, layer.down]
            {
                body(projection.matrix)
            }
        }
        body(head.matrix)
    }
}

/// Reads the tensors of layers, and notes which were used.
private struct LayerReader {
    let file: GGUFFile
    let configuration: LlamaConfiguration
    let options: ModelOptions
    let workspace = AttentionWorkspace()
    let memory = WeightMemory()
    var used: Set<String> = []

    init(_ file: GGUFFile, _ configuration: LlamaConfiguration, _ options: ModelOptions) {
        (self.file, self.configuration, self.options) = (file, configuration, options)
    }

    mutating func use(_ name: String) -> String {
        used.insert(name)
        return name
    }

    mutating func norm(_ name: String) throws -> RMSNorm {
        try RMSNorm(
            dimension: configuration.width, gain: file.floats(use(name), count: configuration.width),
            epsilon: configuration.normEpsilon, kernels: options.kernels)
    }

    mutating func projection(
        _ name: String, rows: Int, columns: Int, source: (Int) -> Int = { $0 }
    ) throws -> Projection {
        Projection(
            try WeightMatrix(file, use(name), rows: rows, columns: columns, memory: memory, source: source),
            options.projections)
    }

    /// Files of this architecture have the rows of queries and keys in the order in which pairs of a rotation are neighbours;
    /// published models, and captured tensors, in halves: row i of a head is the first of pair i, row i + d/2 the second.
    private func halves(_ row: Int) -> Int {
        let (head, channel) = row.quotientAndRemainder(dividingBy: configuration.headDimension)
        let (second, pair) = channel.quotientAndRemainder(dividingBy: configuration.headDimension / 2)
        return head * configuration.headDimension + 2 * pair + second
    }

    mutating func layer(_ index: Int) throws -> LlamaModel.Layer {
        let (c, prefix) = (configuration, "blk.\(index).")
        let (queryWidth, keyWidth) = (c.queryHeads * c.headDimension, c.keyValueHeads * c.headDimension)
        let order = halves
        let hasSink = options.sinkLayers?.contains(index) ?? true
        return LlamaModel.Layer(
            attentionNorm: try norm(prefix + "attn_norm.weight"),
            feedForwardNorm: try norm(prefix + "ffn_norm.weight"),
            queries: try projection(prefix + "attn_q.weight", rows: queryWidth, columns: c.width, source: order),
            keys: try projection(prefix + "attn_k.weight", rows: keyWidth, columns: c.width, source: order),
            values: try projection(prefix + "attn_v.weight", rows: keyWidth, columns: c.width),
            output: try projection(prefix + "attn_output.weight", rows: c.width, columns: queryWidth),
            gate: try projection(prefix + "ffn_gate.weight", rows: c.feedForwardWidth, columns: c.width),
            up: try projection(prefix + "ffn_up.weight", rows: c.feedForwardWidth, columns: c.width),
            down: try projection(prefix + "ffn_down.weight", rows: c.width, columns: c.feedForwardWidth),
            attention: try CachedAttention(
                queryHeads: c.queryHeads, sink: hasSink ? options.sink : .softmax, scaling: options.scoreScaling,
                threads: options.threads, kernels: options.kernels, workspace: workspace))
    }
}
