// SPDX-License-Identifier: Apache-2.0
// SharedSpansTests.swift - panels of rows meet spans of keys in order, each once, whatever the workers do.

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

/// How far spans and panels have come, and what went wrong on the way.
private final class Progress: Sendable {
    private let state: Mutex<(left: [Int], met: [Int], busy: [Bool], faults: [String])>

    init(spans: Int, panels: Int) {
        state = Mutex(
            (
                Array(repeating: 0, count: spans), Array(repeating: 0, count: panels),
                Array(repeating: false, count: spans),
                []
            ))
    }

    func begin(_ span: Int, _ panel: Int) {
        state.withLock {
            if $0.left[span] != panel { $0.faults.append("span \(span) took panel \(panel) after \($0.left[span])") }
            if $0.met[panel] != span { $0.faults.append("panel \(panel) met span \(span) after \($0.met[panel])") }
            if $0.busy[span] { $0.faults.append("span \(span) is two workers'") }
            $0.busy[span] = true
        }
    }

    func end(_ span: Int, _ panel: Int) {
        state.withLock {
            $0.left[span] += 1
            $0.met[panel] += 1
            $0.busy[span] = false
        }
    }

    var faults: [String] {
        state.withLock { state in
            let isWhole =
                state.left.allSatisfy { $0 == state.met.count } && state.met.allSatisfy { $0 == state.left.count }
            return state.faults + (isWhole ? [] : ["left over: \(state.left), \(state.met)"])
        }
    }
}

@Suite struct SharedSpansTests {
    private func run(
        spans: Int, panels: Int, workers: Int, pause: @escaping @Sendable (_ span: Int, _ panel: Int) -> UInt32
    )
        -> [String]
    {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: (1 + spans) * SharedCounters.stride, alignment: 128)
        defer { memory.deallocate() }
        let shared = SharedSpans(SharedCounters(at: memory, count: 1 + spans), spans: spans, panels: panels)
        let progress = Progress(spans: spans, panels: panels)
        WorkerPool(helpers: workers - 1).run(workers: workers, woken: workers) { _ in
            shared.work { span, panel in
                progress.begin(span, panel)
                usleep(pause(span, panel))
                progress.end(span, panel)
            }
        }
        return progress.faults
    }

    @Test(arguments: [1, 2, 3, 5]) func ordersAreKept(workers: Int) {
        for (spans, panels) in [(1, 1), (1, 9), (9, 1), (7, 13), (16, 4)] {
            #expect(run(spans: spans, panels: panels, workers: workers) { UInt32(($0 * 7 + $1 * 13) % 11) * 10 } == [])
        }
    }

    /// Spans whose first panels are short, as under a causal mask, and one slow panel in the way of all.
    @Test func orderIsKeptWhereSomeWorkIsLong() {
        #expect(run(spans: 6, panels: 12, workers: 3) { $1 < 2 * $0 ? 0 : 100 } == [])
        #expect(run(spans: 6, panels: 12, workers: 4) { $0 == 0 && $1 == 0 ? 20_000 : 0 } == [])
    }
}
