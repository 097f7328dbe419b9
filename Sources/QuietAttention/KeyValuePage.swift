// SPDX-License-Identifier: Apache-2.0
// KeyValuePage.swift - the unit in which a key/value cache grows, is shared and is copied.

import CKernels

/// Packed keys and values of one block of tokens: the blocks of all key/value heads, one after another.
///
/// Caches share pages. One that is the only owner of a page may write to it; others copy it first. No page is written to
/// while a second cache can read it, so pages need no lock.
final class KeyValuePage: @unchecked Sendable {
    let address: UnsafeMutableRawPointer
    private let extent: KeyValueExtent

    fileprivate init(_ extent: KeyValueExtent, at address: UnsafeMutableRawPointer) {
        self.extent = extent
        self.address = address
    }

    /// Adjacent pages whose contents are unknown: what was never packed is never read into a result.
    static func pages(
        _ count: Int, byteCount: Int, _ allocate: AlignedMemory.Allocate
    ) throws(AttentionError) -> [KeyValuePage] {
        let (bytes, overflow) = count.multipliedReportingOverflow(by: byteCount)
        guard !overflow, let address = allocate(bytes) else {
            throw AttentionError(
                .memory, "cache", expected: "memory for \(count) pages of \(byteCount) bytes", found: "none")
        }
        let extent = KeyValueExtent(address)
        return (0..<count).map { KeyValuePage(extent, at: address + $0 * byteCount) }
    }
}

/// The memory of pages that were allocated together. It goes with the last of them.
private final class KeyValueExtent {
    private let address: UnsafeMutableRawPointer

    init(_ address: UnsafeMutableRawPointer) { self.address = address }

    deinit {
        AlignedMemory.free(address)
    }
}
