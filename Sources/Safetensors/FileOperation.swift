// SPDX-License-Identifier: Apache-2.0
// FileOperation.swift - the system's failures as errors of this module.

import CheckedFiles

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
