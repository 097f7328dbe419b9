// SPDX-License-Identifier: Apache-2.0
// ForwardTests.swift - every kernel set against the reference, bit for bit, over the cases of ForwardCases.swift.

import QuietAttention
import SeededInputs
import TestSupport
import Testing

@Suite struct ForwardTests {
    @Test("sizes", arguments: kernelSets, ForwardCases.sizes)
    func sizes(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("dimensions", arguments: kernelSets, ForwardCases.dimensions)
    func dimensions(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("empty work", arguments: kernelSets, ForwardCases.empty)
    func emptyWork(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("input families and sinks", arguments: kernelSets, ForwardCases.families)
    func families(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("chunks of every family", arguments: kernelSets, ForwardCases.chunks)
    func chunks(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("scales", arguments: kernelSets, ForwardCases.scales)
    func scales(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("storage types and layouts", arguments: kernelSets, ForwardCases.storages)
    func storages(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("few queries", arguments: kernelSets, ForwardCases.fewQueries)
    func fewQueries(kernels: KernelSet, shape: AttentionCase) throws {
        try requireReferenceBits(shape, kernels)
        try requireReferenceBits(shape, kernels, threads: 2)
    }

    @Test("grouped heads", arguments: kernelSets, ForwardCases.heads)
    func heads(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("causal masks and windows", arguments: kernelSets, ForwardCases.geometries)
    func geometries(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("key lengths", arguments: kernelSets, ForwardCases.lengths)
    func lengths(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("key lengths of padded queries", arguments: kernelSets, ForwardCases.paddedQueries)
    func paddedQueries(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("boolean masks", arguments: kernelSets, ForwardCases.masks)
    func masks(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("biases", arguments: kernelSets, ForwardCases.biases)
    func biases(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    @Test("mixtures", arguments: kernelSets, ForwardCases.mixtures)
    func mixtures(kernels: KernelSet, shape: AttentionCase) throws { try requireReferenceBits(shape, kernels) }

    /// Every option with every other.
    @Test("random cases", arguments: kernelSets)
    func randomCases(kernels: KernelSet) throws {
        try forAll(AnyInputCase.self, cases: 150) { try requireReferenceBits($0.shape, kernels) }
    }
}

/// A random case of any input family and storage type.
private struct AnyInputCase: PropertyCase {
    var shape: AttentionCase
    var description: String { shape.description }
    var shrunk: [AnyInputCase] { shape.shrunk.map(AnyInputCase.init) }

    static func random(using generator: inout SeededGenerator) -> AnyInputCase {
        var shape = AttentionCase.random(using: &generator)
        shape.family = generator.element(of: InputFamily.allCases)
        shape.storage = generator.element(of: AttentionCase.StorageChoice.available)
        return AnyInputCase(shape: shape)
    }
}
