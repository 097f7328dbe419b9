// SPDX-License-Identifier: Apache-2.0
// KeyValuePage.swift - the unit in which a key/value cache grows, is shared and is copied.

import CKernels
import Synchronization

/// Packed keys and values of one block of tokens: a block of each key/value head.
///
/// Caches share pages. One that is the only owner of a page may write to it; others copy it first. No page is written to
/// while a second cache can read it, so pages need no lock.
///
/// Pages that were allocated together lie head by head, `[heads][pages][block]`: what attention reads of a head from one
/// page after another is one run of memory, which is read faster than pieces.
final class KeyValuePage: @unchecked Sendable {
    let extent: KeyValueExtent
    /// Of the extent's pages.
    private let index: Int
    /// Whether tokens were written here. Only the page's only owner changes it.
    private var isUsed = false

    fileprivate init(_ extent: KeyValueExtent, index: Int) {
        self.extent = extent
        self.index = index
    }

    /// The block of one head.
    func block(head: Int) -> UnsafeMutableRawPointer {
        extent.address + (head * extent.pages + index) * extent.blockBytes
    }

    /// Says that tokens will be written here: by the page's only owner, before it does.
    func beginUse() {
        if isUsed { return }
        isUsed = true
        extent.beginPage()
    }

    func copyBlocks(from other: KeyValuePage) {
        for head in 0..<extent.heads {
            block(head: head).copyMemory(from: other.block(head: head), byteCount: extent.blockBytes)
        }
    }

    /// Pages of one extent, whose contents are unknown: what was never packed is never read into a result.
    ///
    /// - Parameter filled: how many of them are filled at once, and not token by token.
    static func pages(
        _ count: Int, heads: Int, blockBytes: Int, filled: Int, _ allocate: AlignedMemory.Allocate
    ) throws(AttentionError) -> [KeyValuePage] {
        let (bytes, overflow) = count.multipliedReportingOverflow(by: heads * blockBytes)
        guard !overflow, let address = allocate(bytes) else {
            throw AttentionError(
                .memory, "cache",
                expected: "memory for \(count) page\(count == 1 ? "" : "s") of \(heads * blockBytes) bytes",
                found: "none")
        }
        let extent = KeyValueExtent(address, pages: count, heads: heads, blockBytes: blockBytes, filled: filled)
        return (0..<count).map { KeyValuePage(extent, index: $0) }
    }
}

/// The memory of pages that were allocated together. It goes with the last of them.
final class KeyValueExtent: @unchecked Sendable {
    let address: UnsafeMutableRawPointer
    fileprivate let pages, heads, blockBytes: Int
    /// Pages that tokens were written to: the others take no memory, unless they are the rest of a large page.
    private let usedPages = Atomic(0)
    /// With so many in use the extent is put into large pages, since the others would fill no more than a third of one; 0:
    /// it lies in them from the beginning.
    private let pagesBeforeLarge: Int

    fileprivate init(_ address: UnsafeMutableRawPointer, pages: Int, heads: Int, blockBytes: Int, filled: Int) {
        self.address = address
        self.pages = pages
        self.heads = heads
        self.blockBytes = blockBytes
        let least = pages - min(pages - 1, AlignedMemory.largePage / 3 / (heads * blockBytes))
        pagesBeforeLarge = filled >= least ? 0 : least
        if pagesBeforeLarge == 0 {
            ExtentMemory.useLargePages(address, byteCount: reservedBytes, isWritten: false)
        } else {
            ExtentMemory.expectTokens(address, byteCount: reservedBytes)
        }
    }

    /// Whether large pages were asked for.
    var liesInLargePages: Bool { usedPages.load(ordering: .relaxed) >= pagesBeforeLarge }

    /// Bytes of addresses.
    var reservedBytes: Int { pages * heads * blockBytes }

    /// Bytes of the pages in use.
    var byteCount: Int { usedPages.load(ordering: .relaxed) * heads * blockBytes }

    fileprivate func beginPage() {
        let used = usedPages.wrappingAdd(1, ordering: .relaxed).newValue
        if used == pagesBeforeLarge {
            ExtentMemory.useLargePages(address, byteCount: reservedBytes, isWritten: true)
        }
    }

    deinit {
        ExtentMemory.free(address, byteCount: reservedBytes)
    }
}
