// SPDX-License-Identifier: Apache-2.0
// AttendOutput.swift - the gradients that come in, and the file that rank 0 writes from what all ranks have.

import QuietAttention
import Ring
import Safetensors

/// The tensors of a file that hold the gradients of a loss.
struct GradientTensors {
    /// As the output, and `[batch, H, L]`.
    let output: TensorDescription
    let logSumExp: TensorDescription?

    var all: [TensorDescription] { [output] + (logSumExp.map { [$0] } ?? []) }

    /// nil where no gradients are wanted.
    init?(_ file: SafetensorsFile, _ options: GradientOptions, _ shapes: AttendShapes) throws {
        guard options.gradients else { return nil }
        let shape = shapes.shape
        func tensor(_ name: String, _ extents: [Int], _ meaning: String) throws -> TensorDescription {
            try file.checkShape(of: name, extents, meaning: meaning)
            let tensor = try file.tensor(named: name)
            try tensor.checkReadable()
            return tensor
        }
        output = try tensor(
            options.outputGradient ?? "dout", shapes.layout.rows(shape) + [shape.valueDimension],
            "the gradient of each output")
        logSumExp = try options.lseGradient.map {
            try tensor($0, Layout.bhsd.rows(shape), "the gradient of each log-sum-exp")
        }
    }
}

extension TensorDescription {
    func checkReadable() throws {
        guard ElementType.readable.contains(elementType) else {
            throw SafetensorsError.unsupportedElementType(
                tensor: name, elementType: elementType, expected: ElementType.readable)
        }
    }
}

/// What all ranks have, in the file of rank 0. Every rank calls all of it at the same places.
struct AttendOutput {
    private let world: World
    private let shapes: AttendShapes
    private let names: Set<String>
    /// Where gradients begin that all rows share; nil: no gradients are wanted.
    let shared: SharedGradients?
    /// nil on other ranks.
    private let file: SlicedFile?

    init(
        _ world: World, _ shapes: AttendShapes, _ options: OutputOptions, _ shared: SharedGradients?
    ) throws {
        (self.world, self.shapes, self.shared) = (world, shapes, shared)
        let (shape, layout) = (shapes.shape, shapes.layout)
        let (rows, keys) = (layout.rows(shape), layout.keyRows(shape))
        var tensors = [TensorPlan(name: "out", shape: rows + [shape.valueDimension])]
        if options.lse { tensors.append(TensorPlan(name: "lse", shape: Layout.bhsd.rows(shape))) }
        if let shared {
            tensors += [
                TensorPlan(name: "dq", shape: rows + [shape.headDimension]),
                TensorPlan(name: "dk", shape: keys + [shape.headDimension]),
                TensorPlan(name: "dv", shape: keys + [shape.valueDimension]),
            ]
            tensors += shared.tensors
        }
        names = Set(tensors.map(\.name))
        // Where a rank dies, mpirun ends the others by a signal.
        file =
            world.rank > 0
            ? nil
            : try removingOnSignals({ try SlicedFile(tensors, for: options.output) }, path: { $0.temporaryPath })
    }

    func write<Element>(_ forward: RingForward<Element, Float>, _ item: Int) throws {
        let (shape, plan) = (shapes.shape, forward.part.plan)
        func stripes(_ dimension: Int, _ buffer: UnsafeBufferPointer<Float>) -> SharedTensor {
            .stripes(plan, rank: world.rank, heads: shape.queryHeads, dimension: dimension, buffer)
        }
        try write(stripes(shape.valueDimension, forward.output.reading), to: "out", item, shape.queries, shapes.layout)
        guard names.contains("lse") else { return }
        try write(stripes(1, forward.logSumExp.reading), to: "lse", item, shape.queries, .bhsd)
    }

    /// Gradients of queries, keys and values; those of padding stay 0, as the file was made.
    func write<Element>(_ backward: RingBackward<Element, Float>, _ plan: RingPlan, _ item: Int) throws {
        let shape = shapes.shape
        let queries = SharedTensor.stripes(
            plan, rank: world.rank, heads: shape.queryHeads, dimension: shape.headDimension,
            backward.queryGradient.reading)
        try write(queries, to: "dq", item, shape.queries, shapes.layout)
        for (name, dimension, sums) in [
            ("dk", shape.headDimension, backward.keyGradients), ("dv", shape.valueDimension, backward.valueGradients),
        ] {
            let keys = SharedTensor.chunks(plan, heads: shape.keyValueHeads, dimension: dimension) {
                sums[$0]!.reading
            }
            try write(keys, to: name, item, shape.keys, shapes.layout)
        }
    }

    func write(_ shared: SharedGradients) throws {
        for (name, values) in try shared.results() { try file?.write(values, of: name, from: 0) }
    }

    func commit() throws { try file?.commit() }

    /// One batch item of a tensor `[batch, heads, sequence, dimension]`, or of the other layout.
    private func write(
        _ tensor: SharedTensor, to name: String, _ item: Int, _ sequence: Int, _ layout: Layout
    ) throws {
        let (heads, dimension) = (tensor.heads, tensor.dimension)
        try world.collect(tensor) { head, rows, values in
            if layout == .bhsd {
                let first = ((item * heads + head) * sequence + rows.lowerBound) * dimension
                try file?.write(Array(values), of: name, from: first)
                return
            }
            for (index, row) in rows.enumerated() {
                let first = ((item * sequence + row) * heads + head) * dimension
                try file?.write(Array(values[index * dimension..<(index + 1) * dimension]), of: name, from: first)
            }
        }
    }
}
