// SPDX-License-Identifier: Apache-2.0
// Problem.swift - a shape with seeded tensors, and ways to run it and to compare runs.

import QuietAttention
import SeededInputs
import Testing

/// A shape and tensors for it, unit normal.
struct Problem {
    let shape: AttentionShape
    var queries, keys, values: [Float]

    init(_ shape: AttentionShape, seed: UInt64 = 1) {
        var generator = SeededGenerator(seed: seed)
        self.shape = shape
        queries = generator.normals(shape.queryCount)
        keys = generator.normals(shape.keyCount)
        values = generator.normals(shape.valueCount)
    }

    func run(_ attention: Attention) throws -> AttentionResult {
        try attention.forward(queries: queries, keys: keys, values: values)
    }

    /// Outputs in a layout other than the default one, inputs likewise.
    func exchanged(_ tensor: [Float], heads: Int, sequence: Int) -> [Float] {
        guard !tensor.isEmpty else { return [] }
        let dimension = tensor.count / (shape.batch * heads * sequence)
        var result: [Float] = []
        for item in 0..<shape.batch {
            for row in 0..<sequence {
                for head in 0..<heads {
                    let start = ((item * heads + head) * sequence + row) * dimension
                    result += tensor[start..<start + dimension]
                }
            }
        }
        return result
    }
}

extension AttentionResult {
    /// The bits of all outputs.
    var bits: [UInt32] { (output + logSumExp + sinkShare).map(\.bitPattern) }
}

func bits(_ values: [Float]) -> [UInt32] { values.map(\.bitPattern) }

/// Expects an ``AttentionError`` of that kind that names that argument, and returns it.
@discardableResult
func expectRefusal(
    _ kind: AttentionError.Kind, _ argument: String, sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () throws -> Void
) -> AttentionError? {
    let error = #expect(throws: AttentionError.self, sourceLocation: sourceLocation, performing: body)
    #expect(error?.kind == kind, sourceLocation: sourceLocation)
    #expect(error?.argument == argument, sourceLocation: sourceLocation)
    return error
}
