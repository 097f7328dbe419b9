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
        workerBytes = AlignedMemory.aligned(
            qattn_backward_workspace(attention.kernels.functions, shape.headDimension, shape.valueDimension))
    }
}

struct GradientRun<Input: AttentionScalar, Value: AttentionScalar, OutputGradient: AttentionScalar>: @unchecked Sendable
{
    let attention: PartwiseAttention
    let schedule: GradientSchedule
    let memory: UnsafeMutableRawPointer
    let rows: PartwiseAttention.GradientRows<Input, OutputGradient>
    let keys: PartwiseAttention.GradientKeys<Input, Value>

    /// Keys of a kernel call: what it packs at a time, or twice that. So a call takes no longer than a few milliseconds, and nothing is
    /// packed twice.
    private var keysOfCall: Int {
        max(256, 65_536 / (attention.shape.headDimension + attention.shape.valueDimension) / 256 * 256)
    }

    func run(groupHead: Int, _ meanwhile: () -> Void) {
        for begin in stride(from: 0, to: keys.range.count, by: keysOfCall) {
            let end = min(begin + keysOfCall, keys.range.count)
            forEachHead(groupHead: groupHead, meanwhile) { kernels, arguments, _ in
                (arguments.key_begin, arguments.key_end) = (begin, min(end, arguments.key_end))
                kernels.backward(&arguments)
            }
        }
        guard rows.slopeLanes != nil else { return }
        forEachHead(groupHead: groupHead, meanwhile) { kernels, arguments, head in
            kernels.slope_lanes(
                &arguments, rows.slopeLanes!.baseAddress! + head * attention.shape.queries * Int(QATTN_LANES))
        }
    }

    private func forEachHead(
        groupHead: Int, _ meanwhile: () -> Void,
        _ call:
            @escaping @Sendable (_ kernels: qattn_kernels, _ arguments: inout qattn_backward_args, _ head: Int) -> Void
    ) {
        WorkerPool.shared.share(
            attention.shape.keyValueHeads,
            SharedCounters(at: memory + schedule.workers * schedule.workerBytes, count: 1),
            workers: schedule.workers, woken: schedule.wokenWorkers, meanwhile: meanwhile
        ) { head, worker in
            var arguments = arguments(head: head, groupHead: groupHead)
            arguments.workspace = (memory + worker * schedule.workerBytes).assumingMemoryBound(to: Float.self)
            call(attention.kernels.functions.pointee, &arguments, head)
        }
    }

    private func arguments(head: Int, groupHead: Int) -> qattn_backward_args {
        let shape = attention.shape
        let (row, key) = (head * shape.queries, head * keys.range.count)
        let (d, e) = (shape.headDimension, shape.valueDimension)
        var arguments = qattn_backward_args()
        arguments.problem = attention.problem(
            queryHead: head * attention.groupHeads + groupHead, heads: 1, keys: keys.range, .none)
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
        arguments.in_pairs = attention.products == .bfloat16
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
