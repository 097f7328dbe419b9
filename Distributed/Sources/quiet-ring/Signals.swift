// SPDX-License-Identifier: Apache-2.0
// Signals.swift - a run that is ended by a signal leaves no file behind.

#if canImport(Darwin)
    import Darwin
#else
    import Glibc
#endif

/// The path of a file to remove. Written once, before the handler that reads it is set.
nonisolated(unsafe) private var removed: UnsafeMutablePointer<CChar>?

/// Removes a file when one of the signals comes that end a process, and ends it.
func removeOnSignals(_ path: String) {
    removed = strdup(path)
    for number in [SIGTERM, SIGINT, SIGHUP] {
        // Nothing but calls that a handler may make.
        signal(number) { number in
            if let removed { unlink(removed) }
            _exit(128 + number)
        }
    }
}
