// SPDX-License-Identifier: Apache-2.0
// Norm.swift - RMSNorm or LayerNorm of rows, by the library.

import QuietAttention

struct Norm: Sendable {
    let kind: ModelConfiguration.NormKind
    let dimension: Int
    let gain: Slot
    let bias: Slot?

    init(_ name: String, _ builder: inout ModelBuilder) {
        kind = builder.configuration.norm
        dimension = builder.configuration.dimension
        gain = builder.vector(name + ".gain", [Float](repeating: 1, count: dimension))
        bias = kind == .layer ? builder.vector(name + ".bias", [Float](repeating: 0, count: dimension)) : nil
    }

    func forward(_ x: [Float], _ parameters: FlatBuffer) throws -> [Float] {
        var y = x
        switch kind {
        case .rms: try RMSNorm(dimension: dimension, gain: parameters[gain], epsilon: 1e-5).apply(to: &y)
        case .layer:
            try LayerNorm(dimension: dimension, gain: parameters[gain], bias: parameters[bias!], epsilon: 1e-5)
                .apply(to: &y)
        }
        return y
    }

    /// Adds the gradient of the input to `dx`, and those of gain and bias to the parameters'.
    func addBackward(
        _ dy: [Float], x: [Float], _ parameters: FlatBuffer, _ gradients: FlatBuffer, to dx: inout [Float]
    ) throws {
        try dx.withUnsafeMutableBufferPointer { dx in
            let buffers = RowNormGradientBuffers(
                rows: dx, gain: gradients.buffer(gain), bias: bias.map { gradients.buffer($0) })
            try x.withUnsafeBufferPointer { x in
                try dy.withUnsafeBufferPointer { dy in
                    switch kind {
                    case .rms:
                        try RMSNorm(dimension: dimension, gain: parameters[gain], epsilon: 1e-5)
                            .gradients(rows: x, outputGradient: dy, into: buffers, accumulating: true)
                    case .layer:
                        try LayerNorm(
                            dimension: dimension, gain: parameters[gain], bias: parameters[bias!], epsilon: 1e-5
                        ).gradients(rows: x, outputGradient: dy, into: buffers, accumulating: true)
                    }
                }
            }
        }
    }

    /// The gradient of the input; adds those of gain and bias to the parameters'.
    func backward(_ dy: [Float], x: [Float], _ parameters: FlatBuffer, _ gradients: FlatBuffer) throws -> [Float] {
        var dx = [Float](repeating: 0, count: x.count)
        try addBackward(dy, x: x, parameters, gradients, to: &dx)
        return dx
    }
}
