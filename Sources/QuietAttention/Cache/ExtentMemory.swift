// SPDX-License-Identifier: Apache-2.0
// ExtentMemory.swift - memory for the pages of caches: what is not written to takes none, and what is freed goes back.

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Memory that is the process's own business to map: an allocator would keep what is freed, and hand out memory that was
/// written to before as memory that was not.
///
/// An extent that is filled as a whole lies in large pages (2 MB) as far as it can: over a cache of 256 MB a decode step
/// took 1.4 times as long with pages of 4096 bytes. One that is filled token by token must not, since its first token would
/// cost it the whole: it gets them once what is unused is less than a third of a large page.
enum ExtentMemory {
    /// From here on memory is mapped; a mapping of less would leave much of its last page unused.
    static let leastMapped = 64 << 10

    /// Memory at a multiple of QATTN_ALIGNMENT, and of ``AlignedMemory/largePage`` if it is as long and addresses suffice; contents unknown.
    static let allocate: AlignedMemory.Allocate = { byteCount in
        byteCount < leastMapped ? AlignedMemory.allocate(byteCount) : map(byteCount)
    }

    static func free(_ address: UnsafeMutableRawPointer, byteCount: Int) {
        if byteCount < leastMapped { AlignedMemory.free(address) } else { munmap(address, byteCount) }
    }

    private static func map(_ byteCount: Int) -> UnsafeMutableRawPointer? {
        // No 64-bit system has addresses for 2^56 bytes.
        guard byteCount < 1 << 56 else { return nil }
        let page = Int(getpagesize())
        let length = (byteCount + page - 1) / page * page
        let spare = length < AlignedMemory.largePage ? 0 : AlignedMemory.largePage
        func pages(_ length: Int) -> UnsafeMutableRawPointer? {
            let start = mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0)
            return start == MAP_FAILED ? nil : start
        }
        // Under a limit on addresses small pages are better than none.
        guard spare > 0, let start = pages(length + spare) else { return pages(length) }
        // What stands before the first multiple of a large page, and behind the end, goes back.
        let before = (spare - Int(bitPattern: start) % spare) % spare
        if before > 0 { munmap(start, before) }
        if before < spare { munmap(start + before + length, spare - before) }
        return start + before
    }

    /// Says that an extent will be filled token by token, where the system's own choice might be large pages.
    static func expectTokens(_ address: UnsafeMutableRawPointer, byteCount: Int) {
        #if os(Linux)
            if byteCount >= AlignedMemory.largePage { madvise(address, byteCount, MADV_NOHUGEPAGE) }
        #endif
    }

    /// Asks for large pages for the whole of an extent, whether it was written to before or not.
    static func useLargePages(_ address: UnsafeMutableRawPointer, byteCount: Int, isWritten: Bool) {
        #if os(Linux)
            let length = byteCount / AlignedMemory.largePage * AlignedMemory.largePage
            guard length > 0 else { return }
            // Only wishes: where they are not granted, nothing changes. The second is of Linux 6.1 and later; without it the
            // system collects pages in its own time.
            madvise(address, length, MADV_HUGEPAGE)
            if isWritten { madvise(address, length, collapse) }
        #endif
    }

    /// MADV_COLLAPSE, which older headers do not have.
    private static let collapse: Int32 = 25
}
