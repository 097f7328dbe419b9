// SPDX-License-Identifier: Apache-2.0
// ForwardWorkers.swift - one forward call on several threads.

import Synchronization

/// What workers know of each other. Tickets number the parts of the work in the order in which they could run on one
/// thread; every worker claims the next one until none is left.
///
/// When groups are shared, a part may have to wait: a compute item until its group is packed, a pack item until the group
/// that had its slot before is computed.
///
/// *No deadlock.* A part waits only for parts with smaller tickets. Tickets are claimed in ascending order by workers that
/// are running, and a worker runs what it claimed before it claims again. So of all claimed and unfinished parts, the one
/// with the smallest ticket waits for nothing, and finishes; by induction all do. It needs no second thread: a worker
/// that runs alone finds everything it could wait for finished by itself.
struct WorkerCounters: Sendable {
    private let counters: SharedCounters

    init(at base: UnsafeMutableRawPointer, slots: Int) {
        counters = SharedCounters(at: base, count: ForwardSchedule.Memory.counterCount(slots: slots))
        for slot in 0..<slots { self.slot(slot).owner.pointee.store(slot, ordering: .relaxed) }
    }

    func nextTicket() -> Int { counters.next() }

    func slot(_ slot: Int) -> SlotCounters {
        SlotCounters(
            owner: counters[1 + 4 * slot], packedItems: counters[2 + 4 * slot], packedGroup: counters[3 + 4 * slot],
            computedItems: counters[4 + 4 * slot])
    }
}

/// The state of one slot of packed keys and values. Group numbers count over the whole batch.
struct SlotCounters {
    /// The group that may use the slot.
    let owner: UnsafeMutablePointer<Atomic<Int>>
    /// Finished pack items of the owner.
    let packedItems: UnsafeMutablePointer<Atomic<Int>>
    /// One more than the last group that was packed here.
    let packedGroup: UnsafeMutablePointer<Atomic<Int>>
    /// Finished compute items of the owner.
    let computedItems: UnsafeMutablePointer<Atomic<Int>>

    /// Waits until the group may write to the slot.
    func waitToPack(group: Int) { owner.pointee.wait { $0 == group } }

    /// Waits until the group is packed; one without keys needs only the slot's counters.
    func waitToCompute(group: Int, packItems: Int) {
        if packItems == 0 { owner.pointee.wait { $0 == group } } else { packedGroup.pointee.wait { $0 == group + 1 } }
    }

    func finishedPackItem(of packItems: Int, group: Int) {
        guard packedItems.pointee.wrappingAdd(1, ordering: .acquiringAndReleasing).newValue == packItems else { return }
        packedItems.pointee.store(0, ordering: .relaxed)
        packedGroup.pointee.store(group + 1, ordering: .releasing)
    }

    func finishedComputeItem(of computeItems: Int, next group: Int) {
        guard computedItems.pointee.wrappingAdd(1, ordering: .acquiringAndReleasing).newValue == computeItems else {
            return
        }
        computedItems.pointee.store(0, ordering: .relaxed)
        owner.pointee.store(group, ordering: .releasing)
    }
}

extension ForwardRun {
    /// All of the work on several threads, or on fewer if the others have no time.
    func runWorkers(alone: @escaping () -> Void) {
        let counters = WorkerCounters(at: memory + schedule.memory.counters, slots: schedule.slots)
        WorkerPool.shared.run(workers: schedule.workers, woken: schedule.wokenWorkers, alone: alone) { worker in
            while true {
                let ticket = counters.nextTicket()
                guard ticket < schedule.tickets else { return }
                if schedule.takesWholeGroups {
                    let first = ticket * schedule.groupsPerTicket
                    runGroups(
                        first..<min(first + schedule.groupsPerTicket, schedule.groups), slot: worker, worker: worker)
                } else {
                    runItem(ticket, counters: counters, worker: worker)
                }
            }
        }
    }

    private func runItem(_ ticket: Int, counters: WorkerCounters, worker: Int) {
        let (group, item) = schedule.item(ticket)
        let slot = group.number % schedule.slots
        let state = counters.slot(slot)
        let packItems = ForwardSchedule.packItems(of: group.sequence)
        guard item >= packItems else {
            state.waitToPack(group: group.number)
            let blocks = group.sequence.blocks
            let begin = blocks.lowerBound + item * ForwardSchedule.packItemBlocks
            pack(
                group, blocks: begin..<min(begin + ForwardSchedule.packItemBlocks, blocks.upperBound), slot: slot,
                worker: worker)
            state.finishedPackItem(of: packItems, group: group.number)
            return
        }
        state.waitToCompute(group: group.number, packItems: packItems)
        let computeItem = item - packItems
        compute(
            queryRows(of: group, item: computeItem)!,
            then: queryRows(of: group, item: computeItem + schedule.workers), nextGroup: nil, slot: slot, worker: worker
        )
        state.finishedComputeItem(
            of: ForwardSchedule.computeItems(of: group.sequence, rows: schedule.itemRows, heads: schedule.groupHeads),
            next: group.number + schedule.slots)
    }

    /// The rows of a compute item; nil past the group's last one. The last rows see most keys under a causal mask: longest
    /// first, so that all workers end together.
    private func queryRows(of group: Group, item: Int) -> QueryRows? {
        let (blockFromLast, head) = item.quotientAndRemainder(dividingBy: schedule.groupHeads)
        let queries = group.sequence.queries
        let begin = ((queries - 1) / schedule.itemRows - blockFromLast) * schedule.itemRows
        guard begin >= 0 else { return nil }
        return QueryRows(group: group, head: head, rows: begin..<min(begin + schedule.itemRows, queries))
    }
}
