// SPDX-License-Identifier: Apache-2.0
// GradientRun.swift - the gradients of some rows against some keys: the kernel calls for each key/value head.

import CKernels

/// Key/value heads are the items: nothing else is independent of each other and of the order of sums.
struct GradientSchedule {
    let workers, wokenWorkers: Int
    let workerBytes: Int
    var byteCount: Int { workers * workerBytes + SharedCounters.stride }

    init(_ attention: PartwiseAttention) {
        let shape = attention.shape
        let products = Double(shape.keyValueHeads * shape.queries) * Double(SequencePlan.chunk) * 2.5
        let worthwhile = WorkerCount(
            nanoseconds: products * Double(shape.headDimension + shape.valueDimension)
                / ForwardSchedule.multiplyAddsPerNanosecond,
            nanosecondsPerWorker: attention.nanosecondsPerWorker,
            threads: min(attention.threads, max(shape.keyValueHeads, 1)))
        (workers, wokenWorkers) = (worthwhile.most, worthwhile.woken)
        workerBytes = AlignedMemory.aligned(qattn_backward_workspace(shape.headDimension, shape.valueDimension))
    }
}

struct GradientRun<Input: AttentionScalar, Value: AttentionScalar, OutputGradient: AttentionScalar>: @unchecked Sendable
{
    let attention: PartwiseAttention
    let schedule: GradientSchedule
    let memory: UnsafeMutableRawPointer
    let rows: PartwiseAttention.GradientRows<Input, OutputGradient>
    let keys: PartwiseAttention.GradientKeys<Input, Value>

    func run(groupHead: Int, _ meanwhile: () -> Void) {
        let heads = attention.shape.keyValueHeads
        WorkerPool.shared.share(
            heads, SharedCounters(at: memory + schedule.workers * schedule.workerBytes, count: 1),
            workers: schedule.workers, woken: schedule.wokenWorkers, meanwhile: meanwhile
        ) { head, worker in
            var arguments = arguments(head: head, groupHead: groupHead)
            arguments.workspace = (memory + worker * schedule.workerBytes).assumingMemoryBound(to: Float.self)
            let kernels = attention.kernels.functions.pointee
            kernels.backward(&arguments)
            guard let lanes = rows.slopeLanes?.baseAddress else { return }
            kernels.slope_lanes(&arguments, lanes + head * attention.shape.queries * Int(QATTN_LANES))
        }
    }

    private func arguments(head: Int, groupHead: Int) -> qattn_backward_args {
        let shape = attention.shape
        let (row, key) = (head * shape.queries, head * keys.range.count)
        let (d, e) = (shape.headDimension, shape.valueDimension)
        var arguments = qattn_backward_args()
        arguments.problem = attention.problem(
            queryHead: head * attention.groupHeads + groupHead, heads: 1, keys: keys.range, mask: nil, bias: nil)
        arguments.row_end = shape.queries
        arguments.key_end = arguments.problem.seq_kv
        arguments.queries = UnsafeRawPointer(rows.queries.baseAddress! + row * d)
        arguments.query_strides = qattn_strides(head: 0, query: d, key: 0)
        arguments.keys = UnsafeRawPointer(keys.keys.baseAddress! + key * d)
        arguments.values = UnsafeRawPointer(keys.values.baseAddress! + key * e)
        (arguments.key_stride, arguments.value_stride) = (d, e)
        let storage = Input.storage.kernelStorage
        (arguments.query_storage, arguments.key_storage) = (storage, storage)
        arguments.value_storage = Value.storage.kernelStorage
        arguments.out_gradients = UnsafeRawPointer(rows.outputGradient.baseAddress! + row * e)
        arguments.out_gradient_strides = qattn_strides(head: 0, query: e, key: 0)
        arguments.out_gradient_storage = OutputGradient.storage.kernelStorage
        (arguments.head_dim, arguments.value_dim) = (d, e)
        arguments.references = rows.references.baseAddress! + row
        arguments.factors = rows.factors.baseAddress! + row
        // Only read.
        arguments.deltas = UnsafeMutablePointer(mutating: rows.deltas.baseAddress! + row)
        arguments.query_gradients = rows.queryGradient.baseAddress! + row * d
        arguments.query_gradient_strides = arguments.query_strides
        arguments.key_gradients = keys.keyGradient.baseAddress! + key * d
        arguments.value_gradients = keys.valueGradient.baseAddress! + key * e
        (arguments.key_gradient_stride, arguments.value_gradient_stride) = (d, e)
        return arguments
    }
}
