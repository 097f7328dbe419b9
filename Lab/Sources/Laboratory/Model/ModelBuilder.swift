// SPDX-License-Identifier: Apache-2.0
// ModelBuilder.swift - draws the first values of parameters, from one seed; every tensor has a stream of its own.

import Foundation
import QuietAttention

struct ModelBuilder {
    let configuration: ModelConfiguration
    let seed: UInt64
    private(set) var list = ParameterList()
    /// What a layer could not draw: kept, and thrown when the model is complete.
    private(set) var failure: (any Error)?

    init(_ configuration: ModelConfiguration, seed: UInt64) {
        (self.configuration, self.seed) = (configuration, seed)
    }

    /// A matrix `[outputs, inputs]`. Tables of embeddings are normal with 0.02 where the rest is Xavier's, whose fans a
    /// table has not.
    mutating func matrix(_ name: String, outputs: Int, inputs: Int, isTable: Bool = false) -> Slot {
        let initialisation: WeightInitialization =
            switch configuration.initialisation {
            case .normal: .normal(standardDeviation: configuration.deviation)
            case .xavier:
                isTable ? .normal(standardDeviation: 0.02) : .xavierUniform(gain: configuration.deviation)
            }
        var values = [Float](repeating: 0, count: inputs * outputs)
        do {
            values = try initialisation.weights(
                fanIn: inputs, fanOut: outputs, seed: seed, stream: UInt64(list.slots.count))
        } catch { failure = failure ?? error }
        return list.add(name, [outputs, inputs], decays: true, values)
    }

    mutating func vector(_ name: String, _ values: [Float]) -> Slot { list.add(name, [values.count], values) }
}

func naturalLogarithm(_ x: Double) -> Double { log(x) }
