// SPDX-License-Identifier: Apache-2.0
// ProcessTests.swift - calls in processes that may have no further thread, that fork, and that wake helpers.

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

/// The C library's, which Swift does not import: a child must end by _exit.
@_silgen_name("fork") private func systemFork() -> Int32
/// The C library's, with the resource as a number.
@_silgen_name("setrlimit") private func setLimit(_ resource: Int32, _ limit: UnsafePointer<UInt>) -> Int32

/// What the processes of the tests below do: closures that run in a process of their own capture nothing.
private enum Process {
    static let problem = Problem(
        try! AttentionShape(batch: 2, queryHeads: 4, keyValueHeads: 2, queries: 40, keys: 200, headDimension: 8))

    static func attention(threads: Int, workspace: AttentionWorkspace? = nil) throws -> Attention {
        try Attention(problem.shape, mask: .causal, threads: threads, workspace: workspace, spread: threads > 1)
    }

    /// False where the system has no such limit, or where it does not bind.
    static func refuseThreads() -> Bool {
        // No limit binds the superuser.
        if geteuid() == 0, setuid(65534) != 0 { return false }
        #if os(Linux)
            let processes: Int32 = 6
        #else
            let processes: Int32 = 7
        #endif
        guard setLimit(processes, [0, 0]) == 0 else { return false }
        return !SystemThread.start {}
    }

    /// Runs calls on threads that share a workspace, and meanwhile forks; whether every child could call.
    static func fork(times: Int) throws -> Bool {
        let workspace = AttentionWorkspace()
        let attention = try attention(threads: 2, workspace: workspace)
        let expected = try problem.run(attention).bits
        let ends = Atomic(false)
        let calling = Atomic(0)
        for number in 0..<3 {
            let isStarted = SystemThread.start {
                while !ends.load(ordering: .relaxed) {
                    // One of them does little but lock.
                    if number == 0 { workspace.removeIdleBuffers() } else { _ = try? problem.run(attention) }
                }
                calling.wrappingSubtract(1, ordering: .relaxed)
            }
            if isStarted { calling.wrappingAdd(1, ordering: .relaxed) }
        }
        defer {
            ends.store(true, ordering: .relaxed)
            while calling.load(ordering: .relaxed) > 0 { usleep(1000) }
        }
        for _ in 0..<times {
            let child = systemFork()
            if child == 0 {
                // Ends a child that hangs.
                alarm(60)
                let isRight = try problem.run(attention).bits == expected && helpersHelp()
                _exit(isRight ? 0 : 1)
            }
            var status: Int32 = -1
            while waitpid(child, &status, 0) < 0, errno == EINTR {}
            if child < 0 || status != 0 { return false }
            usleep(500)
        }
        return true
    }

    /// Waits until a helper has taken part in a call, where there can be one.
    static func helpersHelp() -> Bool {
        if availableThreads() == 1 { return true }
        let helped = Atomic(false)
        while !helped.load(ordering: .relaxed) {
            WorkerPool.shared.run(workers: 2, woken: 2) { worker in
                if worker == 1 { helped.store(true, ordering: .relaxed) } else { usleep(1000) }
            }
        }
        return true
    }
}

@Suite struct ProcessTests {
    @Test func callsGoOnWithoutThreads() async {
        await #expect(processExitsWith: .success) {
            let expected = try Process.problem.run(Process.attention(threads: 1)).bits
            // Ends a process that hangs. It ends without what runs at exit: the leak sanitizer would want a thread.
            alarm(120)
            guard Process.refuseThreads() else { _exit(EXIT_SUCCESS) }
            for _ in 0..<3 {
                guard try Process.problem.run(Process.attention(threads: 4)).bits == expected else {
                    _exit(EXIT_FAILURE)
                }
            }
            let rate = MachineCeilings.fmaPeak(threads: 2, kernels: KernelSet.available[0], seconds: 0.01)
            _exit(rate > 0 && WorkerPool.shared.startedThreads == 0 ? EXIT_SUCCESS : EXIT_FAILURE)
        }
    }

    @Test func childrenOfAForkCanCall() async {
        await #expect(processExitsWith: .success) {
            exit(try Process.fork(times: 100) ? EXIT_SUCCESS : EXIT_FAILURE)
        }
    }

    /// Of a call worth it, from arrays and from caches.
    @Test(.enabled(if: availableThreads() > 1)) func longForwardPassesStartHelpers() async {
        await #expect(processExitsWith: .success) {
            let shape = try AttentionShape(queryHeads: 4, queries: 256, keys: 256, headDimension: 64)
            _ = try Problem(shape).run(Attention(shape, sink: .softmax1))
            exit(WorkerPool.shared.startedThreads > 0 ? EXIT_SUCCESS : EXIT_FAILURE)
        }
    }

    @Test(.enabled(if: availableThreads() > 1)) func longReadsOfCachesStartHelpers() async {
        await #expect(processExitsWith: .success) {
            let problem = CacheProblem(tokens: 4096) { ($0.headDimension, $0.valueDimension, $0.group) = (64, 64, 4) }
            let cache = try problem.cache(appending: 0..<4096)
            guard WorkerPool.shared.startedThreads == 0 else { exit(EXIT_FAILURE) }
            let attention = try CachedAttention(queryHeads: problem.queryHeads, sink: .softmax1)
            _ = try attention.attend(queries: problem.queries(4000..<4096), cache: cache)
            exit(WorkerPool.shared.startedThreads > 0 ? EXIT_SUCCESS : EXIT_FAILURE)
        }
    }
}
