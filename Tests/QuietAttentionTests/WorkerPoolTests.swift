// SPDX-License-Identifier: Apache-2.0
// WorkerPoolTests.swift - helpers take part when they can, nobody waits for those that cannot, and idle ones sleep.

import Dispatch
import Synchronization
import Testing

@testable import QuietAttention

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Items that workers claim by tickets, as the library's calls do.
private final class Items: Sendable {
    private let next = Atomic(0)
    private let sum = Atomic(0)
    private let count: Int

    init(_ count: Int) { self.count = count }

    var isDone: Bool { sum.load(ordering: .relaxed) == count * (count - 1) / 2 }

    func work(_ body: (Int) -> Void = { _ in }) {
        while true {
            let item = next.wrappingAdd(1, ordering: .relaxed).oldValue
            guard item < count else { return }
            body(item)
            sum.wrappingAdd(item, ordering: .relaxed)
        }
    }
}

private final class Flag: Sendable {
    private let value = Atomic(false)

    var isSet: Bool { value.load(ordering: .relaxed) }

    func set() { value.store(true, ordering: .relaxed) }
}

@Suite struct WorkerPoolTests {
    /// Until a condition that other threads bring about; gives up after a minute.
    private func wait(for condition: () -> Bool) -> Bool {
        for _ in 0..<60_000 {
            if condition() { return true }
            usleep(1000)
        }
        return false
    }

    @Test func helpersTakePart() {
        let pool = WorkerPool(helpers: 3)
        let began = Atomic(0)
        // Each worker waits for all others: more than one call may be needed until all threads have started in time.
        let allCame = wait {
            began.store(0, ordering: .relaxed)
            pool.run(workers: 4, woken: 4) { worker in
                began.wrappingAdd(1 << (8 * worker), ordering: .relaxed)
                for _ in 0..<1000 where began.load(ordering: .relaxed) != 0x0101_0101 { usleep(10) }
            }
            return began.load(ordering: .relaxed) == 0x0101_0101
        }
        #expect(allCame)
    }

    /// What a helper does is over, and seen, when the call returns, however long it takes.
    @Test(arguments: [0, 20, 5000])
    func callsWaitForWorkThatHasBegun(_ microseconds: UInt32) {
        let pool = WorkerPool(helpers: 2)
        for _ in 0..<50 {
            let begun = Atomic(0)
            let ended = Atomic(0)
            pool.run(workers: 3, woken: 3) { worker in
                begun.wrappingAdd(1, ordering: .relaxed)
                if worker > 0 { usleep(microseconds) } else { usleep(100) }
                ended.wrappingAdd(1, ordering: .relaxed)
            }
            #expect(begun.load(ordering: .relaxed) == ended.load(ordering: .relaxed))
        }
    }

    /// The next caller of a helper may come to wait for it before the last one has woken: each waits for its own.
    @Test func callersThatWaitForTheSameHelper() {
        let pool = WorkerPool(helpers: 1)
        let early = Atomic(0)
        // More callers than CPUs, so that some wake late.
        let callers = (0..<16).map { DispatchQueue(label: "caller \($0)") }
        for caller in callers {
            caller.async {
                for _ in 0..<1000 {
                    let running = Atomic(0)
                    pool.run(workers: 2, woken: 2) { worker in
                        running.wrappingAdd(worker, ordering: .relaxed)
                        // The helper takes longer than its caller stays awake for it.
                        usleep(worker == 1 ? 200 : 50)
                        running.wrappingSubtract(worker, ordering: .relaxed)
                    }
                    early.wrappingAdd(running.load(ordering: .relaxed), ordering: .relaxed)
                }
            }
        }
        for caller in callers { caller.sync {} }
        #expect(early.load(ordering: .relaxed) == 0)
    }

    @Test func manyCallersShareAPool() async {
        let pool = WorkerPool(helpers: 2)
        await withTaskGroup(of: Bool.self) { tasks in
            for _ in 0..<8 {
                tasks.addTask {
                    for count in 0..<500 {
                        let items = Items(count)
                        pool.run(workers: 2 + count % 4, woken: count % 5) { _ in items.work() }
                        if !items.isDone { return false }
                    }
                    return true
                }
            }
            for await done in tasks { #expect(done) }
        }
    }

    @Test func callsWithinCalls() {
        let pool = WorkerPool(helpers: 2)
        for _ in 0..<100 {
            let outer = Items(6)
            pool.run(workers: 3, woken: 3) { _ in
                outer.work { _ in
                    let inner = Items(10)
                    pool.run(workers: 3, woken: 3) { _ in inner.work() }
                    #expect(inner.isDone)
                }
            }
            #expect(outer.isDone)
        }
    }

    /// A helper that is busy for long keeps nobody else waiting.
    @Test func busyHelpersAreNotWaitedFor() {
        let pool = WorkerPool(helpers: 1)
        let (isBusy, mayEnd) = (Flag(), Flag())
        // Of the system, not a task: other tests may have all threads of tasks.
        let other = DispatchQueue(label: "another caller")
        other.async {
            pool.run(workers: 2, woken: 2) { worker in
                // The caller waits for the helper to begin, and that for the end of the call below.
                if worker == 1 { isBusy.set() }
                _ = wait { (worker == 0 ? isBusy : mayEnd).isSet }
            }
        }
        #expect(wait { isBusy.isSet })
        let (items, ranAlone) = (Items(100), Flag())
        pool.run(workers: 2, woken: 2, alone: ranAlone.set, { _ in items.work() })
        #expect(ranAlone.isSet)
        pool.run(workers: 2, woken: 2) { _ in items.work() }
        #expect(items.isDone)
        mayEnd.set()
        other.sync {}
    }

    @Test func idleHelpersSleepAndWake() {
        let pool = WorkerPool(helpers: 2)
        // Nothing has started yet.
        #expect(pool.isAsleep)
        for _ in 0..<20 {
            let helped = Flag()
            #expect(
                wait {
                    pool.run(workers: 3, woken: 3) { worker in
                        if worker > 0 { helped.set() } else { usleep(1000) }
                    }
                    return helped.isSet
                })
            #expect(wait { pool.isAsleep })
            usleep(1000)
            // Short work wakes nobody.
            pool.run(workers: 3, woken: 1) { worker in #expect(worker == 0) }
            #expect(pool.isAsleep)
        }
    }

    @Test func noHelpers() {
        for pool in [WorkerPool(helpers: 0), .shared] {
            let items = Items(10)
            pool.run(workers: 1, woken: 1) { worker in
                #expect(worker == 0)
                items.work()
            }
            #expect(items.isDone)
        }
    }

    @Test func worthwhileWorkers() {
        func count(_ nanoseconds: Double, threads: Int = 8) -> [Int] {
            let count = WorkerCount(
                nanoseconds: nanoseconds, nanosecondsPerWorker: WorkerCount.nanosecondsPerWorker, threads: threads)
            return [count.most, count.woken]
        }
        #expect(count(0) == [1, 1])
        #expect(count(49_000) == [1, 1])
        #expect(count(51_000) == [2, 1])
        #expect(count(126_000) == [5, 2])
        #expect(count(1e6) == [8, 8])
        #expect(count(.infinity, threads: .max) == [1024, 1024])
    }
}
