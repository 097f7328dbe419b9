// SPDX-License-Identifier: Apache-2.0
// FileRows.swift - rows of queries, keys, values and gradients out of a file: those that are asked for, and no others.

import QuietAttention
import Ring
import Safetensors

/// Rows of a file's tensors, as they lie there or widened to Float.
struct FileRows<Element: AttentionScalar>: RowSource {
    let file: SafetensorsFile
    let shapes: AttendShapes
    /// nil: no gradients are wanted.
    let gradients: GradientTensors?

    func read(
        _ tensor: RowTensor, item: Int, head: Int, rows: Range<Int>, into buffer: UnsafeMutableBufferPointer<Element>
    ) throws {
        let description =
            switch tensor {
            case .queries: shapes.tensors[0]
            case .keys: shapes.tensors[1]
            case .values: shapes.tensors[2]
            case .outputGradient: gradients!.output
            }
        try read(description, shapes.layout, item: item, head: head, rows: rows, into: buffer)
    }

    /// Fills `buffer` with adjacent rows of a head of a tensor `[batch, heads, sequence, dimension]` or
    /// `[batch, heads, sequence]`, or of the other layout.
    func read(
        _ description: TensorDescription, _ layout: Layout, item: Int, head: Int, rows: Range<Int>,
        into buffer: UnsafeMutableBufferPointer<Element>
    ) throws {
        let extents = description.shape
        let dimension = extents.count > 3 ? extents[3] : 1
        if layout == .bhsd {
            let first = ((item * extents[1] + head) * extents[2] + rows.lowerBound) * dimension
            try read(description, first, buffer)
        } else {
            for (index, row) in rows.enumerated() {
                let first = ((item * extents[1] + row) * extents[2] + head) * dimension
                let start = index * dimension
                try read(description, first, .init(rebasing: buffer[start..<start + dimension]))
            }
        }
    }

    private func read(
        _ tensor: TensorDescription, _ first: Int, _ buffer: UnsafeMutableBufferPointer<Element>
    ) throws {
        guard let floats = UnsafeMutableRawBufferPointer(buffer) as UnsafeMutableRawBufferPointer?, !buffer.isEmpty
        else {
            return
        }
        let size = tensor.elementType.bitWidth / 8
        if size == MemoryLayout<Element>.stride, tensor.elementType.storage == Element.storage {
            try file.read(tensor, from: first * size, into: floats)
            return
        }
        // Only Float is widened to.
        let target = floats.bindMemory(to: Float.self)
        switch tensor.elementType {
        case .bfloat16: try convert(tensor, first, target, widenedBFloat16)
        case .float16: try convert(tensor, first, target, widenedFloat16)
        default: try convert(tensor, first, target) { (bits: UInt64) in try tensor.narrowed(bits) }
        }
    }

    private func convert<Stored: FixedWidthInteger>(
        _ tensor: TensorDescription, _ first: Int, _ target: UnsafeMutableBufferPointer<Float>,
        _ convert: (Stored) throws -> Float
    ) throws {
        var stored = [Stored](repeating: 0, count: target.count)
        try stored.withUnsafeMutableBytes { try file.read(tensor, from: first * MemoryLayout<Stored>.size, into: $0) }
        for index in target.indices { target[index] = try convert(stored[index]) }
    }
}

extension ElementType {
    /// As the library reads it; nil: not without a conversion.
    var storage: AttentionStorage? {
        switch self {
        case .float32: .float32
        case .float16: .float16
        case .bfloat16: .bfloat16
        default: nil
        }
    }
}
