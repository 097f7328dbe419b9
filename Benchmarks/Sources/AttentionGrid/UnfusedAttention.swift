// SPDX-License-Identifier: Apache-2.0
// UnfusedAttention.swift - attention as one writes it on top of a BLAS: the baseline, and an oracle of its own.
//
//     S = scale Q K^T          cblas_sgemm
//     P = softmax_1 of S       row by row
//     O = P V                  cblas_sgemm
//
// for each head, with the whole matrix of queries by keys in memory.

import COpenBLAS
import Dispatch
import Foundation

/// The unfused forward pass of a shape, on OpenBLAS.
struct UnfusedAttention {
    let shape: GridShape
    /// A sink logit per query head.
    let sinks: [Float]
    let threads: Int

    /// Scores of one head and sequence for each thread.
    private let scores: [ScoreBuffer]
    private let sequences: [GridShape.Sequence]

    init(_ shape: GridShape, sinks: [Float], threads: Int) {
        self.shape = shape
        self.sinks = sinks
        self.threads = threads
        sequences = shape.sequenceList
        scores = (0..<threads).map { _ in ScoreBuffer(count: shape.queries * shape.keys) }
        // Heads are spread over the threads, so each multiplication is a thread's own.
        openblas_set_num_threads(1)
    }

    /// Bytes of scores that the baseline keeps.
    var workspaceBytes: Int { scores.reduce(0) { $0 + $1.memory.count * MemoryLayout<Float>.stride } }

    func forward(queries: [Float], keys: [Float], values: [Float], into output: inout [Float]) {
        let heads = sequences.count * shape.queryHeads
        queries.withUnsafeBufferPointer { queries in
            keys.withUnsafeBufferPointer { keys in
                values.withUnsafeBufferPointer { values in
                    output.withUnsafeMutableBufferPointer { output in
                        nonisolated(unsafe) let tensors = (queries, keys, values, output)
                        DispatchQueue.concurrentPerform(iterations: threads) { thread in
                            for head in stride(from: thread, to: heads, by: threads) {
                                forward(
                                    head % shape.queryHeads, of: sequences[head / shape.queryHeads],
                                    queries: tensors.0, keys: tensors.1, values: tensors.2, into: tensors.3,
                                    scores: scores[thread].memory.baseAddress!)
                            }
                        }
                    }
                }
            }
        }
    }

    private func forward(
        _ head: Int, of sequence: GridShape.Sequence, queries: UnsafeBufferPointer<Float>,
        keys: UnsafeBufferPointer<Float>, values: UnsafeBufferPointer<Float>,
        into output: UnsafeMutableBufferPointer<Float>, scores: UnsafeMutablePointer<Float>
    ) {
        guard sequence.queries > 0, sequence.keys > 0 else { return }
        let keyValueHead = head / (shape.queryHeads / shape.keyValueHeads)
        let rows = Int32(sequence.queries)
        let columns = Int32(sequence.keys)
        let q = place(of: head, shape.queryHeads, sequence.firstQuery, sequence.queries, shape.headDimension)
        let k = place(of: keyValueHead, shape.keyValueHeads, sequence.firstKey, sequence.keys, shape.headDimension)
        let v = place(of: keyValueHead, shape.keyValueHeads, sequence.firstKey, sequence.keys, shape.valueDimension)
        let o = place(of: head, shape.queryHeads, sequence.firstQuery, sequence.queries, shape.valueDimension)
        cblas_sgemm(
            CblasRowMajor, CblasNoTrans, CblasTrans, rows, columns, Int32(shape.headDimension),
            1 / Float(shape.headDimension).squareRoot(), queries.baseAddress! + q.start, q.stride,
            keys.baseAddress! + k.start, k.stride, 0, scores, columns)
        for row in 0..<sequence.queries {
            softmax(
                UnsafeMutableBufferPointer(start: scores + row * sequence.keys, count: sequence.keys),
                visible: sequence.visible(row: row), sink: sinks[head])
        }
        cblas_sgemm(
            CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, Int32(shape.valueDimension), columns, 1, scores, columns,
            values.baseAddress! + v.start, v.stride, 0, output.baseAddress! + o.start, o.stride)
    }

    /// Where a head's first row is and how far apart its rows are: `[batch, heads, sequence, dimension]`, or
    /// `[total, heads, dimension]` of a packed batch.
    private func place(
        of head: Int, _ heads: Int, _ firstRow: Int, _ rows: Int, _ dimension: Int
    ) -> (start: Int, stride: Int32) {
        shape.sequences == nil
            ? ((firstRow * heads + head * rows) * dimension, Int32(dimension))
            : ((firstRow * heads + head) * dimension, Int32(heads * dimension))
    }

    /// row[j] = e^row[j] / (e^sink + sum_k e^row[k]) over the visible keys, 0 elsewhere.
    private func softmax(_ row: UnsafeMutableBufferPointer<Float>, visible: Range<Int>, sink: Float) {
        var top = sink
        for key in visible { top = max(top, row[key]) }
        if top == -.infinity { top = 0 }
        var sum = exp(sink - top)
        for key in visible {
            row[key] = exp(row[key] - top)
            sum += row[key]
        }
        let factor = sum == 0 ? 0 : 1 / sum
        for key in visible { row[key] *= factor }
        for key in 0..<visible.lowerBound { row[key] = 0 }
        for key in visible.upperBound..<row.count { row[key] = 0 }
    }
}

/// Memory that lives as long as what refers to it.
private final class ScoreBuffer: @unchecked Sendable {
    let memory: UnsafeMutableBufferPointer<Float>

    init(count: Int) {
        memory = .allocate(capacity: max(count, 1))
        memory.initialize(repeating: 0)
    }

    deinit { memory.deallocate() }
}
