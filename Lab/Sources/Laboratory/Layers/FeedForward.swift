// SPDX-License-Identifier: Apache-2.0
// FeedForward.swift - the layer between attentions: ReLU, GELU or SwiGLU.

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

    /// `base` and what the layer makes of x.
    func forward(_ x: [Float], addedTo base: [Float], _ parameters: FlatBuffer) -> ([Float], Saved) {
        let upward = up.forward(x, parameters)
        let gated = gate?.forward(x, parameters) ?? []
        let hidden: [Float] =
            switch activation {
            case .relu: mapped(upward) { $0 > 0 ? $0 : 0 }
            case .gelu: gelu(upward)
            case .swiglu: mapped(gated, upward) { $0 * sigmoid($0) * $1 }
            }
        return (
            down.forward(hidden, addedTo: base, parameters), Saved(x: x, up: upward, gate: gated, hidden: hidden)
        )
    }

    func backward(_ dy: [Float], _ saved: Saved, _ parameters: FlatBuffer, _ gradients: FlatBuffer) -> [Float] {
        var dup = down.backward(dy, x: saved.hidden, parameters, gradients)
        switch activation {
        case .relu: dup = mapped(dup, saved.up) { $1 > 0 ? $0 : 0 }
        case .gelu: dup = throughGELU(dup, saved.up)
        case .swiglu:
            let slopes = mapped(saved.gate, saved.up) { z, up in
                let s = sigmoid(z)
                return up * s * (1 + z * (1 - s))
            }
            let dgate = mapped(dup, slopes) { $0 * $1 }
            dup = mapped(dup, saved.gate) { $0 * $1 * sigmoid($1) }
            var dx = up.backward(dup, x: saved.x, parameters, gradients)
            gate!.addBackward(dgate, x: saved.x, parameters, gradients, to: &dx)
            return dx
        }
        return up.backward(dup, x: saved.x, parameters, gradients)
    }
}
