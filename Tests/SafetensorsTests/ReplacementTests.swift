// SPDX-License-Identifier: Apache-2.0
// ReplacementTests.swift - a file that is replaced keeps what the user had set on it, and is replaced as a whole or not at all.

import CheckedFiles
import Foundation
import Testing

@testable import Safetensors

@Suite struct ReplacementTests {
    let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
    }

    private static let tensors = [NamedTensor(name: "x", shape: [2], values: [1, 2])]

    private func write(to name: String) throws {
        try SafetensorsFile.write(Self.tensors, to: folder(name))
    }

    private func status(_ name: String) throws -> FileStatus { try #require(FileDescriptor.status(folder(name))) }

    private func isWritten(_ name: String) throws -> Bool {
        try SafetensorsFile(path: folder(name)).floats(named: "x") == [1, 2]
    }

    private func isLink(_ name: String) -> Bool {
        (try? FileManager.default.destinationOfSymbolicLink(atPath: folder(name))) != nil
    }

    private func link(_ name: String, to target: String) throws {
        try FileManager.default.createSymbolicLink(atPath: folder(name), withDestinationPath: target)
    }

    /// C would take such a path for a shorter one, which names another file.
    @Test func pathsWithZeroBytesAreRefused() throws {
        let path = try folder.file([1], name: "out")
        #expect(throws: SafetensorsError.self) { try write(to: "out\0x") }
        #expect(try bytes(ofFile: path) == [1] && folder.names == ["out"])
    }

    // MARK: - Permissions

    @Test(arguments: [0o600, 0o640, 0o666, 0o755, 0o7777] as [mode_t])
    func permissionsStay(mode: mode_t) throws {
        #expect(chmod(try folder.file([1], name: "out"), mode) == 0)
        try write(to: "out")
        #expect(try status("out").permissions == mode && isWritten("out"))
        #expect(try folder.names == ["out"])
    }

    @Test func newFilesHaveTheUsualPermissions() throws {
        try write(to: "out")
        let usual = folder("usual")
        #expect(FileManager.default.createFile(atPath: usual, contents: nil))
        #expect(try status("out").permissions == status("usual").permissions)
    }

    /// Only root can make another's file, and only another than root can be refused.
    @Test(.enabled(if: geteuid() == 0))
    func ownersStay() throws {
        #expect(chown(try folder.file([1], name: "out"), 12_345, 23_456) == 0)
        try write(to: "out")
        #expect(try status("out").owner == 12_345 && status("out").group == 23_456)
    }

    @Test(.enabled(if: geteuid() != 0))
    func protectedFilesAreNotReplaced() throws {
        let path = try folder.file([1], name: "out")
        #expect(chmod(path, 0o444) == 0)
        #expect(throws: SafetensorsError.cannotWrite(path: path, reason: "Permission denied")) { try write(to: "out") }
        #expect(try bytes(ofFile: path) == [1] && folder.names == ["out"])
    }

    // MARK: - Links

    @Test func symbolicLinksStay() throws {
        try FileManager.default.createDirectory(atPath: folder("deep"), withIntermediateDirectories: false)
        _ = try folder.file([1], name: "target")
        #expect(chmod(folder("target"), 0o600) == 0)
        try link("first", to: "deep/second")
        try link("deep/second", to: folder("deep/third"))
        try link("deep/third", to: "../target")
        try write(to: "first")
        for name in ["first", "deep/second", "deep/third"] { #expect(isLink(name), "\(name)") }
        #expect(try !isLink("target") && isWritten("target") && status("target").permissions == 0o600)
        #expect(try folder.names == ["deep", "first", "target"])
    }

    /// The file is made where the link leads.
    @Test func linksToNothing() throws {
        try link("link", to: "target")
        try write(to: "link")
        #expect(try isLink("link") && !isLink("target") && isWritten("target"))
    }

    #if os(Linux)
        /// A replaced file would leave the stream in one without a name.
        @Test func openFilesAreNotReplaced() throws {
            let file = try #require(FileHandle(forUpdatingAtPath: try folder.file([1], name: "stream")))
            try link("out", to: "/proc/self/fd/\(file.fileDescriptor)")
            for path in [folder("out"), "/proc/self/fd/\(file.fileDescriptor)", "/dev/fd/\(file.fileDescriptor)"] {
                #expect(throws: SafetensorsError.self) { try SafetensorsFile.write(Self.tensors, to: path) }
            }
            #expect(try bytes(ofFile: folder("stream")) == [1] && folder.names == ["out", "stream"])
        }
    #endif

    @Test func linksInACircle() throws {
        try link("a", to: "b")
        try link("b", to: "a")
        #expect(throws: SafetensorsError.cannotWrite(path: folder("a"), reason: "too many symbolic links")) {
            try write(to: "a")
        }
        #expect(try folder.names == ["a", "b"])
    }

    /// All names of a file, be it longer than the new one, shorter, or longer than a part of the copying.
    @Test(arguments: [1, 100, 3_000_000])
    func hardLinksStay(length: Int) throws {
        let path = try folder.file([UInt8](repeating: 7, count: length), name: "one")
        #expect(Foundation.link(path, folder("other")) == 0)
        let before = try status("one")
        try write(to: "one")
        #expect(try isWritten("one") && isWritten("other"))
        #expect(try status("one").isSameFile(as: before) && status("other").isSameFile(as: before))
        let values = (0..<700_000).map { Float($0) }
        try SafetensorsFile.write([NamedTensor(name: "y", shape: [700_000], values: values)], to: folder("other"))
        #expect(try SafetensorsFile(path: path).floats(named: "y") == values)
        #expect(try folder.names == ["one", "other"])
    }

    @Test func hardLinksReplacedMeanwhile() throws {
        let path = try folder.file([7], name: "one")
        #expect(Foundation.link(path, folder("other")) == 0)
        let prepared = try SafetensorsFile.prepare(Self.tensors, for: path)
        #expect(rename(try folder.file([8], name: "new"), path) == 0)
        #expect(throws: SafetensorsError.cannotWrite(path: path, reason: "it was replaced meanwhile")) {
            try prepared.commit()
        }
        #expect(try bytes(ofFile: path) == [8] && bytes(ofFile: folder("other")) == [7])
    }

    // MARK: - All or nothing

    @Test func nothingChangesBeforeTheCommit() throws {
        let path = try folder.file([1], name: "out")
        do {
            let prepared = try SafetensorsFile.prepare(Self.tensors, for: path)
            #expect(try bytes(ofFile: path) == [1] && folder.names.count == 2)
            withExtendedLifetime(prepared) {}
        }
        #expect(try bytes(ofFile: path) == [1] && folder.names == ["out"])
        let prepared = try SafetensorsFile.prepare(Self.tensors, for: path)
        try prepared.commit()
        try prepared.commit()
        #expect(try isWritten("out") && folder.names == ["out"])
    }

    /// What is to be private is so from the first byte on.
    @Test func preparedFilesArePrivate() throws {
        #expect(chmod(try folder.file([1], name: "out"), 0o600) == 0)
        let prepared = try SafetensorsFile.prepare(Self.tensors, for: folder("out"))
        for name in try folder.names { #expect(try status(name).permissions == 0o600, "\(name)") }
        try prepared.commit()
    }
}
