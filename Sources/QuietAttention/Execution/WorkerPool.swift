// SPDX-License-Identifier: Apache-2.0
// WorkerPool.swift - threads that help calls, and sleep when none needs them.

import CKernels
import Dispatch
import Synchronization

/// How many threads a call is worth, its caller's included.
struct WorkerCount: Sendable {
    /// Those that are awake anyway, and those to wake.
    let most, woken: Int

    /// Each worker should have so much to do: handing work to a thread that is awake takes less than a microsecond, but
    /// work so short is hard to cut evenly.
    static let nanosecondsPerWorker = 25_000.0
    /// For a thread to wake it should be so many times more: waking one takes its caller 5 microseconds, and 45 pass until
    /// it comes, or twice that on a machine that was idle.
    static let wokenShare = 2.5
    /// More than any CPU has hardware threads.
    private static let limit = 1024

    /// For work that takes one thread so long.
    init(nanoseconds: Double, nanosecondsPerWorker: Double, threads: Int) {
        func worth(_ share: Double) -> Int {
            max(1, min(threads, Int(min(nanoseconds / (nanosecondsPerWorker * share), Double(Self.limit)))))
        }
        (most, woken) = (worth(1), worth(Self.wokenShare))
    }
}

/// Threads that calls share.
///
/// A call works itself, and lends work to helpers that are idle. It waits for those which have begun, never for one that
/// wakes late or not at all: so any number of calls, from any threads and from within each other, get on, at worst each
/// alone. Whoever waits, waits for work that began after its own, so no two wait for each other.
///
/// A helper out of work stays awake about as long as waking it would take: while calls follow one another closely,
/// nothing sleeps, and otherwise the loss is bounded. It then uses no CPU. Threads start when they are first needed, and
/// stay. Where the system has no thread to give, calls go on without, on their callers alone at worst, and ask again a
/// second later. A child process after fork() has a pool of its own.
final class WorkerPool: Sendable {
    private static let current = Atomic<Unmanaged<WorkerPool>?>(nil)

    /// The process's: as many helpers as there are CPUs beside the caller's.
    static var shared: WorkerPool {
        if let pool = current.load(ordering: .acquiring) { return pool.takeUnretainedValue() }
        ProcessFork.prepare()
        let made = Unmanaged.passRetained(WorkerPool(helpers: availableThreads() - 1))
        let (isFirst, other) = current.compareExchange(
            expected: nil, desired: made, ordering: .acquiringAndReleasing)
        if isFirst { return made.takeUnretainedValue() }
        made.release()
        return other!.takeUnretainedValue()
    }

    /// In the child after fork(), where the pool's threads are missing. The pool stays in memory as it is: semaphores
    /// that somebody seems to wait for cannot be freed.
    static func forgetShared() { current.store(nil, ordering: .releasing) }

    private let helpers: [Helper]
    private let lastEnd = Atomic<UInt64>(0)
    private let start: SystemThread.Start
    /// When a thread may be asked for again.
    private let nextStart = Atomic<UInt64>(0)
    private static let nanosecondsBetweenStarts: UInt64 = 1_000_000_000

    /// How long helpers out of work stay awake: waking a thread takes about 45 microseconds.
    fileprivate static let nanosecondsAwake: UInt64 = 50_000

    /// - Parameter start: how threads start.
    init(helpers: Int, start: @escaping SystemThread.Start = SystemThread.start) {
        self.helpers = (0..<helpers).map { _ in Helper() }
        self.start = start
    }

    /// Whether no helper uses its CPU.
    var isAsleep: Bool { helpers.allSatisfy { [.asleep, .unstarted].contains($0.phase) } }

    /// Helpers that have a thread.
    var startedThreads: Int { helpers.count { $0.phase != .unstarted } }

    /// Runs `body(0)` here, and others of `1..<workers` on helpers that are idle. Any of these may not run at all:
    /// `body(0)` has to see to all work that no other has begun.
    ///
    /// - Parameters:
    ///   - woken: of the workers, those worth waking a thread for. Calls so soon one after another that a helper stays
    ///     awake between them wake all.
    ///   - alone: instead of `body(0)` where no helper is lent work.
    func run(
        workers: Int, woken: Int, alone: (() -> Void)? = nil, _ body: @escaping @Sendable (_ worker: Int) -> Void
    ) {
        let most = min(workers - 1, helpers.count)
        guard most > 0 else { return alone?() ?? body(0) }
        let followsClosely = nanosecondsNow() &- lastEnd.load(ordering: .relaxed) < Self.nanosecondsAwake
        let ends = DispatchSemaphore(value: 0)
        withUnsafePointer(to: body) { body in
            withUnsafeTemporaryAllocation(of: Loan.self, capacity: most) { loans in
                let count = lend(body, ends, most: most, woken: followsClosely ? most : min(most, woken - 1), loans)
                if count == 0, let alone { alone() } else { body.pointee(0) }
                for loan in loans[..<count] { loan.helper.takeBack(loan.number, ends) }
                loans[..<count].deinitialize()
            }
        }
        lastEnd.store(nanosecondsNow(), ordering: .relaxed)
    }

    /// Lends work to idle helpers, to those awake first: how many there were.
    private func lend(
        _ body: UnsafePointer<Helper.Body>, _ ends: DispatchSemaphore, most: Int, woken: Int,
        _ loans: UnsafeMutableBufferPointer<Loan>
    ) -> Int {
        var count = 0
        for phase in [Helper.Phase.idle, .asleep, .unstarted] {
            for helper in helpers where count < (phase == .idle ? most : woken) {
                if phase == .unstarted, !mayStart { break }
                guard let number = helper.lend(body, ends, worker: count + 1, in: phase, start: start) else {
                    if phase == .unstarted, helper.phase == .unstarted { startFailed() }
                    continue
                }
                loans.initializeElement(at: count, to: Loan(helper: helper, number: number))
                count += 1
            }
        }
        return count
    }

    /// Asking in vain takes the system some 20 microseconds: not with every call.
    private var mayStart: Bool {
        let next = nextStart.load(ordering: .relaxed)
        return next == 0 || nanosecondsNow() >= next
    }

    private func startFailed() {
        nextStart.store(nanosecondsNow() + Self.nanosecondsBetweenStarts, ordering: .relaxed)
    }
}

/// Work lent to a helper.
private struct Loan {
    let helper: Helper
    let number: Int
}

/// A thread, and what it is at.
private final class Helper: @unchecked Sendable {
    /// Calls change unstarted, idle and asleep to taken and lent, lent back to idle, and running to awaited; the thread
    /// does the rest.
    enum Phase: Int {
        case unstarted, idle, asleep, taken, lent, running, awaited
    }

    /// The phase, and which loan it is of: a call that comes back for its own never meets another's.
    private struct State: RawRepresentable, AtomicRepresentable {
        let rawValue: Int

        init(rawValue: Int) { self.rawValue = rawValue }

        init(_ phase: Phase, loan: Int) { rawValue = loan << 3 | phase.rawValue }

        var phase: Phase { Phase(rawValue: rawValue & 7)! }
        var loan: Int { rawValue >> 3 }
    }

    typealias Body = @Sendable (Int) -> Void

    /// Alone in its cache lines: the thread looks at it all the time while it is awake.
    private let state: UnsafeMutablePointer<Atomic<State>>
    /// What is lent.
    private var body: UnsafePointer<Body>?
    private var worker = 0
    /// The call's own: were it the helper's, the next call could take the signal before the last one has woken to it.
    private var ends: DispatchSemaphore?
    private let wakes = DispatchSemaphore(value: 0)

    init() {
        let stride = SharedCounters.stride
        state = UnsafeMutableRawPointer.allocate(byteCount: stride, alignment: stride)
            .bindMemory(to: Atomic<State>.self, capacity: 1)
        state.initialize(to: Atomic(State(.unstarted, loan: 0)))
    }

    deinit { state.deallocate() }

    var phase: Phase { state.pointee.load(ordering: .relaxed).phase }

    private func change(_ old: State, to phase: Phase, loan: Int? = nil) -> Bool {
        state.pointee.compareExchange(
            expected: old, desired: State(phase, loan: loan ?? old.loan), ordering: .acquiringAndReleasing
        ).exchanged
    }

    // MARK: - Calls

    /// Lends work to the helper if it is in this phase: the number of the loan. nil, too, if it has no thread yet, and
    /// there is none to be had.
    func lend(
        _ body: UnsafePointer<Body>, _ ends: DispatchSemaphore, worker: Int, in phase: Phase, start: SystemThread.Start
    ) -> Int? {
        let old = state.pointee.load(ordering: .relaxed)
        let loan = old.loan + 1
        guard old.phase == phase, change(old, to: .taken, loan: loan) else { return nil }
        self.body = body
        self.worker = worker
        self.ends = ends
        state.pointee.store(State(.lent, loan: loan), ordering: .releasing)
        // Once for each change to asleep: a helper that wakes to find nothing stays awake for a while.
        if phase == .asleep { wakes.signal() }
        guard phase == .unstarted, !start({ self.serve() }) else { return loan }
        // Without a thread nobody else can have changed it.
        self.ends = nil
        state.pointee.store(State(.unstarted, loan: loan), ordering: .releasing)
        return nil
    }

    /// Takes work back that has not begun; waits for the end of work that has.
    func takeBack(_ loan: Int, _ ends: DispatchSemaphore) {
        if change(State(.lent, loan: loan), to: .idle) { return }
        let running = State(.running, loan: loan)
        if spin(until: { state.pointee.load(ordering: .acquiring) != running }) { return }
        if change(running, to: .awaited) { ends.wait() }
    }

    // MARK: - The thread

    private func serve() -> Never {
        while true {
            let lent = waitForWork()
            guard change(lent, to: .running) else { continue }
            // From the exchange on, all of these are the next call's.
            let ends = self.ends!
            body!.pointee(worker)
            let last = state.pointee.exchange(State(.idle, loan: lent.loan), ordering: .acquiringAndReleasing)
            if last.phase == .awaited { ends.signal() }
        }
    }

    /// The state when something is lent.
    private func waitForWork() -> State {
        while true {
            var now = State(.idle, loan: 0)
            let isLent = spin {
                now = state.pointee.load(ordering: .acquiring)
                return now.phase == .lent
            }
            if isLent { return now }
            if now.phase == .idle, change(now, to: .asleep) { wakes.wait() }
        }
    }

    /// Waits for a condition as long as helpers stay awake: whether it came true.
    private func spin(until condition: () -> Bool) -> Bool {
        let end = nanosecondsNow() + WorkerPool.nanosecondsAwake
        repeat {
            for _ in 0..<32 {
                if condition() { return true }
                qattn_spin_hint()
            }
        } while nanosecondsNow() < end
        return false
    }
}

private func nanosecondsNow() -> UInt64 { DispatchTime.now().uptimeNanoseconds }
