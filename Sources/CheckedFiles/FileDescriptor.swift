// SPDX-License-Identifier: Apache-2.0
// FileDescriptor.swift - the few calls of POSIX that reading and writing a file need, with errors instead of errno.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Musl)
    import Musl
#else
    import Glibc
#endif

/// Why a call failed, in the words of the system.
package struct SystemError: Error {
    package let reason: String

    package init(_ reason: String) {
        self.reason = reason
    }

    /// The failure of the call just made on this thread.
    static var last: SystemError { SystemError(String(cString: strerror(errno))) }
}

/// An open file, closed when the last reference goes.
package final class FileDescriptor: Sendable {
    private let descriptor: Int32

    private init(_ descriptor: Int32) {
        self.descriptor = descriptor
    }

    deinit {
        close(descriptor)
    }

    /// Opens an existing file for reading. Anything but a regular file is an error: no other has a length to check against.
    package static func reading(_ path: String) throws -> FileDescriptor {
        guard !path.utf8.contains(0) else { throw SystemError("a path has no zero byte") }
        // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        let file = FileDescriptor(try check(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)))
        guard try file.status().isRegularFile else { throw SystemError("not a regular file") }
        return file
    }

    /// Creates a file for writing; one that exists is an error. The process's mask takes permissions away from `mode`.
    package static func creating(_ path: String, mode: mode_t) throws -> FileDescriptor {
        FileDescriptor(try check(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode)))
    }

    /// Opens an existing file, no link, for writing over what it holds.
    package static func overwriting(_ path: String) throws -> FileDescriptor {
        FileDescriptor(try check(open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)))
    }

    /// Returns the identity of the file at `path`, links followed; nil if there is none.
    package static func status(_ path: String) -> FileStatus? {
        var status = stat()
        return stat(path, &status) == 0 ? FileStatus(status) : nil
    }

    package func status() throws -> FileStatus {
        var status = stat()
        try Self.check(fstat(descriptor, &status))
        return FileStatus(status)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    package func read(into buffer: UnsafeMutableRawBufferPointer, from offset: Int) throws {
        try Self.transfer(buffer.count) { part in
            let count = pread(
                descriptor, buffer.baseAddress! + part.lowerBound, part.count, off_t(offset + part.lowerBound))
            if count == 0 { throw SystemError("the file ends too early") }
            return count
        }
    }

    /// Writes `buffer` to the file from `offset` on.
    package func write(_ buffer: UnsafeRawBufferPointer, at offset: Int) throws {
        try Self.transfer(buffer.count) { part in
            pwrite(descriptor, buffer.baseAddress! + part.lowerBound, part.count, off_t(offset + part.lowerBound))
        }
    }

    /// Appends `buffer` to the file.
    package func write(_ buffer: UnsafeRawBufferPointer) throws {
        try Self.transfer(buffer.count) { part in
            let start = buffer.baseAddress! + part.lowerBound
            #if canImport(Darwin)
                return Darwin.write(descriptor, start, part.count)
            #elseif canImport(Musl)
                return Musl.write(descriptor, start, part.count)
            #else
                return Glibc.write(descriptor, start, part.count)
            #endif
        }
    }

    /// Transfers `byteCount` bytes, by as many system calls as that takes.
    ///
    /// - Parameter call: transfers some of these bytes: how many, or -1 with the reason in errno.
    private static func transfer(_ byteCount: Int, _ call: (Range<Int>) throws -> Int) throws {
        var done = 0
        while done < byteCount {
            let count = try call(done..<min(byteCount, done + maximumTransfer))
            if count < 0, errno == EINTR { continue }
            if count < 0 { throw SystemError.last }
            done += count
        }
    }

    // MARK: - What is set on a file

    /// Takes over permissions from another file, and its owner and group where the system allows.
    func adopt(_ other: FileStatus) throws {
        var mode = other.permissions
        if fchown(descriptor, other.owner, other.group) != 0 {
            // Only root gives files away. Programs must not run as another user than they did.
            mode &= 0o1777
            // A group one is in oneself can be kept. If not, it may do no more than everybody.
            if fchown(descriptor, uid_t.max, other.group) != 0 { mode &= ~0o070 | mode << 3 }
        }
        if try status().permissions != mode { try Self.check(fchmod(descriptor, mode)) }
    }

    /// Makes a file longer, with room for all of it; where there is none, it is as long as before.
    package func makeRoom(from old: Int, to new: Int) throws {
        guard new > old else { return }
        #if canImport(Darwin)
            try Self.check(ftruncate(descriptor, off_t(new)))
        #else
            let error = posix_fallocate(descriptor, off_t(old), off_t(new - old))
            guard error == 0 else {
                try cut(to: old)
                throw SystemError(String(cString: strerror(error)))
            }
        #endif
    }

    /// Waits until the system has written the file to its disk.
    package func synchronise() throws { try Self.check(fsync(descriptor)) }

    func cut(to byteCount: Int) throws { try Self.check(ftruncate(descriptor, off_t(byteCount))) }

    /// macOS refuses transfers of 2^31 bytes and more.
    private static let maximumTransfer = 1 << 30

    @discardableResult
    private static func check(_ result: Int32) throws -> Int32 {
        if result < 0 { throw SystemError.last }
        return result
    }
}

/// What a file is, how long, and when it was last written to.
package struct FileStatus {
    package let isRegularFile: Bool
    package let byteCount: Int
    /// How many names it has.
    package let linkCount: Int
    package let owner: uid_t
    package let group: gid_t
    /// The last twelve bits of the mode: who may do what, and the bits before them.
    package let permissions: mode_t
    private let device: dev_t
    private let number: ino_t
    private let modificationSeconds, modificationNanoseconds: Int

    init(_ status: stat) {
        linkCount = Int(status.st_nlink)
        (owner, group, permissions) = (status.st_uid, status.st_gid, status.st_mode & 0o7777)
        (device, number) = (status.st_dev, status.st_ino)
        isRegularFile = status.st_mode & S_IFMT == S_IFREG
        byteCount = Int(status.st_size)
        #if canImport(Darwin)
            let modified = status.st_mtimespec
        #else
            let modified = status.st_mtim
        #endif
        (modificationSeconds, modificationNanoseconds) = (modified.tv_sec, modified.tv_nsec)
    }

    package func isSameFile(as other: FileStatus) -> Bool { device == other.device && number == other.number }

    /// Whether nothing was written to the file, as far as the system tells, since it had this other status.
    package func isUnchanged(since other: FileStatus) -> Bool {
        byteCount == other.byteCount && modificationSeconds == other.modificationSeconds
            && modificationNanoseconds == other.modificationNanoseconds
    }
}

/// Gives the file `source` the name `destination`, which loses the file it named before. Both lie in one folder.
func moveFile(_ source: String, to destination: String) throws {
    if rename(source, destination) != 0 { throw SystemError.last }
}

/// Removes a file that may or may not be there.
package func removeFile(_ path: String) {
    unlink(path)
}

/// Whether so many bytes can be had: the machine has them, and the system gives them.
package func memoryIsAvailable(_ byteCount: Int) -> Bool {
    // Systems that promise more than they have would end the process when it takes the promise up.
    let (pages, pageSize) = (sysconf(Int32(_SC_PHYS_PAGES)), sysconf(Int32(_SC_PAGESIZE)))
    if pages > 0, pageSize > 0, byteCount / pageSize >= pages { return false }
    guard byteCount > 1 << 20 else { return true }
    // A pair of malloc and free would be optimised away.
    let memory = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0)
    guard let memory, memory != MAP_FAILED else { return false }
    munmap(memory, byteCount)
    return true
}
