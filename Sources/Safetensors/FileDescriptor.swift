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
struct SystemError: Error {
    let reason: String

    init(_ reason: String) {
        self.reason = reason
    }

    /// The failure of the call just made on this thread.
    static var last: SystemError { SystemError(String(cString: strerror(errno))) }
}

enum FileOperation {
    case open, read, write
}

/// Runs `body`, which does `operation` to the file at `path`. The system's failures become errors that say so.
func during<Result>(
    _ operation: FileOperation, _ path: String, _ body: () throws -> Result
) throws(SafetensorsError) -> Result {
    do {
        return try body()
    } catch let error as SafetensorsError {
        throw error
    } catch {
        let reason = (error as? SystemError)?.reason ?? "\(error)"
        switch operation {
        case .open: throw .cannotOpen(path: path, reason: reason)
        case .read: throw .cannotRead(path: path, reason: reason)
        case .write: throw .cannotWrite(path: path, reason: reason)
        }
    }
}

/// An open file, closed when the last reference goes.
final class FileDescriptor: Sendable {
    private let descriptor: Int32

    private init(_ descriptor: Int32) {
        self.descriptor = descriptor
    }

    deinit {
        close(descriptor)
    }

    /// Opens an existing file for reading. Anything but a regular file is an error: no other has a length to check against.
    static func reading(_ path: String) throws -> FileDescriptor {
        // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        let file = FileDescriptor(try check(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)))
        guard try file.status().isRegularFile else { throw SystemError("not a regular file") }
        return file
    }

    /// Creates a file for writing; one that exists is an error.
    static func creating(_ path: String) throws -> FileDescriptor {
        FileDescriptor(try check(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)))
    }

    /// Returns the identity of the file at `path`, links followed; nil if there is none.
    static func status(_ path: String) -> FileStatus? {
        var status = stat()
        return stat(path, &status) == 0 ? FileStatus(status) : nil
    }

    func status() throws -> FileStatus {
        var status = stat()
        try Self.check(fstat(descriptor, &status))
        return FileStatus(status)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    func read(into buffer: UnsafeMutableRawBufferPointer, from offset: Int) throws {
        var done = 0
        while done < buffer.count {
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[done...].prefix(Self.maximumTransfer))
            let count = pread(descriptor, part.baseAddress, part.count, off_t(offset + done))
            if count < 0, errno == EINTR { continue }
            if count < 0 { throw SystemError.last }
            if count == 0 { throw SystemError("the file ends too early") }
            done += count
        }
    }

    /// Appends `buffer` to the file.
    func write(_ buffer: UnsafeRawBufferPointer) throws {
        var done = 0
        while done < buffer.count {
            let part = UnsafeRawBufferPointer(rebasing: buffer[done...].prefix(Self.maximumTransfer))
            #if canImport(Darwin)
                let count = Darwin.write(descriptor, part.baseAddress, part.count)
            #elseif canImport(Musl)
                let count = Musl.write(descriptor, part.baseAddress, part.count)
            #else
                let count = Glibc.write(descriptor, part.baseAddress, part.count)
            #endif
            if count < 0, errno == EINTR { continue }
            if count < 0 { throw SystemError.last }
            done += count
        }
    }

    /// macOS refuses transfers of 2^31 bytes and more.
    private static let maximumTransfer = 1 << 30

    @discardableResult
    private static func check(_ result: Int32) throws -> Int32 {
        if result < 0 { throw SystemError.last }
        return result
    }
}

/// What a file is, and which.
struct FileStatus {
    let isRegularFile: Bool
    let byteCount: Int

    init(_ status: stat) {
        isRegularFile = status.st_mode & S_IFMT == S_IFREG
        byteCount = Int(status.st_size)
    }
}

/// Gives the file `source` the name `destination`, which loses the file it named before. Both lie in one folder.
func moveFile(_ source: String, to destination: String) throws {
    if rename(source, destination) != 0 { throw SystemError.last }
}

/// Removes a file that may or may not be there.
func removeFile(_ path: String) {
    unlink(path)
}
