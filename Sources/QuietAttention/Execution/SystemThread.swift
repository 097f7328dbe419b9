// SPDX-License-Identifier: Apache-2.0
// SystemThread.swift - threads of the system, where there are some to be had.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

#if os(Linux)
    /// The C library's, which its headers hide from Swift behind _GNU_SOURCE.
    @_silgen_name("pthread_setname_np")
    private func pthreadSetName(_ thread: pthread_t, _ name: UnsafePointer<CChar>) -> Int32
#endif

/// Threads of the system, started directly: Dispatch, when it gets no thread, asks for one again and again, and does so on
/// the thread of whoever asked it.
enum SystemThread {
    /// Runs `body` on a thread of its own; false where the system has none: limits on processes, too little memory.
    typealias Start = @Sendable (_ body: @escaping @Sendable () -> Void) -> Bool

    /// Bytes of a thread's stack: address space, of which only what is used takes memory.
    static let stackBytes = 1 << 20

    /// Starts a thread that nobody waits for and that keeps no process from ending. It is called QuietAttention, computes
    /// in the mode of the contract, and leaves the signals sent to the process to the process's own threads, whose
    /// handlers may count on stacks of theirs; those of its own faults, and a profiler's, reach it.
    static let start: Start = { body in
        var attributes = pthread_attr_t()
        guard pthread_attr_init(&attributes) == 0 else { return false }
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        pthread_attr_setstacksize(&attributes, stackBytes)
        let box = Unmanaged.passRetained(Body(body))
        // A thread inherits mode and mask of signals from the one that starts it.
        let created = inFloatMode {
            withSignalsBlocked { create(&attributes, box.toOpaque()) }
        }
        if !created { box.release() }
        return created
    }

    private final class Body: Sendable {
        let run: @Sendable () -> Void

        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    private static func run(_ body: UnsafeMutableRawPointer) {
        setName()
        Unmanaged<Body>.fromOpaque(body).takeRetainedValue().run()
    }

    private static func create(_ attributes: inout pthread_attr_t, _ body: UnsafeMutableRawPointer) -> Bool {
        #if canImport(Darwin)
            var thread: pthread_t?
            return pthread_create(
                &thread, &attributes,
                { body in
                    SystemThread.run(body)
                    return nil
                }, body) == 0
        #else
            var thread = pthread_t()
            return pthread_create(
                &thread, &attributes,
                { body in
                    SystemThread.run(body!)
                    return nil
                }, body) == 0
        #endif
    }

    private static func setName() {
        #if canImport(Darwin)
            pthread_setname_np("QuietAttention")
        #elseif os(Linux)
            _ = pthreadSetName(pthread_self(), "QuietAttention")
        #endif
    }

    private static func withSignalsBlocked<Result>(_ body: () -> Result) -> Result {
        var (mask, caller) = (sigset_t(), sigset_t())
        sigfillset(&mask)
        for signal in [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF] { sigdelset(&mask, signal) }
        pthread_sigmask(SIG_SETMASK, &mask, &caller)
        defer { pthread_sigmask(SIG_SETMASK, &caller, nil) }
        return body()
    }
}
