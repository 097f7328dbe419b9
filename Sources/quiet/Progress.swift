// SPDX-License-Identifier: Apache-2.0
// Progress.swift - a line on standard error that tells how far a long run is.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

/// How many tensors are measured of how many. On a terminal one line that changes, elsewhere a line each time; at most two
/// a second, and none in the first half second.
struct Progress {
    private let tensors, bytes: Int
    private let isShown: Bool
    private let isTerminal = isatty(STDERR_FILENO) == 1
    private let start = ContinuousClock.now
    private var last = ContinuousClock.now
    private var (doneTensors, doneBytes) = (0, 0)
    private var width = 0

    init(tensors: Int, bytes: Int, isShown: Bool) {
        (self.tensors, self.bytes, self.isShown) = (tensors, bytes, isShown)
    }

    /// One more is done, of so many bytes.
    mutating func count(bytes: Int) {
        doneTensors += 1
        doneBytes += bytes
        guard isShown, ContinuousClock.now - last >= .milliseconds(500) else { return }
        last = .now
        show(Self.line(tensors: (doneTensors, tensors), bytes: (doneBytes, self.bytes), seconds: seconds))
    }

    private var seconds: Double { (ContinuousClock.now - start) / .seconds(1) }

    /// Leaves an empty line on a terminal, and elsewhere says that all is done.
    mutating func finish() {
        guard isShown else { return }
        if isTerminal {
            if width > 0 { show("", end: "\r") }
        } else if doneTensors == tensors {
            show(Self.line(tensors: (doneTensors, tensors), bytes: (doneBytes, bytes), seconds: seconds))
        }
    }

    private mutating func show(_ line: String, end: String = "") {
        let blanks = String(repeating: " ", count: max(0, width - line.count))
        _ = writeAll(isTerminal ? "\r\(line)\(blanks)\(end)" : line + "\n", to: STDERR_FILENO)
        width = line.count
    }

    /// Bytes take the time, so they tell what is left of it.
    static func line(tensors: (done: Int, all: Int), bytes: (done: Int, all: Int), seconds: Double) -> String {
        func gigabytes(_ bytes: Int) -> String { decimal(Double(bytes) / 1e9, digits: 2) }
        let left = bytes.done > 0 ? seconds * Double(bytes.all - bytes.done) / Double(bytes.done) : 0
        return "\(tensors.done) of \(tensors.all) tensors, \(gigabytes(bytes.done)) of \(gigabytes(bytes.all)) GB, "
            + "\(decimal(left, digits: 0)) s left"
    }
}
