// SPDX-License-Identifier: Apache-2.0
// CapturedLayers.swift - what attention sees in some layers of a model while it reads a text.

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// Queries, keys, values and the residual stream of layers, over a text.
public struct CapturedLayers {
    public struct Tensor {
        public let name: String
        public let shape: [Int]
        public let values: [Float]
    }

    /// Rows of all tokens, `[tokens, ...]`, queries and keys before the rotation.
    private struct Rows {
        var queries: [Float] = []
        var keys: [Float] = []
        var values: [Float] = []
        var residual: [Float] = []
    }

    private let configuration: LlamaConfiguration
    private var rows: [Int: Rows]

    public init(_ configuration: LlamaConfiguration, layers: Set<Int>) {
        self.configuration = configuration
        rows = Dictionary(uniqueKeysWithValues: layers.map { ($0, Rows()) })
    }

    /// Reads a text, in parts.
    public mutating func run(_ model: LlamaModel, _ tokens: [Int], progress: (Int, Int) -> Void = { _, _ in }) throws {
        var conversation = try model.conversation()
        for start in stride(from: 0, to: tokens.count, by: LlamaModel.chunk) {
            let end = min(start + LlamaModel.chunk, tokens.count)
            var captured = rows
            rows = [:]
            _ = try model.evaluate(Array(tokens[start..<end]), &conversation, logits: .none) { trace in
                captured[trace.layer]?.queries += trace.queries
                captured[trace.layer]?.keys += trace.keys
                captured[trace.layer]?.values += trace.values
                captured[trace.layer]?.residual += trace.residual
            }
            rows = captured
            progress(end, tokens.count)
        }
    }

    /// `[tokens, width]`, the stream that enters a layer.
    public func residual(_ layer: Int) -> [Float] { rows[layer]?.residual ?? [] }

    /// `q`, `k`, `v` as `[1, heads, tokens, dimension]`, and `residual`.
    public func tensors(_ layer: Int, rotated: Bool) -> [Tensor] {
        guard let rows = rows[layer] else { return [] }
        let c = configuration
        let tokens = rows.residual.count / c.width
        func tensor(_ name: String, _ values: [Float], _ heads: Int, turned: Bool) -> Tensor {
            Tensor(
                name: name, shape: [1, heads, tokens, c.headDimension],
                values: byHeads(turned ? rotate(values, heads) : values, heads, tokens))
        }
        return [
            tensor("q", rows.queries, c.queryHeads, turned: rotated),
            tensor("k", rows.keys, c.keyValueHeads, turned: rotated),
            tensor("v", rows.values, c.keyValueHeads, turned: false),
            Tensor(name: "residual", shape: [tokens, c.width], values: rows.residual),
        ]
    }

    private func byHeads(_ values: [Float], _ heads: Int, _ tokens: Int) -> [Float] {
        let d = configuration.headDimension
        var result: [Float] = []
        result.reserveCapacity(values.count)
        for head in 0..<heads {
            for token in 0..<tokens { result += values[(token * heads + head) * d..<(token * heads + head + 1) * d] }
        }
        return result
    }

    /// The model's own rotation, in halves: the library turns queries and keys within attention, and does not give them out.
    private func rotate(_ values: [Float], _ heads: Int) -> [Float] {
        let d = configuration.headDimension
        var turned = values
        for token in 0..<values.count / (heads * d) {
            for pair in 0..<d / 2 {
                let angle = Double(token) * pow(configuration.rotaryBase, -2 * Double(pair) / Double(d))
                let (cosine, sine) = (cos(angle), sin(angle))
                for head in 0..<heads {
                    let first = (token * heads + head) * d + pair
                    let (x, y) = (Double(values[first]), Double(values[first + d / 2]))
                    turned[first] = Float(x * cosine - y * sine)
                    turned[first + d / 2] = Float(y * cosine + x * sine)
                }
            }
        }
        return turned
    }
}
