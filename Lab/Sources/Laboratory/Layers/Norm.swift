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

    func backward(_ dy: [Float], x: [Float], _ parameters: FlatBuffer, _ gradients: FlatBuffer) throws -> [Float] {
        let result =
            switch kind {
            case .rms:
                try RMSNorm(dimension: dimension, gain: parameters[gain], epsilon: 1e-5)
                    .gradients(rows: x, outputGradient: dy)
            case .layer:
                try LayerNorm(dimension: dimension, gain: parameters[gain], bias: parameters[bias!], epsilon: 1e-5)
                    .gradients(rows: x, outputGradient: dy)
            }
        gradients.add(result.gain, to: gain)
        if let bias { gradients.add(result.bias, to: bias) }
        return result.rows
    }
}
