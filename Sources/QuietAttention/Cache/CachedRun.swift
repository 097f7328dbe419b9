// SPDX-License-Identifier: Apache-2.0
// CachedRun.swift - one call of attention over caches: its tensors and memory, and the kernel calls for each item.

import CKernels
import Synchronization

/// The tensors of one call.
struct CachedTensors {
    let queries: UnsafeRawPointer
    let inputStorage: AttentionStorage
    /// nil where states are what is asked for.
    var output: UnsafeMutableRawPointer?
    var outputStorage = AttentionStorage.float32
    var logSumExp, sinkShare: UnsafeMutablePointer<Float>?
}

/// One call. Its items write to places of their own, so workers share it without locks.
struct CachedRun: @unchecked Sendable {
    let problem: CachedProblem
    let schedule: CachedSchedule
    let kernels: UnsafePointer<qattn_kernels>
    let tensors: CachedTensors
    /// One logit per query head.
    let sinks: UnsafePointer<Float>?
    let masks: MaskPointers
    let memory: UnsafeMutableRawPointer

    // MARK: - Workers

    /// All of the work. Each worker has a run of adjacent items, and helps the others when it is done with them: one that
    /// wakes late, or not at all, keeps nobody waiting.
    func run() {
        for worker in 0..<schedule.workers {
            nextItem(worker).initialize(to: Atomic(schedule.items(ofWorker: worker).lowerBound))
        }
        for sequence in schedule.sequences where sequence.items > 1 {
            for unit in 0..<schedule.keyValueHeads * sequence.headUnits {
                unfinishedItems(sequence.firstUnit + unit).initialize(to: Atomic(sequence.items))
            }
        }
        WorkerPool.shared.run(workers: schedule.workers, woken: schedule.wokenWorkers, work)
    }

    private func work(_ worker: Int) {
        for owner in worker..<worker + schedule.workers {
            let owner = owner % schedule.workers
            let items = schedule.items(ofWorker: owner)
            while true {
                let item = nextItem(owner).pointee.wrappingAdd(1, ordering: .relaxed).oldValue
                guard item < items.upperBound else { break }
                compute(schedule.item(item), worker: worker)
            }
        }
    }

    private func nextItem(_ worker: Int) -> UnsafeMutablePointer<Atomic<Int>> {
        (memory + schedule.memory.nextItems + worker * CachedSchedule.Memory.counterStride)
            .assumingMemoryBound(to: Atomic<Int>.self)
    }

    private func unfinishedItems(_ unit: Int) -> UnsafeMutablePointer<Atomic<Int>> {
        (memory + schedule.memory.unfinishedItems).assumingMemoryBound(to: Atomic<Int>.self) + unit
    }

    // MARK: - Items

    private func compute(_ item: CachedSchedule.Item, worker: Int) {
        let sequence = schedule.sequences[item.sequence]
        var arguments = arguments(item)
        addKeys(to: &arguments, item, worker: worker)
        prepareQueries(of: &arguments, item)
        guard sequence.items > 1 || schedule.keepsStates else {
            kernels.pointee.forward(&arguments)
            return
        }
        let states = states(item)
        arguments.states =
            states + (item.chunks.lowerBound - sequence.chunks.lowerBound) * item.rows.count * stateFloats
        arguments.chunk_end = item.chunks.count
        kernels.pointee.forward(&arguments)
        if schedule.keepsStates { return }
        let left = unfinishedItems(item.unit).pointee.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue
        guard left == 0 else { return }
        arguments.states = states
        arguments.chunk_end = sequence.chunks.count
        kernels.pointee.finish(&arguments)
    }

    var stateFloats: Int { qattn_state_floats(problem.shape.valueDimension) }

    /// `[chunks of the sequence][rows of the item's unit]`.
    func states(_ item: CachedSchedule.Item) -> UnsafeMutablePointer<Float> {
        let sequence = schedule.sequences[item.sequence]
        let unitFloats = sequence.chunks.count * sequence.unitRows * stateFloats
        return (memory + schedule.memory.states).assumingMemoryBound(to: Float.self) + sequence.firstState
            + item.unitOfSequence * unitFloats
    }

    /// Everything but the keys.
    private func arguments(_ item: CachedSchedule.Item) -> qattn_forward_args {
        let sequence = schedule.sequences[item.sequence]
        let start = sequence.plan.queryStart
        let head = item.keyValueHead * schedule.groupHeads
        let rows = problem.rows
        var arguments = qattn_forward_args()
        arguments.queries_base =
            tensors.queries + rows.queries.offset(start: start, head: head) * tensors.inputStorage.byteCount
        arguments.query_strides = qattn_strides(head: rows.queries.head, query: rows.queries.row, key: 0)
        arguments.query_storage = tensors.inputStorage.kernelStorage
        arguments.problem.heads = schedule.groupHeads
        arguments.problem.queries = sequence.plan.queries
        arguments.row_begin = item.rows.lowerBound
        arguments.row_end = item.rows.upperBound
        arguments.problem.sinks = sinks.map { $0 + head }
        arguments.out = tensors.output.map {
            $0 + rows.output.offset(start: start, head: head) * tensors.outputStorage.byteCount
        }
        arguments.out_strides = qattn_strides(head: rows.output.head, query: rows.output.row, key: 0)
        arguments.out_storage = tensors.outputStorage.kernelStorage
        let sums = rows.sums.offset(start: start, head: head)
        arguments.lse = tensors.logSumExp.map { $0 + sums }
        arguments.sink_share = tensors.sinkShare.map { $0 + sums }
        arguments.sum_head_stride = rows.sums.head
        arguments.beyond_caches = schedule.isBeyondCaches
        arguments.in_quarters = schedule.readsInQuarters
        return arguments
    }

    /// The item's keys, counted from its first chunk, and what rows see of them.
    private func addKeys(to arguments: inout qattn_forward_args, _ item: CachedSchedule.Item, worker: Int) {
        let sequence = schedule.sequences[item.sequence]
        let plan = sequence.plan
        let origin = item.chunks.lowerBound * SequencePlan.chunk
        let keys = max(0, min(plan.keyEnd, item.chunks.upperBound * SequencePlan.chunk) - origin)
        let table = (memory + schedule.memory.tables + worker * schedule.memory.tableBytes)
            .assumingMemoryBound(to: UnsafeMutableRawPointer?.self)
        let cache = problem.caches[plan.item]
        for block in 0..<SequencePlan.blocks(of: keys) {
            table[block] = cache.block(page: origin / SequencePlan.block + block, head: item.keyValueHead)
        }
        arguments.blocks = qattn_blocks(
            base: nil, table: table, storage: sequence.storage, head_dim: problem.shape.headDimension,
            value_dim: problem.shape.valueDimension)
        plan.add(to: &arguments.problem, keys: origin..<origin + keys)
        problem.scores.add(
            to: &arguments.problem, plan, head: item.keyValueHead * schedule.groupHeads, keyOrigin: origin)
        arguments.workspace = (memory + worker * schedule.memory.workspaceBytes).assumingMemoryBound(to: Float.self)
        masks.add(to: &arguments.problem, item: plan.item, head: item.keyValueHead * schedule.groupHeads, key: origin)
    }
}
