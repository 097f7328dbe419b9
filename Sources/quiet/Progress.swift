// SPDX-License-Identifier: Apache-2.0
// Progress.swift - a line on standard error that tells how far a long run is.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

/// How many items are done of how many. On a terminal one line that changes, elsewhere a line each time; at most two
/// a second, and none in the first half second.
struct Progress {
    /// What takes the time, and so tells what is left of it.
    enum Work {
        case bytes
        /// Pairs of rows and keys, which nobody wants to read of.
        case pairs
    }

    private let items: String
    private let work: Work
    private let all: (items: Int, amount: Double)
    private let isShown: Bool
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private let start = ContinuousClock.now
    private var last = ContinuousClock.now
    private var done: (items: Int, amount: Double) = (0, 0)
    private var width = 0

    /// - Parameters:
    ///   - items: what is counted, in the plural.
    ///   - amount: the work of all of them.
    init(_ items: String, count: Int, _ work: Work, amount: Double, isShown: Bool) {
        (self.items, self.work, all, self.isShown) = (items, work, (count, amount), isShown)
    }

    /// One more is done, of so much work.
    mutating func count(_ amount: Double) {
        done = (done.items + 1, done.amount + amount)
        guard isShown, ContinuousClock.now - last >= .milliseconds(500) else { return }
        last = .now
        show(line)
    }

    /// Leaves an empty line on a terminal, and elsewhere says that all is done.
    mutating func finish() {
        guard isShown else { return }
        if isTerminal {
            if width > 0 { show("", end: "\r") }
        } else if done.items == all.items {
            show(line)
        }
    }

    private mutating func show(_ line: String, end: String = "") {
        let blanks = String(repeating: " ", count: max(0, width - line.count))
        _ = writeAll(isTerminal ? "\r\(line)\(blanks)\(end)" : line + "\n", to: STDERR_FILENO)
        width = line.count
    }

    private var line: String {
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        let left = done.amount > 0 ? seconds * (all.amount - done.amount) / done.amount : 0
        func gigabytes(_ bytes: Double) -> String { decimal(bytes / 1e9, digits: 2) }
        let amounts = work == .bytes ? "\(gigabytes(done.amount)) of \(gigabytes(all.amount)) GB, " : ""
        return "\(done.items) of \(all.items) \(items), \(amounts)\(decimal(left, digits: 0)) s left"
    }
}
