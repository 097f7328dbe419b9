// SPDX-License-Identifier: Apache-2.0
// DirectBackward.swift - the gradients of query heads through the C interface, every tensor beside a page that may not
// be touched.

import AttentionReference
import CKernels
import TestSupport

/// How gradients are asked of the kernels.
struct DirectBackward: Sendable {
    var call = DirectCall()
    /// Query heads alike on the key/value head. Their output gradients differ.
    var heads = 1
    /// Queries and keys of a call, whole blocks of 64; nil: all, of all heads.
    var rowsPerCall: Int?
    var keysPerCall: Int?
}

extension DirectBackward {
    /// Throws when something beside the gradients was written. Of biases, those of a single head without broadcasting.
    func run(_ problem: HeadProblem, _ loss: ReferenceLoss, _ kernels: KernelTable) throws -> ReferenceGradients<Float>
    {
        let rows = heads * problem.queryCount
        let numbers = WeightNumbers(rows: problem.queryCount)
        let outputs = try call.run(problem, kernels, keeping: numbers)
        let tensors = Tensors(problem, self, outputs.output, loss)
        let sums = [numbers.references.array, numbers.factors.array].map { call.floats(repeated($0)) }
        let lseGradients = loss.logSumExpGradient.map { call.floats($0) }
        let deltas = call.floats([Float](repeating: .nan, count: rows))
        let workspaceBytes = qattn_backward_workspace(
            kernels.functions, problem.headDimension, problem.valueDimension)
        let workspace = call.floats([Float](repeating: .nan, count: workspaceBytes / 4))
        let direct = DirectProblem(problem, call, heads: heads)
        var arguments = tensors.arguments
        arguments.problem = direct.arguments
        arguments.lse_gradients = lseGradients.map { UnsafePointer($0.start) }
        (arguments.references, arguments.factors) = (UnsafePointer(sums[0].start), UnsafePointer(sums[1].start))
        arguments.deltas = deltas.start
        arguments.sum_head_stride = problem.queryCount
        arguments.workspace = workspace.start
        for (first, end) in [(0, rows / 3), (rows / 3, rows)] {
            (arguments.row_begin, arguments.row_end) = (first, end)
            kernels.functions.pointee.deltas(&arguments)
        }
        for part in parts(problem) {
            (arguments.row_begin, arguments.row_end) = (part.rows.lowerBound, part.rows.upperBound)
            (arguments.key_begin, arguments.key_end) = (part.keys.lowerBound, part.keys.upperBound)
            kernels.functions.pointee.backward(&arguments)
        }
        var result = tensors.gradients(problem, heads: heads)
        if heads == 1, problem.bias != nil { result.bias = scoreGradients(problem, arguments, kernels) }
        let functions = kernels.functions.pointee
        if problem.normaliser.kernelNormaliser.hasSink {
            result.sinks = sumsOfHeads(problem, zip(repeated(outputs.sinkShare), deltas.array).map { -($0 * $1) })
        }
        result.slopes = sumsOfHeads(problem, rowTerms(problem, arguments, functions.slope_gradients))
        result.logScales = sumsOfHeads(problem, rowTerms(problem, arguments, functions.log_scale_gradients))
        withExtendedLifetime(direct) {}
        guard tensors.areIntact, deltas.slackIsIntact, workspace.slackIsIntact else {
            throw TestFailure("\(kernels) wrote beside the gradients")
        }
        return result
    }

    /// The calls: for each head, keys outside.
    private func parts(_ problem: HeadProblem) -> [(rows: Range<Int>, keys: Range<Int>)] {
        let (queries, keys) = (problem.queryCount, problem.keyLength)
        if rowsPerCall == nil && keysPerCall == nil { return [(0..<heads * queries, 0..<keys)] }
        return (0..<heads).flatMap { head in
            stride(from: 0, to: keys, by: keysPerCall ?? keys).flatMap { key in
                stride(from: 0, to: queries, by: rowsPerCall ?? queries).map { query in
                    let end = min(query + (rowsPerCall ?? queries), queries)
                    return (
                        head * queries + query..<head * queries + end, key..<min(key + (keysPerCall ?? keys), keys)
                    )
                }
            }
        }
    }

    /// [queries][keys], block by block, and +0 where the bias hides a key.
    private func scoreGradients(
        _ problem: HeadProblem, _ arguments: qattn_backward_args, _ kernels: KernelTable
    ) -> [Float] {
        var arguments = arguments
        var result = [Float](repeating: 0, count: problem.queryCount * problem.keyCount)
        let width = Int(QATTN_KEY_BLOCK)
        (arguments.row_begin, arguments.row_end) = (0, problem.queryCount)
        for first in stride(from: 0, to: problem.keyLength, by: width) {
            let block = call.floats([Float](repeating: .nan, count: problem.queryCount * width))
            kernels.functions.pointee.score_gradients(&arguments, first / width, block.start)
            for row in 0..<problem.queryCount {
                for key in first..<min(first + width, problem.keyLength) {
                    result[row * problem.keyCount + key] += block.elements[row * width + key - first]
                }
            }
        }
        return result
    }

    /// What a kernel gives for each row, in two calls and beside guard pages.
    private func rowTerms(
        _ problem: HeadProblem, _ arguments: qattn_backward_args,
        _ kernel: (@convention(c) (UnsafePointer<qattn_backward_args>?, UnsafeMutablePointer<Float>?) -> Void)?
    ) -> [Float] {
        var arguments = arguments
        let rows = heads * problem.queryCount
        return [0..<rows / 3, rows / 3..<rows].flatMap { part in
            let sums = call.floats([Float](repeating: .nan, count: part.count))
            (arguments.row_begin, arguments.row_end) = (part.lowerBound, part.upperBound)
            kernel?(&arguments, sums.start)
            return sums.array
        }
    }

    /// What rows have, summed for each head as the contract has it.
    private func sumsOfHeads(_ problem: HeadProblem, _ terms: [Float]) -> [Float] {
        (0..<heads).map { head in
            var lanes = [Float](repeating: 0, count: 16)
            for query in 0..<problem.queryCount { lanes[query % 16] += terms[head * problem.queryCount + query] }
            for half in [8, 4, 2, 1] { for lane in 0..<half { lanes[lane] += lanes[lane + half] } }
            return lanes[0]
        }
    }

    fileprivate func repeated(_ rows: [Float]) -> [Float] {
        [[Float]](repeating: rows, count: heads).flatMap { $0 }
    }
}

/// The rows of a call, and their gradients.
private struct Tensors {
    let queries, keys, values, out, outGradients: StoredRows
    let queryGradients, keyGradients, valueGradients: StoredRows
    let arguments: qattn_backward_args

    init(_ problem: HeadProblem, _ backward: DirectBackward, _ output: [Float], _ loss: ReferenceLoss) {
        let call = backward.call
        func stored(_ rows: [Float], _ width: Int, _ storage: AttentionCase.StorageChoice) -> StoredRows {
            StoredRows(rows, width: width, padding: call.padding, storage: storage, guard: call.guardSide)
        }
        func zeros(_ count: Int, _ width: Int) -> StoredRows {
            stored([Float](repeating: 0, count: count * width), width, .float32)
        }
        let (headDimension, valueDimension) = (problem.headDimension, problem.valueDimension)
        queries = stored(backward.repeated(problem.queries), headDimension, call.storage)
        keys = call.stored(problem.keys, problem, width: headDimension)
        values = call.stored(problem.values, problem, width: valueDimension)
        out = stored(backward.repeated(output), valueDimension, call.outStorage)
        outGradients = stored(loss.outputGradient, valueDimension, call.storage)
        queryGradients = zeros(backward.heads * problem.queryCount, headDimension)
        keyGradients = zeros(problem.keyLength, headDimension)
        valueGradients = zeros(problem.keyLength, valueDimension)
        var arguments = qattn_backward_args()
        func strides(_ rows: StoredRows) -> qattn_strides {
            qattn_strides(head: rows.stride * problem.queryCount, query: rows.stride, key: 0)
        }
        (arguments.queries, arguments.query_strides) = (UnsafeRawPointer(queries.start), strides(queries))
        (arguments.keys, arguments.key_stride) = (UnsafeRawPointer(keys.start), keys.stride)
        (arguments.values, arguments.value_stride) = (UnsafeRawPointer(values.start), values.stride)
        (arguments.out, arguments.out_strides) = (UnsafeRawPointer(out.start), strides(out))
        arguments.out_gradients = UnsafeRawPointer(outGradients.start)
        arguments.out_gradient_strides = strides(outGradients)
        let storage = call.storage.kernelStorage
        (arguments.query_storage, arguments.key_storage, arguments.value_storage) = (storage, storage, storage)
        (arguments.out_gradient_storage, arguments.out_storage) = (storage, call.outStorage.kernelStorage)
        (arguments.head_dim, arguments.value_dim) = (headDimension, valueDimension)
        arguments.in_pairs = problem.products == .bfloat16
        arguments.query_gradients = queryGradients.start.assumingMemoryBound(to: Float.self)
        arguments.query_gradient_strides = strides(queryGradients)
        arguments.key_gradients = keyGradients.start.assumingMemoryBound(to: Float.self)
        arguments.key_gradient_stride = keyGradients.stride
        arguments.value_gradients = valueGradients.start.assumingMemoryBound(to: Float.self)
        arguments.value_gradient_stride = valueGradients.stride
        self.arguments = arguments
    }

    /// Keys behind the head's length have gradients of 0.
    func gradients(_ problem: HeadProblem, heads: Int) -> ReferenceGradients<Float> {
        var result = ReferenceGradients<Float>(zerosFor: problem.referenceProblem(heads: heads))
        let padding = problem.keyCount - problem.keyLength
        result.queries = queryGradients.values
        result.keys = keyGradients.values + [Float](repeating: 0, count: padding * problem.headDimension)
        result.values = valueGradients.values + [Float](repeating: 0, count: padding * problem.valueDimension)
        return result
    }

    var areIntact: Bool {
        [queries, keys, values, out, outGradients, queryGradients, keyGradients, valueGradients]
            .allSatisfy(\.isIntactOutsideRows)
    }
}
