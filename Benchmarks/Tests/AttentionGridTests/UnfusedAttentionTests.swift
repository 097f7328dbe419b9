// SPDX-License-Identifier: Apache-2.0
// UnfusedAttentionTests.swift - our kernels against the unfused baseline, which shares no line with them.

import Foundation
import Testing

@testable import AttentionGrid

struct UnfusedAttentionTests {
    /// Two float32 computations in different orders, the one with the exponential of the C library: about 1e-6 apart.
    static let tolerance: Float = 1e-5

    /// The shapes that are timed, with sequences cut beyond one block of keys and rows, and fewer heads in equal groups:
    /// a debug build computes that in a moment.
    static let shapes: [GridShape] = {
        let file = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../shapes.json")
        return try! GridShape.load(from: file.standardizedFileURL).map { shape in
            var shape = shape
            let group = shape.queryHeads / shape.keyValueHeads
            shape.keyValueHeads = min(shape.keyValueHeads, 2)
            shape.queryHeads = shape.keyValueHeads * group
            shape.queries = min(shape.queries, 140)
            shape.keys = min(shape.keys, 140)
            shape.keyLengths = shape.keyLengths?.map { min($0, 140) }
            shape.sequences = shape.sequences?.map { min($0, 140) }
            return shape
        }
    }()

    @Test("Outputs agree", arguments: shapes, [1, 2])
    func agreement(shape: GridShape, threads: Int) throws {
        let problem = try GridProblem(shape, threads: threads)
        try problem.run()
        problem.runUnfused()
        let largest = problem.unfusedOutput.reduce(0) { max($0, abs($1)) }
        let difference = zip(problem.output, problem.unfusedOutput).reduce(0) { max($0, abs($1.0 - $1.1)) }
        #expect(largest > 0)
        #expect(difference <= Self.tolerance * largest)
    }

    @Test("More queries than keys, and fewer", arguments: [(7, 3), (3, 7)], [GridShape.Mask.causal, .window(2)])
    func rectangles(size: (queries: Int, keys: Int), mask: GridShape.Mask) throws {
        var shape = Self.shapes[0]
        (shape.queries, shape.keys, shape.mask) = (size.queries, size.keys, mask)
        let problem = try GridProblem(shape)
        try problem.run()
        problem.runUnfused()
        for (ours, unfused) in zip(problem.output, problem.unfusedOutput) {
            #expect(abs(ours - unfused) <= Self.tolerance * max(1, abs(unfused)))
        }
    }

    @Test("Float operations count all pairs, half of them if causal, the visible ones of a window")
    func floatOperations() {
        var shape = Self.shapes[0]
        (shape.queryHeads, shape.queries, shape.keys) = (3, 5, 5)
        (shape.headDimension, shape.valueDimension) = (4, 6)
        #expect(shape.floatOperations == Double(2 * 10 * 3 * 25))
        shape.mask = .causal
        #expect(shape.floatOperations == 2 * 10 * 3 * 12.5)
        shape.mask = .window(2)
        #expect(shape.floatOperations == Double(2 * 10 * 3 * 9))
    }
}
