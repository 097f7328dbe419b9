// SPDX-License-Identifier: Apache-2.0
// SharedCounters.swift - numbers that the workers of a call change and wait for.

import CKernels
import Synchronization

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Counters in the buffer of a call, far enough apart for CPUs that fetch cache lines in pairs.
struct SharedCounters: @unchecked Sendable {
    static let stride = 128

    private let base: UnsafeMutableRawPointer

    /// All 0.
    init(at base: UnsafeMutableRawPointer, count: Int) {
        self.base = base
        for index in 0..<count { self[index].initialize(to: Atomic(0)) }
    }

    subscript(index: Int) -> UnsafeMutablePointer<Atomic<Int>> {
        (base + index * Self.stride).assumingMemoryBound(to: Atomic<Int>.self)
    }

    /// Adds 1 to a counter: what it was.
    func next(_ index: Int = 0) -> Int { self[index].pointee.wrappingAdd(1, ordering: .relaxed).oldValue }
}

/// What a worker does that looks for something again and again: spins for the length of a short item, then lets others run.
struct SpinPause {
    private var spins = 0

    mutating func pause() {
        if spins < 1000 {
            qattn_spin_hint()
            spins += 1
        } else {
            sched_yield()
        }
    }
}

extension Atomic<Int> {
    /// Waits until the value is right.
    func wait(until isRight: (Int) -> Bool) {
        var pause = SpinPause()
        while !isRight(load(ordering: .acquiring)) { pause.pause() }
    }
}
