// SPDX-License-Identifier: Apache-2.0
// ReplacementFile.swift - a file that is complete and has yet to take its place, with what the user had set on the one before it.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

/// A file that is written completely, under a hidden name in the folder of its destination, and waits to take its place.
/// What stays when it replaces another is said at `PreparedFile` of Safetensors.
package final class ReplacementFile {
    /// Where links lead from the path that the caller named.
    private let destination: String
    package let temporary: String
    /// Of the file to be replaced; nil: there is none.
    private let previous: FileStatus?
    private var isCommitted = false

    /// Creates the hidden file and lets `write` fill it.
    package init(_ path: String, _ write: (FileDescriptor) throws -> Void) throws {
        destination = try followLinks(path)
        previous = FileDescriptor.status(destination)
        temporary = Self.hiddenPath(beside: destination)
        guard previous?.isRegularFile ?? true else { throw SystemError("it exists and is not a regular file") }
        if previous != nil, access(destination, W_OK) != 0 { throw SystemError.last }
        // What nobody else may read is never readable, not even for a moment.
        let file = try FileDescriptor.creating(temporary, mode: previous == nil ? 0o666 : 0o600)
        do {
            if let previous { try file.adopt(previous) }
            try write(file)
        } catch {
            removeFile(temporary)
            throw error
        }
    }

    deinit {
        if !isCommitted { removeFile(temporary) }
    }

    /// Gives the file its place. Where that fails, what was there is still there, but for a file with several names, of which a
    /// part may have been overwritten.
    package func commit() throws {
        guard !isCommitted else { return }
        if let previous, previous.linkCount > 1 {
            try overwrite(previous)
            removeFile(temporary)
        } else {
            try moveFile(temporary, to: destination)
        }
        isCommitted = true
    }

    private func overwrite(_ previous: FileStatus) throws {
        let source = try FileDescriptor.reading(temporary)
        let target = try FileDescriptor.overwriting(destination)
        let (old, new) = (try target.status(), try source.status())
        guard old.isSameFile(as: previous) else { throw SystemError("it was replaced meanwhile") }
        try target.makeRoom(from: old.byteCount, to: new.byteCount)
        var part = [UInt8](repeating: 0, count: min(new.byteCount, 1 << 20))
        var done = 0
        while done < new.byteCount {
            part.removeLast(max(0, part.count - (new.byteCount - done)))
            try part.withUnsafeMutableBytes { try source.read(into: $0, from: done) }
            try part.withUnsafeBytes { try target.write($0) }
            done += part.count
        }
        try target.cut(to: new.byteCount)
    }

    /// Returns a name for a hidden file in the folder of `path` that no other file has.
    private static func hiddenPath(beside path: String) -> String {
        "\(folder(of: path)).quiet-\(getpid())-\(String(UInt64.random(in: 0...UInt64.max), radix: 16))"
    }
}

/// With the slash at its end; empty: the folder that the process is in.
private func folder(of path: String) -> Substring { path.lastIndex(of: "/").map { path[...$0] } ?? "" }

/// Returns where the links of `path` itself lead, be there a file or none.
private func followLinks(_ path: String) throws -> String {
    guard !path.utf8.contains(0) else { throw SystemError("a path has no zero byte") }
    var path = path
    // As many as Linux follows.
    for _ in 0..<40 {
        guard !path.hasPrefix("/dev/fd/"), !(path.hasPrefix("/proc/") && path.contains("/fd/")) else {
            throw SystemError("it leads to an open file of a process, which would go on in the file that is replaced")
        }
        var target = [UInt8](repeating: 0, count: 4097)
        let count = target.withUnsafeMutableBytes {
            readlink(path, $0.baseAddress!.assumingMemoryBound(to: CChar.self), $0.count)
        }
        // No link, or nothing at all.
        if count < 0 { return path }
        let link = String(decoding: target[..<count], as: UTF8.self)
        path = link.hasPrefix("/") ? link : folder(of: path) + link
    }
    throw SystemError("too many symbolic links")
}
