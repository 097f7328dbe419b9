// SPDX-License-Identifier: Apache-2.0
// ProcessFork.swift - a child process after fork() can call what its parent was in the middle of.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// What fork() takes for calls to go on in the child. The child has only the thread that forked, and a copy of memory in
/// which other threads may have been anywhere:
///
/// - A mutex that one of them held would stay locked: so forking waits until it holds all mutexes of the library, and
///   releases them on both sides. What they guard is whole then.
/// - The threads of the pool are gone: the child starts a pool of its own when it first needs one.
///
/// What a call of another thread was writing to in the parent (its output, a cache that it appended to) stays half
/// written in the child, and its workspace stays taken.
enum ProcessFork {
    /// A few mutexes that all locks share, so that there is a fixed number to take hold of. No lock is taken inside
    /// another, and none is held for long.
    nonisolated(unsafe) static let mutexes: UnsafeMutablePointer<pthread_mutex_t> = {
        let mutexes = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: mutexCount)
        for index in 0..<mutexCount {
            (mutexes + index).initialize(to: pthread_mutex_t())
            pthread_mutex_init(mutexes + index, nil)
        }
        return mutexes
    }()

    static let mutexCount = 16

    /// Registers what is to happen, once. To be called before anything that a fork could leave in a bad state exists.
    static func prepare() { _ = isRegistered }

    private static let isRegistered: Bool = {
        _ = mutexes
        return pthread_atfork(
            { for index in 0..<mutexCount { pthread_mutex_lock(mutexes + index) } },
            { for index in 0..<mutexCount { pthread_mutex_unlock(mutexes + index) } },
            {
                for index in 0..<mutexCount { pthread_mutex_unlock(mutexes + index) }
                WorkerPool.forgetShared()
            }) == 0
    }()
}
