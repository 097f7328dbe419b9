// SPDX-License-Identifier: Apache-2.0
// Progress.swift - one line on standard error: loss, tokens per second, time left.

import Foundation

/// On a terminal the line is drawn again twice a second; elsewhere one is printed every 30 seconds, unless `isQuiet`.
public final class ProgressLine {
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private let isQuiet: Bool
    private let label: String
    private let start = ContinuousClock.now
    private var shown: ContinuousClock.Instant?
    private var first: Int?

    public init(_ label: String, isQuiet: Bool = false) { (self.label, self.isQuiet) = (label, isQuiet) }

    public func show(step: Int, of steps: Int, loss: Double, tokensPerStep: Int) {
        if isQuiet { return }
        let now = ContinuousClock.now
        let from = first ?? step - 1
        first = from
        guard
            now - (shown ?? (isTerminal ? start - .seconds(9) : start))
                > (isTerminal ? .milliseconds(500) : .seconds(30))
        else { return }
        shown = now
        let seconds = Double((now - start).components.seconds) + Double((now - start).components.attoseconds) * 1e-18
        let rate = Double(step - from) / max(seconds, 1e-9)
        let line = String(
            format: "%@: step %d of %d, loss %.4f, %.0f tokens/s, %.0f s left", label, step, steps, loss,
            rate * Double(tokensPerStep), Double(steps - step) / max(rate, 1e-9))
        FileHandle.standardError.write(Data((isTerminal ? "\r\u{1b}[2K" + line : line + "\n").utf8))
    }

    public func finish() {
        if isTerminal, shown != nil { FileHandle.standardError.write(Data("\r\u{1b}[2K".utf8)) }
    }
}

extension Trainer {
    /// Trains to the last step.
    ///
    /// - Parameters:
    ///   - checkpoint: gone on from if it is there, and written every so many steps and at the end; nil: none.
    ///   - observe: called after every step.
    public func run(
        label: String, checkpoint: String? = nil, every interval: Int = 100, isQuiet: Bool = false,
        observe: (Trainer) throws -> Void = { _ in }
    ) throws {
        if let checkpoint, FileManager.default.fileExists(atPath: checkpoint) {
            try Checkpoint.restore(self, from: checkpoint)
        }
        let progress = ProgressLine(label, isQuiet: isQuiet)
        defer { progress.finish() }
        while step < configuration.steps {
            let loss = try advance()
            progress.show(
                step: step, of: configuration.steps, loss: loss,
                tokensPerStep: configuration.batch * configuration.length)
            try observe(self)
            if let checkpoint, step % interval == 0 || step == configuration.steps {
                try Checkpoint.save(self, to: checkpoint)
            }
        }
    }
}
