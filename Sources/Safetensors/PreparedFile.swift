// SPDX-License-Identifier: Apache-2.0
// PreparedFile.swift - a file that is complete and has yet to take its place, with what the user had set on the one before it.

import CheckedFiles

/// A file that is written completely, under a hidden name in the folder of its destination, and waits to take its place.
///
/// ``commit()`` puts it there; without that it is removed when the last reference goes, and nothing has changed. What the
/// user has set on a file stays when it is replaced:
///
/// - its permissions, and as far as the system allows its owner and group. Where the group cannot be kept, it may do no
///   more than everybody. Access control lists and extended attributes are not kept;
/// - a symbolic link stays one: the file that it leads to is replaced, or made;
/// - a file with several names (hard links) keeps them all. This is the one case in which the file is not replaced but
///   overwritten, once everything is written beside it and room is made, so that a crash or an error of the disk in that moment may leave a part;
/// - a file that may not be written to is not replaced.
public final class PreparedFile {
    /// As the caller named it.
    let path: String
    private let file: ReplacementFile

    /// Creates the hidden file and lets `write` fill it.
    init(_ path: String, _ write: (FileDescriptor) throws -> Void) throws(SafetensorsError) {
        self.path = path
        file = try during(.write, path) { try ReplacementFile(path, write) }
    }

    /// A file of this text.
    package convenience init(text: String, for path: String) throws(SafetensorsError) {
        try self.init(path) { file in try Array(text.utf8).withUnsafeBytes { try file.write($0) } }
    }

    var temporary: String { file.temporary }

    /// Gives the file its place. Where that fails, what was there is still there, but for a file with several names, of which a
    /// part may have been overwritten.
    ///
    /// - Throws: ``SafetensorsError/cannotWrite(path:reason:)``.
    public func commit() throws(SafetensorsError) { try during(.write, path) { try file.commit() } }
}
