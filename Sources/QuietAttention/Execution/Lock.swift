// SPDX-License-Identifier: Apache-2.0
// Lock.swift - a value that one thread at a time may touch.

import Synchronization

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// A value behind a mutex of the system, one of a few that ``ProcessFork`` can take hold of.
///
/// Synchronization.Mutex would do, but a thread sanitizer does not see the locking inside that library and reports races
/// that are none as soon as two threads really meet.
package final class Lock<Value>: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private var value: Value

    package init(_ value: sending Value) {
        ProcessFork.prepare()
        self.value = value
        mutex = nextMutex()
    }

    /// Runs `body` alone. It takes no other lock: that could be the same mutex.
    package func withLock<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body(&value)
    }
}

private let locksMade = Atomic(0)

/// The mutexes in turn.
private func nextMutex() -> UnsafeMutablePointer<pthread_mutex_t> {
    let number = locksMade.wrappingAdd(1, ordering: .relaxed).oldValue
    return ProcessFork.mutexes + Int(UInt(bitPattern: number) % UInt(ProcessFork.mutexCount))
}
