// SPDX-License-Identifier: Apache-2.0
// GridShapeTests.swift - the shapes that are timed, Benchmarks/shapes.json, scaled down, against the reference.

import Foundation
import QuietAttention
import TestSupport
import Testing

@Suite struct GridShapeTests {
    /// The fields of a shape in the file; what it leaves out is a plain self-attention's.
    private struct Shape: Decodable {
        let name: String
        let queryHeads, headDimension: Int
        let batch, keyValueHeads, queries, keys, valueDimension: Int?
        let mask, sink: String?
        let keyLengths, sequences: [Int]?
    }

    private struct Grid: Decodable { let shapes: [Shape] }

    private static func load() throws -> [Shape] {
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        return try JSONDecoder().decode(
            Grid.self, from: Data(contentsOf: root.appending(path: "Benchmarks/shapes.json"))
        ).shapes
    }

    /// Dimensions, heads to a group and kind of mask stay; one group, and sequences of up to 70 tokens.
    private func scaled(_ shape: Shape, queries: Int) throws -> AttentionCase {
        let most = 70
        let geometry: AttentionCase.Geometry
        switch (shape.mask ?? "none").split(separator: "=").map(String.init) {
        case ["none"]: geometry = .none
        case ["causal"]: geometry = .causal
        case let words where words.count == 2 && words[0] == "window":
            geometry = .window(min(try #require(Int(words[1])), most / 3))
        default: throw TestFailure("mask \(shape.mask ?? "")")
        }
        return AttentionCase(
            queries: min(queries, most), keys: min(shape.keys ?? queries, most), headDimension: shape.headDimension,
            valueDimension: shape.valueDimension
        ) { part in
            part.batch = min(shape.batch ?? 1, 2)
            part.group = shape.queryHeads / (shape.keyValueHeads ?? shape.queryHeads)
            part.geometry = geometry
            part.sink = shape.sink == "learned" ? .amid : .one
            part.keyLengths = shape.keyLengths == nil ? .none : .partial
        }
    }

    @Test("every shape that is timed", arguments: kernelSets)
    func sameBitsAsTheReference(kernels: KernelSet) throws {
        let shapes = try Self.load()
        #expect(shapes.count >= 18 && Set(shapes.map(\.name)).count == shapes.count)
        for shape in shapes {
            // Of a packed batch the sequences one by one: that they do not change each other is InvarianceTests' matter.
            for queries in try shape.sequences ?? [#require(shape.queries)] {
                let part = try scaled(shape, queries: queries)
                try requireSameBits(
                    part.run(part.solved.inputs, kernels: kernels), part.solved.expected,
                    valueDimension: part.valueDimension, "\(kernels), \(shape.name)")
            }
        }
    }
}
