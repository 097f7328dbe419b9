// SPDX-License-Identifier: Apache-2.0
// AttendInputs.swift - queries, keys and values read from a file, and checked against each other.

import QuietAttention
import Safetensors

/// Queries, keys and values that fit together.
struct AttendInputs {
    let shape: AttentionShape
    var queries, keys, values: [Float]
    /// `[1, 12, 192, 32] F32`, for each of the three.
    let descriptions: [String]

    init(_ file: SafetensorsFile, queries: String, keys: String, values: String) throws {
        let (q, k, v) = (try file.tensor(named: queries), try file.tensor(named: keys), try file.tensor(named: values))
        for tensor in [q, k, v] where tensor.shape.count != 4 {
            throw Failure(
                "tensor \(quoted(tensor.name)): expected the shape [batch, heads, sequence, dimension], got \(tensor.shape)"
            )
        }
        func check(_ what: String, _ tensor: TensorDescription, _ axis: Int, equals other: TensorDescription) throws {
            guard tensor.shape[axis] == other.shape[axis] else {
                throw Failure(
                    "tensor \(quoted(tensor.name)): expected \(what) \(other.shape[axis]), as \(quoted(other.name)) has, "
                        + "got \(tensor.shape[axis]) in the shape \(tensor.shape)")
            }
        }
        try check("batch", k, 0, equals: q)
        try check("batch", v, 0, equals: q)
        try check("heads", v, 1, equals: k)
        try check("sequence", v, 2, equals: k)
        try check("dimension", k, 3, equals: q)
        shape = try AttentionShape(
            batch: q.shape[0], queryHeads: q.shape[1], keyValueHeads: k.shape[1], queries: q.shape[2], keys: k.shape[2],
            headDimension: q.shape[3], valueDimension: v.shape[3])
        self.queries = try file.floats(named: queries)
        self.keys = try file.floats(named: keys)
        self.values = try file.floats(named: values)
        descriptions = [q, k, v].map { "\($0.shape) \($0.elementType.rawValue)" }
    }

    /// The shapes as lines of a report.
    var lines: String {
        """
        queries     \(descriptions[0])
        keys        \(descriptions[1])
        values      \(descriptions[2])
        """
    }
}
