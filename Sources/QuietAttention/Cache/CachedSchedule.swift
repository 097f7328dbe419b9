// SPDX-License-Identifier: Apache-2.0
// CachedSchedule.swift - how attention over caches is cut into items, and the memory that takes.

import CKernels

/// How one call is cut up. A *unit* is the rows of one kernel call, of one key/value head of one sequence. Its chunks of keys
/// are one item, which writes the results; or several, which leave the states of their chunks for whoever ends last to merge.
struct CachedSchedule {
    struct Sequence {
        let plan: SequencePlan
        let storage: qattn_storage
        /// The chunks computed, counted from the first token.
        let chunks: Range<Int>
        /// Rows of a unit, the last one of a head may have fewer; units of a head.
        let unitRows, headUnits: Int
        /// Items of a unit.
        var items = 1
        /// Of all sequences before this one.
        var firstItem = 0, firstUnit = 0, firstState = 0
    }

    /// The place of an item.
    struct Item {
        let sequence, keyValueHead: Int
        /// Among the units of all sequences, and among those of its own.
        let unit, unitOfSequence: Int
        /// Of the group's rows.
        let rows: Range<Int>
        let chunks: Range<Int>
    }

    let sequences: [Sequence]
    let keyValueHeads, groupHeads: Int
    /// Whether states are what is asked for.
    let keepsStates: Bool
    let items: Int
    /// Threads worth using, and those worth waking.
    let workers, wokenWorkers: Int
    /// Whether keys and values are taken to come from memory, not from a cache of the CPU.
    let isBeyondCaches: Bool
    /// How that memory is asked for.
    let readsInQuarters: Bool
    let memory: Memory

    /// Bytes per nanosecond that one thread reads, roughly.
    static let bytesPerNanosecond = 20.0
    /// Items for each worker: with so many the last one to end keeps the others waiting for an eighth of its work.
    static let itemsPerWorker = 8

    /// - Parameter chunks: the chunks whose states are asked for; nil: results over all of them.
    init(_ problem: CachedProblem, _ attention: CachedAttention, chunks: Range<Int>?) throws(AttentionError) {
        keyValueHeads = problem.shape.keyValueHeads
        groupHeads = problem.groupHeads
        keepsStates = chunks != nil
        var sequences: [Sequence] = []
        var (totalChunks, nanoseconds, bytes) = (0, 0.0, 0.0)
        for plan in problem.sequences {
            let sequence = Sequence(plan, problem, attention.kernels, chunks: chunks)
            totalChunks += sequence.chunks.count * keyValueHeads * sequence.headUnits
            nanoseconds += sequence.nanoseconds(problem)
            bytes += sequence.bytes(problem)
            sequences.append(sequence)
        }
        let worthwhile = WorkerCount(
            nanoseconds: nanoseconds, nanosecondsPerWorker: attention.nanosecondsPerWorker, threads: attention.threads)
        let most = worthwhile.most
        let isWhole = if case .clippedSoftmax = attention.normaliser { true } else { false }
        let chunksPerItem = most == 1 || isWhole ? Int.max : max(1, totalChunks / (Self.itemsPerWorker * most))
        let stateFloats = qattn_state_floats(problem.shape.valueDimension)

        var (items, units, states, tableLength) = (0, 0, 0, 0)
        for index in sequences.indices {
            let count = sequences[index].chunks.count
            let pieces = max(1, count / chunksPerItem + (count % chunksPerItem == 0 ? 0 : 1))
            (sequences[index].items, sequences[index].firstItem) = (pieces, items)
            (sequences[index].firstUnit, sequences[index].firstState) = (units, states)
            let sequenceUnits = keyValueHeads * sequences[index].headUnits
            items += sequenceUnits * pieces
            units += sequenceUnits
            if pieces > 1 || keepsStates { states += sequenceUnits * count * sequences[index].unitRows * stateFloats }
            tableLength = max(tableLength, (count + pieces - 1) / pieces * SequencePlan.blocks(of: SequencePlan.chunk))
        }
        self.sequences = sequences
        self.items = items
        workers = max(1, min(most, items))
        wokenWorkers = worthwhile.woken
        let reading = attention.kernels.reading
        isBeyondCaches = bytes <= Double(reading.cached_above) || bytes > Double(reading.cached_most)
        readsInQuarters = reading.in_quarters
        memory = Memory(
            workers: workers,
            workspaceBytes: ForwardSchedule.Memory.forwardBytes(problem.shape)
                + problem.preparedBytes(rows: attention.kernels.queryBlock),
            tableLength: tableLength, units: units, stateFloats: states)
    }

    func item(_ number: Int) -> Item {
        let index = sequenceIndex(ofItem: number)
        let sequence = sequences[index]
        let (unit, piece) = (number - sequence.firstItem).quotientAndRemainder(dividingBy: sequence.items)
        let (head, block) = unit.quotientAndRemainder(dividingBy: sequence.headUnits)
        let firstRow = block * sequence.unitRows
        let (first, count) = (sequence.chunks.lowerBound, sequence.chunks.count)
        return Item(
            sequence: index, keyValueHead: head, unit: sequence.firstUnit + unit, unitOfSequence: unit,
            rows: firstRow..<min(firstRow + sequence.unitRows, groupHeads * sequence.plan.queries),
            chunks: first + count * piece / sequence.items..<first + count * (piece + 1) / sequence.items)
    }

    /// The items that a worker starts with.
    func items(ofWorker worker: Int) -> Range<Int> {
        items * worker / workers..<items * (worker + 1) / workers
    }

    /// The last sequence whose first item is not above this one.
    private func sequenceIndex(ofItem item: Int) -> Int {
        var low = 0
        var high = sequences.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if sequences[middle].firstItem <= item { low = middle } else { high = middle }
        }
        return low
    }

    /// Where the parts of a call's buffer are, in bytes: workspaces and page tables, one per worker, what workers know of
    /// each other, and states.
    struct Memory {
        let workspaceBytes, tableBytes: Int
        let tables, nextItems, unfinishedItems, states, byteCount: Int

        /// Apart far enough for CPUs that fetch cache lines in pairs.
        static let counterStride = SharedCounters.stride

        init(workers: Int, workspaceBytes: Int, tableLength: Int, units: Int, stateFloats: Int) {
            self.workspaceBytes = AlignedMemory.aligned(workspaceBytes)
            tableBytes = AlignedMemory.aligned(tableLength * MemoryLayout<UnsafeRawPointer>.stride)
            tables = workers * self.workspaceBytes
            nextItems = tables + workers * tableBytes
            unfinishedItems = nextItems + workers * Self.counterStride
            states = unfinishedItems + AlignedMemory.aligned(units * MemoryLayout<Int>.stride)
            byteCount = states + stateFloats * MemoryLayout<Float>.stride
        }
    }
}

extension CachedSchedule.Sequence {
    init(_ plan: SequencePlan, _ problem: CachedProblem, _ kernels: KernelSet, chunks: Range<Int>?) {
        self.plan = plan
        storage = problem.caches[plan.item].packedStorage
        self.chunks = chunks ?? plan.chunks
        let rows = problem.groupHeads * plan.queries
        // Units of equal length, in whole tiles.
        let (most, tile) = (kernels.callRows(storage), kernels.tileRows(storage))
        headUnits = (rows + most - 1) / most
        unitRows = min(rows, most, ((rows + headUnits - 1) / headUnits + tile - 1) / tile * tile)
    }

    /// Bytes of keys and values that are read once.
    func bytes(_ problem: CachedProblem) -> Double {
        let blocks = min(plan.blocks.count, chunks.count * SequencePlan.blocks(of: SequencePlan.chunk))
        return Double(blocks) * Double(problem.caches[plan.item].pageBytes)
    }

    /// An estimate of how long this takes on one thread: that of reading keys and values or that of multiplying them,
    /// whichever is longer.
    func nanoseconds(_ problem: CachedProblem) -> Double {
        let dimensions = Double(problem.shape.headDimension + problem.shape.valueDimension)
        let products = plan.visiblePairs * Double(problem.shape.queryHeads) * dimensions
        let tokens = Double(plan.blocks.count * SequencePlan.block)
        let bytes = tokens * Double(problem.caches[plan.item].bytesPerToken * headUnits)
        return max(bytes / CachedSchedule.bytesPerNanosecond, products / ForwardSchedule.multiplyAddsPerNanosecond)
    }
}
