// SPDX-License-Identifier: Apache-2.0
// SharedGradients.swift - the gradients of what all rows share, over the items of a batch: numbers of heads, gains and biases.

import QuietAttention
import Ring
import Safetensors

/// Sums over the items, ascending. Those of norms are on rank 0 alone.
struct SharedGradients {
    /// What the file calls it, its extents, and the sum so far.
    private typealias Sum = (tensor: TensorPlan, values: [Float])

    private let scaling: ScoreScaling
    private var sinks, slopes, logScales: Sum?
    private var parameters: [(parameter: NormSums.Parameter, sum: Sum)] = []

    /// nil where no gradients are wanted.
    init?(
        _ file: SafetensorsFile, _ problem: FileProblem, _ options: GradientOptions, _ shape: AttentionShape,
        _ arguments: AttentionArguments
    ) throws {
        guard options.gradients else { return nil }
        scaling = arguments.rules.scaling
        func zeros(_ name: String, _ shape: [Int]) -> Sum {
            (TensorPlan(name: name, shape: shape), [Float](repeating: 0, count: shape.reduce(1, *)))
        }
        let heads = [shape.queryHeads]
        if arguments.rules.sink != .softmax { sinks = zeros("dsink", heads) }
        if problem.scoreTensors.alibiSlopes != nil { slopes = zeros("dslope", heads) }
        if problem.scoreTensors.ssmax != nil { logScales = zeros("dssmax", heads) }
        for (option, parameter) in zip(problem.normTensors.named, NormSums.Parameter.allCases) {
            guard let tensor = option.tensor else { continue }
            parameters.append((parameter, zeros(option.gradient, try file.tensor(named: tensor).shape)))
        }
    }

    private var all: [Sum] { [sinks, slopes, logScales].compactMap(\.self) + parameters.map(\.sum) }

    var tensors: [TensorPlan] { all.map(\.tensor) }

    /// Adds those of an item. Every rank calls this at the same place.
    mutating func add<Element: AttentionScalar>(_ backward: RingBackward<Element, Float>, _ world: World) throws {
        func add(_ numbers: [Float], to sum: inout Sum?) {
            for (head, number) in numbers.enumerated() { sum?.values[head] += number }
        }
        add(backward.sinkGradient, to: &sinks)
        add(backward.slopeGradient, to: &slopes)
        add(backward.logScaleGradient, to: &logScales)
        for index in parameters.indices {
            try backward.parameters.add(parameters[index].parameter, world, to: &parameters[index].sum.values)
        }
    }

    /// The gradients by name.
    func results() throws -> [(name: String, values: [Float])] {
        let scaled = try logScales.map { try scaling.scalableSoftmaxGradient(logScales: $0.values) }
        return all.map { ($0.tensor.name, $0.tensor.name == "dssmax" ? scaled ?? [] : $0.values) }
    }
}
