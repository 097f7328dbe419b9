// SPDX-License-Identifier: Apache-2.0
// FeedForward.swift - the layer between attentions: ReLU, GELU or SwiGLU.

import Foundation

/// `down(relu(up x))`, `down(gelu(up x))`, or `down(silu(gate x) o up x)`.
struct FeedForward: Sendable {
    let up, down: Linear
    let gate: Linear?
    let activation: ModelConfiguration.Activation

    struct Saved {
        let x, up, gate, hidden: [Float]
    }

    init(_ name: String, _ builder: inout ModelBuilder) {
        let (dimension, hidden) = (builder.configuration.dimension, builder.configuration.hidden)
        activation = builder.configuration.activation
        up = Linear(name + ".up", inputs: dimension, outputs: hidden, &builder)
        gate = activation == .swiglu ? Linear(name + ".gate", inputs: dimension, outputs: hidden, &builder) : nil
        down = Linear(name + ".down", inputs: hidden, outputs: dimension, &builder)
    }

    func forward(_ x: [Float], _ parameters: FlatBuffer) -> ([Float], Saved) {
        let upward = up.forward(x, parameters)
        let gated = gate?.forward(x, parameters) ?? []
        let hidden: [Float] =
            switch activation {
            case .relu: upward.map { max($0, 0) }
            case .gelu: upward.map { 0.5 * $0 * (1 + erff($0 * 0.70710678)) }
            case .swiglu: zip(gated, upward).map { $0 * sigmoid($0) * $1 }
            }
        return (down.forward(hidden, parameters), Saved(x: x, up: upward, gate: gated, hidden: hidden))
    }

    func backward(_ dy: [Float], _ saved: Saved, _ parameters: FlatBuffer, _ gradients: FlatBuffer) -> [Float] {
        var dup = down.backward(dy, x: saved.hidden, parameters, gradients)
        var dx: [Float]?
        switch activation {
        case .relu: for index in dup.indices where saved.up[index] <= 0 { dup[index] = 0 }
        case .gelu:
            for index in dup.indices {
                let x = saved.up[index]
                dup[index] *= 0.5 * (1 + erff(x * 0.70710678)) + x * 0.3989423 * expf(-0.5 * x * x)
            }
        case .swiglu:
            var dgate = dup
            for index in dup.indices {
                let (z, s) = (saved.gate[index], sigmoid(saved.gate[index]))
                dgate[index] = dup[index] * saved.up[index] * s * (1 + z * (1 - s))
                dup[index] *= z * s
            }
            dx = gate!.backward(dgate, x: saved.x, parameters, gradients)
        }
        let throughUp = up.backward(dup, x: saved.x, parameters, gradients)
        return dx.map { add($0, throughUp) } ?? throughUp
    }
}

func sigmoid(_ x: Float) -> Float { 1 / (1 + expf(-x)) }

/// Sums of elements.
func add(_ a: [Float], _ b: [Float]) -> [Float] {
    var sum = a
    for index in sum.indices { sum[index] += b[index] }
    return sum
}
