// SPDX-License-Identifier: Apache-2.0
// Signals.swift - a run that is ended by a signal leaves no file behind.

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// The path of a file to remove. Written once, before the handler that reads it is set.
nonisolated(unsafe) private var removed: UnsafeMutablePointer<CChar>?

/// Runs what waits for all ranks and cannot be asked how it goes: where it takes too long, one line says so, and the process
/// ends with status 1, which ends the run.
func ending<Result>(after seconds: UInt32, _ body: () throws -> Result) rethrows -> Result {
    signal(SIGALRM) { _ in
        let line: StaticString = "quiet-ring: MPI waited in vain for a rank to start, or to end\n"
        _ = line.withUTF8Buffer { write(STDERR_FILENO, $0.baseAddress, $0.count) }
        if let removed { unlink(removed) }
        _exit(1)
    }
    alarm(seconds)
    defer { alarm(0) }
    return try body()
}

private let endingSignals = [SIGTERM, SIGINT, SIGHUP]

/// Makes a file, and removes it when one of the signals comes that end a process: one that comes while it is made waits.
func removingOnSignals<File>(_ make: () throws -> File, path: (File) -> String) rethrows -> File {
    var (ending, before) = (sigset_t(), sigset_t())
    sigemptyset(&ending)
    for number in endingSignals { sigaddset(&ending, number) }
    pthread_sigmask(SIG_BLOCK, &ending, &before)
    defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
    let file = try make()
    removeOnSignals(path(file))
    return file
}

private func removeOnSignals(_ path: String) {
    removed = strdup(path)
    for number in endingSignals {
        // Nothing but calls that a handler may make.
        signal(number) { number in
            if let removed { unlink(removed) }
            _exit(128 + number)
        }
    }
}
