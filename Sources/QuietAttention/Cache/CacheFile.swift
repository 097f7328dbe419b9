// SPDX-License-Identifier: Apache-2.0
// CacheFile.swift - reading a file whole, and replacing one whole.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// A file that is being written beside the one that it will replace.
struct CacheFile {
    private let descriptor: Int32
    private let path: String

    private static func failure(_ path: String, _ action: String, _ code: Int32 = errno) -> AttentionError {
        AttentionError(.file, "path", expected: "\"\(path)\" to be \(action)", found: String(cString: strerror(code)))
    }

    /// Writes a file, then puts it in the place of the one at `path`.
    static func replace(
        _ path: String, _ body: (CacheFile) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        let target = try resolved(try checked(path))
        var status = stat()
        let isThere = stat(target, &status) == 0
        guard !isThere || status.st_mode & S_IFMT == S_IFREG else {
            throw AttentionError(.file, "path", expected: "a regular file, or none yet", found: path)
        }
        let temporary = "\(target).\(getpid()).\(UInt32.random(in: 0...UInt32.max)).tmp"
        let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else { throw failure(path, "written") }
        let file = CacheFile(descriptor: descriptor, path: path)
        do throws(AttentionError) {
            do throws(AttentionError) {
                if isThere, fchmod(descriptor, status.st_mode & 0o7777) != 0 {
                    throw failure(path, "written with its mode")
                }
                try body(file)
                guard fsync(descriptor) == 0 else { throw failure(path, "written") }
            } catch {
                close(descriptor)
                throw error
            }
            guard close(descriptor) == 0 else { throw failure(path, "written") }
            guard rename(temporary, target) == 0 else { throw failure(path, "replaced") }
        } catch {
            unlink(temporary)
            throw error
        }
    }

    /// C would take a path with a zero byte for a shorter one.
    private static func checked(_ path: String) throws(AttentionError) -> String {
        guard !path.utf8.contains(0) else {
            throw AttentionError(.file, "path", expected: "a path without a zero byte", found: path.debugDescription)
        }
        return path
    }

    /// Where symbolic links lead, to what is not there yet, too.
    private static func resolved(_ path: String) throws(AttentionError) -> String {
        if let found = realpath(path, nil) {
            defer { free(found) }
            return String(cString: found)
        }
        guard errno != ELOOP else { throw failure(path, "written") }
        let link = [UInt8](unsafeUninitializedCapacity: Int(PATH_MAX)) { buffer, count in
            count = max(0, readlink(path, UnsafeMutableRawPointer(buffer.baseAddress!), buffer.count))
        }
        if link.isEmpty { return path }
        let target = String(decoding: link, as: UTF8.self)
        // Relative to the folder of the link. A chain without an end is ELOOP by now.
        if target.hasPrefix("/") { return try resolved(target) }
        let folder = path.lastIndex(of: "/").map { path[...$0] } ?? ""
        return try resolved(folder + target)
    }

    func write(_ bytes: UnsafeRawBufferPointer) throws(AttentionError) {
        var rest = bytes
        while !rest.isEmpty {
            #if canImport(Darwin)
                let written = Darwin.write(descriptor, rest.baseAddress, rest.count)
            #elseif canImport(Glibc)
                let written = Glibc.write(descriptor, rest.baseAddress, rest.count)
            #elseif canImport(Musl)
                let written = Musl.write(descriptor, rest.baseAddress, rest.count)
            #endif
            if written < 0 {
                if errno == EINTR { continue }
                throw Self.failure(path, "written")
            }
            rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(written))
        }
    }

    /// All bytes of a regular file.
    static func bytes(_ path: String) throws(AttentionError) -> [UInt8] {
        // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        let descriptor = open(try checked(path), O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw failure(path, "read") }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw failure(path, "read") }
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw AttentionError(.file, "path", expected: "a regular file", found: path)
        }
        let size = Int(status.st_size)
        try CheckedMemory.check("path", count: size, of: UInt8.self)
        var code: Int32 = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            while count < size {
                let got = read(descriptor, buffer.baseAddress! + count, size - count)
                if got < 0, errno == EINTR { continue }
                // A file that has become shorter is found out by what its bytes say.
                if got <= 0 {
                    code = got < 0 ? errno : 0
                    break
                }
                count += got
            }
        }
        if code != 0 { throw failure(path, "read", code) }
        return bytes
    }
}
