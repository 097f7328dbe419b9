// SPDX-License-Identifier: Apache-2.0
// ForwardSchedule.swift - how a forward pass is cut into items, and the memory that takes.

import CKernels

/// How the work of a forward pass is cut up. Made once per ``Attention``.
///
/// The keys and values of one (sequence, key/value head), a *group*, are packed once and read by all its query heads.
/// Packed groups live in a few slots that are reused, so that memory does not grow with batch or heads. Groups of few rows
/// are not packed first: their rows are computed by one call, which packs a block of keys as it comes to it.
final class ForwardSchedule: Sendable {
    /// One per sequence with queries, or a single one that stands for all.
    let sequences: [SequencePlan]
    let isUniform: Bool
    /// Keys from one sequence to the next, if uniform.
    let keysPerSequence: Int
    /// Groups of all sequences.
    let groups: Int
    let keyValueHeads: Int
    /// Query heads per group.
    let groupHeads: Int
    /// Query rows of one compute item, and the most of one kernel call.
    let itemRows, queryBlock: Int
    /// Threads worth using, and those worth waking.
    let workers, wokenWorkers: Int
    /// With several workers: whether each takes whole groups, packed for itself, or items of groups shared with others.
    let takesWholeGroups: Bool
    /// Whether the rows of a group are so few that one call computes them, and packs blocks of keys as it goes.
    let packsAsItGoes: Bool
    /// Whether keys and values, as Float, come from memory rather than from a cache; and how rows that are not packed ask for them.
    let isBeyondCaches, readsInQuarters: Bool
    /// Packed groups in memory; with `packsAsItGoes` packed blocks.
    let slots: Int
    /// First ticket of each sequence; empty if uniform.
    let firstTickets: [Int]
    /// What workers claim one by one: items, or runs of groups.
    let tickets: Int
    /// Groups of one ticket, if they are taken whole.
    let groupsPerTicket: Int
    let memory: Memory

    /// Blocks of keys that one item packs: some 10 microseconds' work.
    static let packItemBlocks = 4
    /// Multiply-adds per nanosecond and thread, roughly, on a CPU with 256-bit vectors.
    static let multiplyAddsPerNanosecond = 40.0
    /// Packing a key or value element takes as long as so many multiply-adds, memory included.
    static let multiplyAddsPerPackedElement = 10.0
    /// Most rows of a group for which it is not packed first; by products of bfloat16 few on every CPU.
    static func rowsUnpacked(_ products: AttentionProducts, _ reading: qattn_reading) -> Int {
        products == .float32 ? reading.unpacked_rows : 16
    }
    /// Above this, keys and values are taken to be in memory when a call begins, not in a last cache of 32 MB, where they are
    /// not read in quarters. A threshold of 8 MB costs rows that are in cache 25 %, one of 32 MB rows that are in memory 33 %.
    static let cachedBytes = 16.0 * 1024 * 1024
    /// Groups of less work than this are taken whole: handing out their items would cost too much.
    static let nanosecondsPerSharedGroup = 40_000.0

    init(
        _ shape: AttentionShape, mask: AttentionMask, preparesRows: Bool = false, diagnoses: Bool = false,
        products: AttentionProducts = .float32, kernels: KernelSet, threads: Int,
        nanosecondsPerWorker: Double = WorkerCount.nanosecondsPerWorker,
        nanosecondsPerSharedGroup: Double = ForwardSchedule.nanosecondsPerSharedGroup
    ) throws(AttentionError) {
        keysPerSequence = shape.keys
        keyValueHeads = shape.keyValueHeads
        groupHeads = shape.queryHeads / max(shape.keyValueHeads, 1)
        isUniform = !shape.isPacked && mask.lengths == nil
        sequences = shape.rowCount == 0 ? [] : Self.sequences(shape, mask, isUniform: isUniform)
        groups = shape.rowCount == 0 ? 0 : (isUniform ? shape.batch : sequences.count) * keyValueHeads

        let reading = kernels.reading
        readsInQuarters = reading.in_quarters
        let work = Work(shape, sequences, isUniform: isUniform)
        let worthwhile = WorkerCount(
            nanoseconds: work.nanoseconds, nanosecondsPerWorker: nanosecondsPerWorker, threads: threads)
        let most = worthwhile.most
        // Whole groups for many small ones. A large one among them would keep one worker busy after the others end.
        let nanosecondsPerGroup = work.nanoseconds / Double(max(groups, 1))
        let areEven = work.nanosecondsOfLargestGroup * Double(4 * most) <= work.nanoseconds
        let rows = groupHeads * sequences.reduce(0) { max($0, $1.queries) }
        // Whole groups, too: one each at least, since sharing would pack them first.
        packsAsItGoes =
            rows <= Self.rowsUnpacked(products, reading) && !preparesRows && !diagnoses
            && work.nanosecondsOfLargestGroup * Double(most) <= work.nanoseconds
        takesWholeGroups = packsAsItGoes || (areEven && nanosecondsPerGroup < nanosecondsPerSharedGroup)
        let groupsWorthATicket = min(nanosecondsPerSharedGroup / (nanosecondsPerGroup + 1), 1e9)
        groupsPerTicket = max(1, min(Int(groupsWorthATicket), groups / (8 * most)))
        queryBlock = kernels.callRows(products.packedStorage)
        itemRows = Self.itemRows(shape, kernels, products, workers: most)

        var first: [Int] = []
        var items = 0
        for sequence in sequences {
            if !isUniform { first.append(items) }
            items += keyValueHeads * Self.items(of: sequence, rows: itemRows, heads: groupHeads)
        }
        if isUniform { items *= shape.batch }
        firstTickets = takesWholeGroups ? [] : first
        tickets = takesWholeGroups ? (groups + groupsPerTicket - 1) / groupsPerTicket : items
        workers = max(1, min(most, tickets))
        wokenWorkers = worthwhile.woken
        isBeyondCaches = work.packedBytes > (readsInQuarters ? Double(reading.cached_most) : Self.cachedBytes)
        let keys = min(sequences.reduce(0) { max($0, $1.keys) }, packsAsItGoes ? SequencePlan.block : .max)
        slots = Self.slots(
            workers: workers, whole: takesWholeGroups, groups: groups, items: items,
            slotBytes: Memory.packedBytes(shape, products, keys: keys))
        memory = try Memory(
            shape, products, keys: keys, slots: slots, workers: workers, preparedRows: preparesRows ? queryBlock : 0)
    }

    /// Estimates of how long the work takes on one thread.
    private struct Work {
        private(set) var nanoseconds = 0.0
        private(set) var nanosecondsOfLargestGroup = 0.0
        private(set) var packedBytes = 0.0

        init(_ shape: AttentionShape, _ sequences: [SequencePlan], isUniform: Bool) {
            let dimensions = Double(shape.headDimension + shape.valueDimension)
            let groupHeads = Double(shape.queryHeads) / Double(max(shape.keyValueHeads, 1))
            let copies = Double(shape.keyValueHeads) * (isUniform ? Double(shape.batch) : 1)
            for sequence in sequences {
                let packedKeys = Double(sequence.blocks.count * SequencePlan.block)
                let perDimension = sequence.visiblePairs * groupHeads + packedKeys * multiplyAddsPerPackedElement
                let group = perDimension * dimensions / multiplyAddsPerNanosecond
                nanoseconds += group * copies
                packedBytes += packedKeys * dimensions * copies * Double(MemoryLayout<Float>.size)
                nanosecondsOfLargestGroup = max(nanosecondsOfLargestGroup, group)
            }
        }
    }

    private static func sequences(_ shape: AttentionShape, _ mask: AttentionMask, isUniform: Bool) -> [SequencePlan] {
        (0..<(isUniform ? 1 : shape.batch)).compactMap { item in
            let queryStart = shape.queryOffsets?[item] ?? item * shape.queries
            let keyStart = shape.keyOffsets?[item] ?? item * shape.keys
            let queries = shape.queryOffsets.map { $0[item + 1] - queryStart } ?? shape.queries
            let keys = shape.keyOffsets.map { $0[item + 1] - keyStart } ?? shape.keys
            guard queries > 0 else { return nil }
            return SequencePlan(
                item: item, queryStart: queryStart, keyStart: keyStart, queries: queries, keys: keys, mask: mask)
        }
    }

    /// Items of fewer rows are not cut in two: each reads all keys.
    private static let leastRowsToCut = 48

    /// As many rows as stay in cache, in whole tiles, fewer where several workers would otherwise run out of items.
    private static func itemRows(
        _ shape: AttentionShape, _ kernels: KernelSet, _ products: AttentionProducts, workers: Int
    ) -> Int {
        let tile = kernels.tileRows(products.packedStorage)
        var rows = kernels.callRows(products.packedStorage)
        while workers > 1, rows >= leastRowsToCut, shape.rowCount / rows < 4 * workers {
            rows = rows / (2 * tile) * tile
        }
        return rows
    }

    /// Slots so that workers who finished a group need not wait for the others before they pack the next ones: on a busy
    /// machine a worker may lose its CPU for the time of several small groups.
    private static func slots(workers: Int, whole: Bool, groups: Int, items: Int, slotBytes: Int) -> Int {
        if workers == 1 { return 1 }
        if whole { return workers }
        let itemsPerGroup = max(1, items / max(groups, 1))
        let ahead = slotBytes <= 1 << 20 ? 4 : 2
        return max(1, min(groups, max(ahead, 1 + (2 * workers + itemsPerGroup - 1) / itemsPerGroup)))
    }

    // MARK: - Items

    static func packItems(of sequence: SequencePlan) -> Int {
        (sequence.blocks.count + packItemBlocks - 1) / packItemBlocks
    }

    static func computeItems(of sequence: SequencePlan, rows: Int, heads: Int) -> Int {
        (sequence.queries + rows - 1) / rows * heads
    }

    private static func items(of sequence: SequencePlan, rows: Int, heads: Int) -> Int {
        packItems(of: sequence) + computeItems(of: sequence, rows: rows, heads: heads)
    }

    /// The keys and values of one sequence and head.
    struct Group {
        /// Counted over all sequences.
        let number: Int
        let sequence: SequencePlan
        let keyValueHead: Int
    }

    func group(_ number: Int) -> Group {
        let (index, head) = number.quotientAndRemainder(dividingBy: keyValueHeads)
        guard isUniform else { return Group(number: number, sequence: sequences[index], keyValueHead: head) }
        var sequence = sequences[0]
        sequence.item = index
        sequence.queryStart = index * sequence.queries
        sequence.keyStart = index * keysPerSequence
        return Group(number: number, sequence: sequence, keyValueHead: head)
    }

    /// The item behind a ticket: of its group, the number among pack items first and compute items after them.
    func item(_ ticket: Int) -> (group: Group, item: Int) {
        let index = isUniform ? 0 : sequenceIndex(ofTicket: ticket)
        let perGroup = Self.items(of: sequences[index], rows: itemRows, heads: groupHeads)
        let (groupInRun, item) = (ticket - (isUniform ? 0 : firstTickets[index])).quotientAndRemainder(
            dividingBy: perGroup)
        return (group(index * keyValueHeads + groupInRun), item)
    }

    /// The last sequence whose first ticket is not above this one.
    private func sequenceIndex(ofTicket ticket: Int) -> Int {
        var low = 0
        var high = firstTickets.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if firstTickets[middle] <= ticket { low = middle } else { high = middle }
        }
        return low
    }

    // MARK: - Memory

    /// Where the parts of a call's buffer are, in bytes: slots of packed keys and values, one workspace per worker, and
    /// the counters that workers share.
    struct Memory: Sendable {
        let slotBytes, workspaceBytes: Int
        let workspaces, counters, byteCount: Int

        /// One for tickets, and per slot the four of ``SlotCounters``.
        static func counterCount(slots: Int) -> Int { 1 + 4 * slots }

        init(
            _ shape: AttentionShape, _ products: AttentionProducts, keys: Int, slots: Int, workers: Int,
            preparedRows: Int
        ) throws(AttentionError) {
            workspaceBytes =
                Self.forwardBytes(shape)
                + RowPreparation.byteCount(rows: preparedRows, dimension: shape.headDimension)
            slotBytes = Self.packedBytes(shape, products, keys: keys)
            // Sequences of 2^40 keys of 1024 elements take 2^53 bytes a slot: slots can exceed Int, nothing else can.
            let (slotsBytes, overflow) = slotBytes.multipliedReportingOverflow(by: slots)
            guard !overflow, slotsBytes < Int.max / 2 else {
                throw AttentionError(
                    .memory, "workspace", expected: "at most \(Int.max / 2) bytes",
                    found: "\(slots) times \(slotBytes)")
            }
            workspaces = slotsBytes
            counters = workspaces + workers * workspaceBytes
            byteCount = counters + (workers > 1 ? Self.counterCount(slots: slots) * SharedCounters.stride : 0)
        }

        /// Of the packed keys and values of one group.
        static func packedBytes(_ shape: AttentionShape, _ products: AttentionProducts, keys: Int) -> Int {
            SequencePlan.blocks(of: keys)
                * qattn_block_bytes(products.packedStorage, shape.headDimension, shape.valueDimension)
        }

        /// Of a kernel call's own workspace: prepared rows stand behind it.
        static func forwardBytes(_ shape: AttentionShape) -> Int {
            AlignedMemory.aligned(qattn_forward_workspace(shape.headDimension, shape.valueDimension))
        }
    }
}
