// SPDX-License-Identifier: Apache-2.0
// AttentionCase+Gradients.swift - the loss of a case, and comparisons of gradients.

import AttentionReference
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
