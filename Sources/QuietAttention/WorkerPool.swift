// SPDX-License-Identifier: Apache-2.0
// WorkerPool.swift - threads that help calls, and sleep when none needs them.

import CKernels
import Dispatch
import Synchronization

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Threads that calls share.
///
/// A call works itself, and lends work to helpers that are idle. It waits for those which have begun, never for one that
/// wakes late or not at all: so any number of calls, from any threads and from within each other, get on, at worst each
/// alone. Whoever waits, waits for work that began after its own, so no two wait for each other.
///
/// A helper out of work stays awake about as long as waking it would take: while calls follow one another closely,
/// nothing sleeps, and otherwise the loss is bounded. It then uses no CPU. Threads start when they are first needed, and
/// stay. In a child process after fork() they are missing, and calls run on their callers alone.
final class WorkerPool: Sendable {
    /// The process's: as many helpers as there are CPUs beside the caller's.
    static let shared = WorkerPool(helpers: availableThreads() - 1)

    private let helpers: [Helper]

    init(helpers: Int) {
        self.helpers = (0..<helpers).map { _ in Helper() }
    }

    /// Whether no helper uses its CPU.
    var isAsleep: Bool { helpers.allSatisfy(\.isAsleep) }

    /// Runs `body(0)` here, and others of `1..<workers` on helpers that are idle. Any of these may not run at all:
    /// `body(0)` has to see to all work that no other has begun.
    func run(workers: Int, _ body: @escaping @Sendable (_ worker: Int) -> Void) {
        let most = min(workers - 1, helpers.count)
        guard most > 0 else { return body(0) }
        withUnsafePointer(to: body) { body in
            withUnsafeTemporaryAllocation(of: (helper: Helper, loan: Int).self, capacity: most) { lent in
                var count = 0
                // Those awake first.
                for phase in [Helper.Phase.idle, .asleep, .unstarted] {
                    for helper in helpers where count < most {
                        guard let loan = helper.lend(body, worker: count + 1, in: phase) else { continue }
                        lent.initializeElement(at: count, to: (helper, loan))
                        count += 1
                    }
                }
                body.pointee(0)
                for (helper, loan) in lent[..<count] { helper.takeBack(loan) }
                lent[..<count].deinitialize()
            }
        }
    }
}

/// One thread, and what it is at.
private final class Helper: @unchecked Sendable {
    /// What passes when: calls change idle, asleep and unstarted to lent, and lent back to idle; the thread does all else.
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
    /// Of the loan.
    private var body: UnsafePointer<Body>?
    private var worker = 0
    private let wakes = DispatchSemaphore(value: 0), ends = DispatchSemaphore(value: 0)

    /// Waking a thread takes about 45 microseconds.
    private static let nanosecondsAwake: UInt64 = 50_000

    init() {
        let stride = ForwardSchedule.Memory.counterStride
        state = UnsafeMutableRawPointer.allocate(byteCount: stride, alignment: stride)
            .bindMemory(to: Atomic<State>.self, capacity: 1)
        state.initialize(to: Atomic(State(.unstarted, loan: 0)))
    }

    deinit { state.deallocate() }

    var isAsleep: Bool { [.asleep, .unstarted].contains(state.pointee.load(ordering: .relaxed).phase) }

    private func change(_ old: State, to phase: Phase, loan: Int? = nil) -> Bool {
        state.pointee.compareExchange(
            expected: old, desired: State(phase, loan: loan ?? old.loan), ordering: .acquiringAndReleasing
        ).exchanged
    }

    // MARK: - Calls

    /// Lends the helper work if that is what it is at: the number of the loan.
    func lend(_ body: UnsafePointer<Body>, worker: Int, in phase: Phase) -> Int? {
        let old = state.pointee.load(ordering: .relaxed)
        let loan = old.loan + 1
        guard old.phase == phase, change(old, to: .taken, loan: loan) else { return nil }
        self.body = body
        self.worker = worker
        state.pointee.store(State(.lent, loan: loan), ordering: .releasing)
        if phase == .asleep { wakes.signal() }
        // A queue of its own has a thread of its own.
        if phase == .unstarted { DispatchQueue(label: "QuietAttention.WorkerPool").async { self.serve() } }
        return loan
    }

    /// Takes work back that has not begun; waits for the end of work that has.
    func takeBack(_ loan: Int) {
        if change(State(.lent, loan: loan), to: .idle) { return }
        let running = State(.running, loan: loan)
        let isOver = spin { state.pointee.load(ordering: .acquiring) != running }
        if !isOver, change(running, to: .awaited) { ends.wait() }
    }

    // MARK: - The thread

    private func serve() -> Never {
        while true {
            let old = waitForWork()
            guard change(old, to: .running) else { continue }
            body!.pointee(worker)
            let last = state.pointee.exchange(State(.idle, loan: old.loan), ordering: .acquiringAndReleasing)
            if last.phase == .awaited { ends.signal() }
        }
    }

    /// The state of a loan that has not begun.
    private func waitForWork() -> State {
        var now = State(.idle, loan: 0)
        while true {
            let isLent = spin {
                now = state.pointee.load(ordering: .acquiring)
                return now.phase == .lent
            }
            if isLent { return now }
            // Whoever finds it asleep signals once.
            if now.phase == .idle, change(now, to: .asleep) { wakes.wait() }
        }
    }

    /// Waits for a condition, awake, and not for long: whether it came true.
    private func spin(until condition: () -> Bool) -> Bool {
        let end = DispatchTime.now().uptimeNanoseconds + Self.nanosecondsAwake
        repeat {
            for _ in 0..<32 {
                if condition() { return true }
                qattn_spin_hint()
            }
        } while DispatchTime.now().uptimeNanoseconds < end
        return false
    }
}
