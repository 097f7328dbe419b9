// SPDX-License-Identifier: Apache-2.0
// Progress.swift - how far a command is and how long it will still take, from the second second on.

import Foundation

/// Reports on standard error what takes more than two seconds: on a terminal in a line that is written over, elsewhere in a
/// line every ten seconds.
final class Progress {
    private let label: String
    private let start = ContinuousClock.now
    private var reported: ContinuousClock.Instant
    private let isTerminal = isatty(STDERR_FILENO) != 0
    private var hasLine = false

    init(_ label: String) {
        (self.label, reported) = (label, start)
    }

    /// - Parameters:
    ///   - done: of `total`, in units that each take about as long.
    func update(_ done: Int, of total: Int) {
        let now = ContinuousClock.now
        let spent = now - start
        let pause: Duration = isTerminal ? .milliseconds(200) : hasLine ? .seconds(10) : .seconds(2)
        guard spent > .seconds(2), now - reported > pause || !hasLine, done > 0 else { return }
        reported = now
        hasLine = true
        let left = spent * (Double(total - done) / Double(done))
        let line = "\(label): \(done) of \(total), \(Self.text(left)) left"
        report(isTerminal ? "\r\(line)\u{1b}[K" : line + "\n")
    }

    /// Takes the line away.
    func finish() {
        if hasLine, isTerminal { report("\r\u{1b}[K") }
        hasLine = false
    }

    private static func text(_ duration: Duration) -> String {
        let seconds = Int(duration.components.seconds)
        return seconds < 100 ? "\(seconds) s" : "\(seconds / 60) min \(seconds % 60) s"
    }
}
