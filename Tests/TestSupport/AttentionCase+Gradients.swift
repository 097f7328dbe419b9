// SPDX-License-Identifier: Apache-2.0
// AttentionCase+Gradients.swift - the loss of a case, and comparisons of gradients.

import AttentionReference
import QuietAttention
import SeededInputs

extension AttentionCase {
    /// Standard normal gradients of the output, in the case's storage, and of the log-sum-exp where there is one.
    public var loss: ReferenceLoss {
        var generator = SeededGenerator(seed: seed ^ 0x10_55)
        let outputGradient = generator.normals(rowCount * valueDimension).map(storage.rounded)
        let logSumExpGradient = generator.normals(rowCount)
        return ReferenceLoss(
            outputGradient: outputGradient, logSumExpGradient: normaliser.hasSink ? logSumExpGradient : nil)
    }

    /// What every kernel set gives, bit for bit.
    public func referenceGradients(
        _ inputs: AttentionInputs, _ loss: ReferenceLoss, addedTo start: ReferenceGradients<Float>? = nil
    ) -> ReferenceGradients<Float> {
        referenceProblem(inputs).backward(
            queries: inputs.queries, keys: inputs.keys, values: inputs.values, loss, storedOutput: storage.rounded,
            addedTo: start)
    }

    /// Through the public API, of a case with its heads first and in Float.
    public func gradients(
        _ inputs: AttentionInputs, _ loss: ReferenceLoss, kernels: KernelSet, threads: Int = 1
    ) throws -> AttentionGradients {
        let attention = try attention(inputs, kernels: kernels, threads: threads)
        var record = ForwardRecord()
        let result = try attention.forward(
            queries: inputs.queries, keys: inputs.keys, values: inputs.values, recording: &record)
        return try attention.backward(
            outputGradient: loss.outputGradient, logSumExpGradient: loss.logSumExpGradient, queries: inputs.queries,
            keys: inputs.keys, values: inputs.values, output: result.output, record: record)
    }

    /// The same, with those that have to be asked for: added to zeros.
    public func allGradients(
        _ inputs: AttentionInputs, _ loss: ReferenceLoss, kernels: KernelSet, threads: Int = 1
    ) throws -> AttentionGradients {
        func zeros(_ count: Int) -> [Float] { [Float](repeating: 0, count: count) }
        var gradients = AttentionGradients(
            queries: zeros(inputs.queries.count), keys: zeros(inputs.keys.count), values: zeros(inputs.values.count),
            sinks: zeros(normaliser.hasSink ? queryHeads : 0))
        gradients.logScales = zeros(queryHeads)
        if hasALiBi { gradients.slopes = gradients.logScales }
        if scaling == .scalableSoftmax { gradients.scalableSoftmax = gradients.logScales }
        try addGradients(inputs, loss, to: &gradients, kernels: kernels, threads: threads)
        return gradients
    }

    /// Added to what is there.
    public func addGradients(
        _ inputs: AttentionInputs, _ loss: ReferenceLoss, to gradients: inout AttentionGradients, kernels: KernelSet,
        threads: Int = 1
    ) throws {
        let attention = try attention(inputs, kernels: kernels, threads: threads)
        var record = ForwardRecord()
        let result = try attention.forward(
            queries: inputs.queries, keys: inputs.keys, values: inputs.values, recording: &record)
        try attention.addGradients(
            outputGradient: loss.outputGradient, logSumExpGradient: loss.logSumExpGradient, queries: inputs.queries,
            keys: inputs.keys, values: inputs.values, output: result.output, record: record, to: &gradients)
    }

    /// What is true.
    public func oracleGradients(_ inputs: AttentionInputs, _ loss: ReferenceLoss) -> ReferenceGradients<Double> {
        referenceProblem(inputs).oracleGradients(
            queries: inputs.queries, keys: inputs.keys, values: inputs.values, loss)
    }
}

extension ReferenceGradients {
    /// All of them by name.
    public var named: [(name: String, values: [Scalar])] {
        [
            ("dq", queries), ("dk", keys), ("dv", values), ("dsink", sinks), ("dbias", bias), ("dslope", slopes),
            ("dlogscale", logScales),
        ]
    }
}

/// Throws unless the bits of all gradients are equal.
public func requireSameBits(
    _ actual: ReferenceGradients<Float>, _ expected: ReferenceGradients<Float>, _ context: @autoclosure () -> String
) throws {
    for (actual, expected) in zip(actual.named, expected.named) {
        try requireSameBits(actual.name, actual.values, expected.values, context())
    }
}

extension AttentionCase {
    /// NaN in rows that see no key, in the gradients of their outputs, and in keys and values that no row sees.
    public func spoiled(
        _ inputs: AttentionInputs, _ loss: ReferenceLoss
    ) -> (inputs: AttentionInputs, loss: ReferenceLoss) {
        var (inputs, loss) = (inputs, loss)
        for item in 0..<batch {
            var isSeen = [Bool](repeating: false, count: keys * keyValueHeads)
            for head in 0..<queryHeads {
                let problem = headProblem(inputs, item: item, head: head)
                for query in 0..<queries {
                    let visible = problem.visibleKeys(query)
                    for key in visible { isSeen[head / group * keys + key] = true }
                    guard visible.isEmpty else { continue }
                    let row = (item * queryHeads + head) * queries + query
                    for d in 0..<headDimension { inputs.queries[row * headDimension + d] = .nan }
                    for c in 0..<valueDimension { loss.outputGradient[row * valueDimension + c] = .nan }
                }
            }
            for (index, isSeen) in isSeen.enumerated() where !isSeen {
                let row = item * keys * keyValueHeads + index
                for d in 0..<headDimension { inputs.keys[row * headDimension + d] = .nan }
                for c in 0..<valueDimension { inputs.values[row * valueDimension + c] = .nan }
            }
        }
        return (inputs, loss)
    }
}
