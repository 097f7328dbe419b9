// SPDX-License-Identifier: Apache-2.0
// KeyValuePage.swift - the unit in which a key/value cache grows, is shared and is copied.

import CKernels

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Packed keys and values of one block of tokens: the blocks of all key/value heads, one after another.
///
/// Caches share pages. One that is the only owner of a page may write to it; others copy it first. No page is written to
/// while a second cache can read it, so pages need no lock.
final class KeyValuePage: @unchecked Sendable {
    let address: UnsafeMutableRawPointer
    private let byteCount: Int

    /// Memory at a multiple of QATTN_ALIGNMENT; nil when there is none.
    typealias Allocate = @Sendable (_ byteCount: Int) -> UnsafeMutableRawPointer?

    /// The system's. No 64-bit system has addresses for 2^56 bytes.
    static let systemMemory: Allocate = { byteCount in
        var address: UnsafeMutableRawPointer?
        guard byteCount < 1 << 56, posix_memalign(&address, QATTN_ALIGNMENT, byteCount) == 0 else { return nil }
        return address
    }

    /// A page whose contents are unknown: what was never packed is never read into a result.
    init(byteCount: Int, _ allocate: Allocate) throws(AttentionError) {
        guard let address = allocate(byteCount) else {
            throw AttentionError(.memory, "cache", expected: "\(byteCount) bytes of memory for a page", found: "none")
        }
        self.address = address
        self.byteCount = byteCount
    }

    convenience init(copying other: KeyValuePage, _ allocate: Allocate) throws(AttentionError) {
        try self.init(byteCount: other.byteCount, allocate)
        address.copyMemory(from: other.address, byteCount: byteCount)
    }

    deinit {
        free(address)
    }
}
