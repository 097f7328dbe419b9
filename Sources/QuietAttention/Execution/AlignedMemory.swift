// SPDX-License-Identifier: Apache-2.0
// AlignedMemory.swift - memory of the system, aligned for the kernels, in large pages where there are some.

import CKernels

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Memory of the system at multiples of QATTN_ALIGNMENT, contents unknown.
enum AlignedMemory {
    /// nil when there is no such memory.
    typealias Allocate = @Sendable (_ byteCount: Int) -> UnsafeMutableRawPointer?

    /// Bytes of a large page on most CPUs. Keys and values that no cache holds are read at memory speed only if their
    /// addresses are found fast: with pages of 4096 bytes a decode step over 256 MB took 1.4 times as long.
    static let largePage = 2 << 20

    /// Asks for large pages where at least one fits. No 64-bit system has addresses for 2^56 bytes.
    static let allocate: Allocate = { byteCount in
        var address: UnsafeMutableRawPointer?
        let alignment = byteCount < largePage ? QATTN_ALIGNMENT : largePage
        guard byteCount < 1 << 56, posix_memalign(&address, alignment, byteCount) == 0 else { return nil }
        #if os(Linux)
            // Only a wish: where it is not granted, nothing changes.
            if byteCount >= largePage { madvise(address, byteCount / largePage * largePage, MADV_HUGEPAGE) }
        #endif
        return address
    }

    /// The next multiple of QATTN_ALIGNMENT.
    static func aligned(_ bytes: Int) -> Int { (bytes + QATTN_ALIGNMENT - 1) / QATTN_ALIGNMENT * QATTN_ALIGNMENT }

    static func free(_ address: UnsafeMutableRawPointer) {
        #if canImport(Darwin)
            Darwin.free(address)
        #elseif canImport(Glibc)
            Glibc.free(address)
        #elseif canImport(Musl)
            Musl.free(address)
        #endif
    }
}
