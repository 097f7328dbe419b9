// SPDX-License-Identifier: Apache-2.0
// DoubleTwin.swift - the model's loss in Double, row by row from the formulas, with nothing of the laboratory's or the library's.

import Foundation

@testable import Laboratory

struct DoubleTwin {
    let c: ModelConfiguration
    var tensors: [String: [Double]]

    init(_ model: Transformer, _ parameters: FlatBuffer) {
        c = model.configuration
        tensors = [:]
        for slot in model.parameters.slots { tensors[slot.name] = parameters[slot].map(Double.init) }
    }

    /// Nats per target; every sequence by itself.
    func loss(_ batch: Batch) -> Double {
        let length = batch.tokens.count / batch.sequences
        var (sum, count) = (0.0, 0)
        for start in stride(from: 0, to: batch.tokens.count, by: length) {
            let logits = logits(Array(batch.tokens[start..<start + length]))
            for row in 0..<length where batch.targets[start + row] >= 0 {
                let top = logits[row].max()!
                sum +=
                    log(logits[row].reduce(0) { $0 + exp($1 - top) }) + top
                    - logits[row][Int(batch.targets[start + row])]
                count += 1
            }
        }
        return sum / Double(count)
    }

    private func logits(_ tokens: [Int32]) -> [[Double]] {
        let table = tensors["embedding"]!
        var x = tokens.map { token in Array(table[Int(token) * c.dimension..<(Int(token) + 1) * c.dimension]) }
        for layer in 0..<c.layers {
            let name = "blocks.\(layer)"
            x = residual(x, name + ".attentionNorm") { attention($0, name + ".attention") }
            if c.hidden > 0 { x = residual(x, name + ".feedForwardNorm") { feedForward($0, name + ".feedForward") } }
        }
        if c.placement == .pre { x = norm(x, "lastNorm") }
        return product(x, "head")
    }

    private func residual(_ x: [[Double]], _ norm: String, _ body: ([[Double]]) -> [[Double]]) -> [[Double]] {
        func sum(_ a: [[Double]], _ b: [[Double]]) -> [[Double]] { zip(a, b).map { zip($0, $1).map(+) } }
        return c.placement == .pre ? sum(x, body(self.norm(x, norm))) : self.norm(sum(x, body(x)), norm)
    }

    private func product(_ x: [[Double]], _ name: String) -> [[Double]] {
        let weights = tensors[name]!
        return x.map { row in
            (0..<weights.count / row.count).map { o in
                row.indices.reduce(0) { $0 + row[$1] * weights[o * row.count + $1] }
            }
        }
    }

    private func norm(_ x: [[Double]], _ name: String) -> [[Double]] {
        let gain = tensors[name + ".gain"]!
        return x.map { row in
            let mean = c.norm == .layer ? row.reduce(0, +) / Double(row.count) : 0
            let variance = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(row.count)
            let bias = tensors[name + ".bias"] ?? [Double](repeating: 0, count: row.count)
            return row.indices.map { (row[$0] - mean) / (variance + 1e-5).squareRoot() * gain[$0] + bias[$0] }
        }
    }

    private func feedForward(_ x: [[Double]], _ name: String) -> [[Double]] {
        let up = product(x, name + ".up")
        let hidden: [[Double]] =
            switch c.activation {
            case .relu: up.map { $0.map { max($0, 0) } }
            case .gelu: up.map { $0.map { 0.5 * $0 * (1 + erf($0 / 2.0.squareRoot())) } }
            case .swiglu: zip(product(x, name + ".gate"), up).map { zip($0, $1).map { $0 / (1 + exp(-$0)) * $1 } }
            }
        return product(hidden, name + ".down")
    }

    private func attention(_ x: [[Double]], _ name: String) -> [[Double]] {
        let (q, k, v) = (product(x, name + ".query"), product(x, name + ".key"), product(x, name + ".value"))
        let gates = c.gate == .none ? [] : product(x, name + ".outputGate")
        let d = c.headDimension
        let rows = x.indices.map { i -> [Double] in
            (0..<c.heads).flatMap { head -> [Double] in
                let group = head / (c.heads / c.keyValueHeads)
                let query = turned(Array(q[i][head * d..<(head + 1) * d]), i)
                let visible = c.causal ? 0...i : 0...x.count - 1
                let scores = visible.map { j in
                    score(query, turned(Array(k[j][group * d..<(group + 1) * d]), j), head, i, j, visible.count, name)
                }
                let sink = c.sink == .learned ? exp(tensors[name + ".sinks"]![head]) : c.sink == .softmax1 ? 1 : 0
                let total = scores.reduce(sink) { $0 + exp($1) }
                return (0..<d).map { e in
                    let out = zip(visible, scores).reduce(0) { $0 + exp($1.1) / total * v[$1.0][group * d + e] }
                    guard c.gate != .none else { return out }
                    return out / (1 + exp(-gates[i][c.gate == .head ? head : head * d + e]))
                }
            }
        }
        return product(rows, name + ".out")
    }

    private func score(
        _ query: [Double], _ key: [Double], _ head: Int, _ i: Int, _ j: Int, _ visible: Int, _ name: String
    ) -> Double {
        var scale = c.scale ?? 1 / Double(c.headDimension).squareRoot()
        if c.scaling == .scalable { scale *= tensors[name + ".scales"]![head] * log(Double(visible)) }
        let slope = c.positions == .alibi ? pow(2, -8 * Double(head + 1) / Double(c.heads)) : 0
        return scale * zip(query, key).reduce(0) { $0 + $1.0 * $1.1 } - slope * Double(i - j)
    }

    /// Rotary, pairs (p, p + d/2).
    private func turned(_ x: [Double], _ position: Int) -> [Double] {
        guard c.positions == .rotary else { return x }
        let half = x.count / 2
        return x.indices.map { index in
            let pair = index % half
            let angle = Double(position) * pow(10000, -2 * Double(pair) / Double(x.count))
            return index < half
                ? x[pair] * cos(angle) - x[pair + half] * sin(angle)
                : x[pair] * sin(angle) + x[pair + half] * cos(angle)
        }
    }
}
