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

#if os(Linux)
    /// The C library's, which its headers hide from Swift behind _GNU_SOURCE.
    @_silgen_name("pthread_getattr_np") @discardableResult
    private func pthreadGetAttributes(_ thread: pthread_t, _ attributes: UnsafeMutablePointer<pthread_attr_t>) -> Int32
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

    /// The system gives no thread: calls do not wait for one, and do not ask with each of them.
    @Test func threadsThatDoNotStart() {
        let asked = Atomic(0)
        let mayStart = Flag()
        let pool = WorkerPool(helpers: 3) { body in
            asked.wrappingAdd(1, ordering: .relaxed)
            return mayStart.isSet && SystemThread.start(body)
        }
        for _ in 0..<5 {
            let (items, ranAlone) = (Items(100), Flag())
            pool.run(
                workers: 4, woken: 4,
                alone: {
                    ranAlone.set()
                    items.work()
                }, { _ in items.work() })
            #expect(items.isDone && ranAlone.isSet && pool.startedThreads == 0)
        }
        #expect(asked.load(ordering: .relaxed) == 1)
        mayStart.set()
        let helped = Flag()
        #expect(
            wait {
                pool.run(workers: 4, woken: 4) { worker in if worker > 0 { helped.set() } else { usleep(1000) } }
                return helped.isSet
            })
    }

    /// Threads have a stack of the size that is said, a name, and take no signals of the process.
    @Test func threadsOfTheSystem() {
        let before = signalsBlocked()
        let ended = Flag()
        let size = Atomic(0)
        let blocked = Atomic(0)
        #expect(
            SystemThread.start {
                #if os(Linux)
                    var attributes = pthread_attr_t()
                    pthreadGetAttributes(pthread_self(), &attributes)
                    var bytes = 0
                    pthread_attr_getstacksize(&attributes, &bytes)
                    pthread_attr_destroy(&attributes)
                    size.store(bytes, ordering: .relaxed)
                #endif
                var mask = sigset_t()
                pthread_sigmask(SIG_SETMASK, nil, &mask)
                for signal in [SIGINT, SIGTERM, SIGALRM, SIGUSR1] where sigismember(&mask, signal) == 1 {
                    blocked.wrappingAdd(1, ordering: .relaxed)
                }
                for signal in [SIGSEGV, SIGFPE, SIGPROF] where sigismember(&mask, signal) == 1 {
                    blocked.wrappingAdd(100, ordering: .relaxed)
                }
                ended.set()
            })
        #expect(wait { ended.isSet })
        #if os(Linux)
            #expect(size.load(ordering: .relaxed) == SystemThread.stackBytes)
        #endif
        #expect(blocked.load(ordering: .relaxed) == 4)
        // The thread that started it keeps its own mask.
        #expect(signalsBlocked() == before)
    }

    /// By this thread.
    private func signalsBlocked() -> [Int32] {
        var mask = sigset_t()
        pthread_sigmask(SIG_SETMASK, nil, &mask)
        return (1..<32).filter { sigismember(&mask, $0) == 1 }
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
