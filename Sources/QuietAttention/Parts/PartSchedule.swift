// SPDX-License-Identifier: Apache-2.0
// PartSchedule.swift - how work on a part of the keys is cut into items, and the memory that takes.

import CKernels

/// How a call is cut into items, and its memory: a workspace, states and prepared rows for each worker, counters, and one
/// packed chunk for each key/value head.
struct PartSchedule {
    let workers, wokenWorkers: Int
    let workerBytes, chunkBytes: Int
    private let kernelBytes, stateBytes: Int
    private let chunks: Int
    let counters: Int
    let byteCount: Int
    /// Whether so few rows read a key that it is not packed before; and how such rows ask for keys.
    let packsAsItGoes, readsInQuarters: Bool

    init(_ attention: PartwiseAttention) {
        let shape = attention.shape
        let pairs = Double(shape.rowCount) * Double(SequencePlan.chunk)
        let worthwhile = WorkerCount(
            nanoseconds: pairs * Double(shape.headDimension + shape.valueDimension)
                / ForwardSchedule.multiplyAddsPerNanosecond,
            nanosecondsPerWorker: attention.nanosecondsPerWorker, threads: attention.threads)
        (workers, wokenWorkers) = (worthwhile.most, worthwhile.woken)
        let reading = attention.kernels.reading
        readsInQuarters = reading.in_quarters
        let mostRows = ForwardSchedule.rowsUnpacked(attention.products, reading)
        packsAsItGoes = attention.groupHeads * shape.queries <= mostRows && attention.preparation == nil
        kernelBytes = ForwardSchedule.Memory.forwardBytes(shape)
        stateBytes = AlignedMemory.aligned(
            attention.kernels.queryBlock * qattn_state_floats(shape.valueDimension) * MemoryLayout<Float>.stride)
        let block = qattn_block_bytes(
            attention.products.packedStorage, shape.headDimension, shape.valueDimension)
        let preparedBytes =
            attention.preparation == nil
            ? 0
            : AlignedMemory.aligned(
                RowPreparation.byteCount(rows: attention.kernels.queryBlock, dimension: shape.headDimension))
        workerBytes = kernelBytes + stateBytes + preparedBytes + (packsAsItGoes ? AlignedMemory.aligned(block) : 0)
        chunkBytes = packsAsItGoes ? 0 : SequencePlan.chunk / SequencePlan.block * block
        chunks = workers * workerBytes
        counters = chunks + AlignedMemory.aligned(shape.keyValueHeads * chunkBytes)
        byteCount = counters + SharedCounters.stride
    }

    func workspace(_ memory: UnsafeMutableRawPointer, _ worker: Int) -> UnsafeMutablePointer<Float> {
        (memory + worker * workerBytes).assumingMemoryBound(to: Float.self)
    }

    func states(_ memory: UnsafeMutableRawPointer, _ worker: Int) -> UnsafeMutablePointer<Float> {
        (memory + worker * workerBytes + kernelBytes).assumingMemoryBound(to: Float.self)
    }

    /// Prepared rows, or the block that is packed as it goes: never both.
    func rows(_ memory: UnsafeMutableRawPointer, _ worker: Int) -> UnsafeMutableRawPointer {
        memory + worker * workerBytes + kernelBytes + stateBytes
    }

    func chunk(_ memory: UnsafeMutableRawPointer, head: Int) -> UnsafeMutableRawPointer {
        memory + chunks + head * chunkBytes
    }
}

extension PartSchedule {
    func share(
        _ count: Int, _ memory: UnsafeMutableRawPointer, meanwhile: () -> Void = {},
        _ body: @escaping @Sendable (_ item: Int, _ worker: Int) -> Void
    ) {
        WorkerPool.shared.share(
            count, SharedCounters(at: memory + counters, count: 1), workers: workers, woken: wokenWorkers,
            meanwhile: meanwhile, body)
    }
}
