// SPDX-License-Identifier: Apache-2.0
// BackwardComparison.swift - gradients through the C interface beside those of the reference, bit for bit.

import AttentionReference
import CKernels
import SeededInputs
import TestSupport

extension ReferenceProducts {
    /// The sets that make such products: those of bfloat16 also by tile instructions and dots, which are emulated.
    var kernelTables: [KernelTable] {
        self == .bfloat16 ? KernelTable.available + KernelTable.emulated : KernelTable.available
    }
}

extension DirectBackward {
    /// Normal gradients of the outputs and of their log-sum-exps.
    fileprivate func loss(_ problem: HeadProblem) -> ReferenceLoss {
        var generator = SeededGenerator(seed: 14)
        let rows = heads * problem.queryCount
        let outputGradient = generator.normals(rows * problem.valueDimension)
        return ReferenceLoss(outputGradient: outputGradient, logSumExpGradient: generator.normals(rows))
    }

    /// The tensors as they are stored, and no gradient of a log-sum-exp that there is not.
    fileprivate func store(_ problem: inout HeadProblem, _ loss: inout ReferenceLoss) {
        for tensor in [\HeadProblem.queries, \.keys, \.values] {
            problem[keyPath: tensor] = problem[keyPath: tensor].map(call.storage.rounded)
        }
        loss.outputGradient = loss.outputGradient.map(call.storage.rounded)
        if !problem.normaliser.kernelNormaliser.hasSink { loss.logSumExpGradient = nil }
    }
}

/// Throws unless every kernel set gives the reference's bits in every way. Dbias of a head's own bias is that of its
/// scores.
///
/// - Parameter change: what the problem and its loss have beside the case, before they are stored.
func requireReferenceGradients(
    _ shape: AttentionCase, _ products: ReferenceProducts, _ ways: [DirectBackward] = [DirectBackward()],
    change: (inout HeadProblem, inout ReferenceLoss) -> Void = { _, _ in }
) throws {
    for way in ways {
        var problem = shape.headProblem(shape.inputs, item: 0, head: 0)
        problem.products = products
        var loss = way.loss(problem)
        change(&problem, &loss)
        way.store(&problem, &loss)
        let queries = [[Float]](repeating: problem.queries, count: way.heads).flatMap { $0 }
        let expected = problem.referenceProblem(heads: way.heads).backward(
            queries: queries, keys: problem.keys, values: problem.values, loss,
            storedOutput: way.call.outStorage.rounded)
        for kernels in products.kernelTables {
            var actual = try way.run(problem, loss, kernels)
            if way.heads > 1 { actual.bias = expected.bias }
            try requireSameBits(actual, expected, "\(kernels), products \(products), \(shape), \(way)")
        }
    }
}
