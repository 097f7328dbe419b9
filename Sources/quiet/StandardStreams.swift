// SPDX-License-Identifier: Apache-2.0
// StandardStreams.swift - writing to standard output and error where a reader may have left, or the disk be full.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

/// Sees to it that a reader who left, or a limit on the size of files, is an error of a write, not the end of the process in
/// the middle of its work; and that no file that is opened gets the number of a standard stream that is closed, and with it what is meant for that.
func prepareStandardStreams() {
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
    for descriptor in [STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO] where fcntl(descriptor, F_GETFD) == -1 {
        // For reading, so that writing to it fails. It gets the lowest number that is free, which is this one.
        _ = open("/dev/null", O_RDONLY)
    }
}

/// Returns whether all of `text` could be written; if not, `errno` says why.
func writeAll(_ text: String, to descriptor: Int32) -> Bool {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
        let count = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
        if count < 0, errno == EINTR { continue }
        if count < 0 { return false }
        bytes = bytes.dropFirst(count)
    }
    return true
}
