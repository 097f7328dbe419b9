// SPDX-License-Identifier: Apache-2.0
// KeyValueCache+Saving.swift - a cache as bytes, and back: to keep a prompt that was read once.

import CKernels

extension KeyValueCache {
    // MARK: - Saving

    /// The tokens of this cache as bytes, which `restore(from:)` reads on any machine.
    ///
    /// - Returns: what ``write(to:)`` writes: the pages held, and 96 bytes.
    /// - Throws: ``AttentionError`` of kind `memory`, or `composition` (tokens with positions of their own, a tree of drafts:
    ///   take it back first).
    public func savedBytes() throws(AttentionError) -> [UInt8] {
        let count = SavedCacheHeader.byteCount + pages.count * pageBytes + 8
        try CheckedMemory.check("bytes", count: count, of: UInt8.self)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count)
        try forEachSavedPart { part throws(AttentionError) in bytes.append(contentsOf: part) }
        return bytes
    }

    /// Calls `body` with the parts of what is saved, from the first to the last.
    private func forEachSavedPart(_ body: CacheFile.Write) throws(AttentionError) {
        guard tokenPositions.isEmpty else {
            throw AttentionError(
                .composition, "cache", expected: "tokens that stand where they lie, to be saved",
                found: "tokens with positions of their own")
        }
        var checksum = Checksum()
        func write(_ part: UnsafeRawBufferPointer) throws(AttentionError) {
            checksum.add(part)
            try body(part)
        }
        try SavedCacheHeader(self).words.map(\.littleEndian).withBytes(write)
        let rest = count % Self.pageTokens
        for (index, page) in pages.enumerated() {
            for head in 0..<keyValueHeads {
                let block = UnsafeRawBufferPointer(start: page.block(head: head), count: blockBytes)
                if rest > 0, index == pages.count - 1 {
                    try withOnlyTokens(rest, of: block, write)
                } else {
                    try write(block)
                }
            }
        }
        try [checksum.value.littleEndian].withBytes(body)
    }

    /// A copy of a block with zeros in the places of tokens that are not there: those hold what memory held before.
    private func withOnlyTokens(
        _ tokens: Int, of block: UnsafeRawBufferPointer,
        _ body: (UnsafeRawBufferPointer) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        guard let copy = AlignedMemory.allocate(blockBytes) else {
            throw AttentionError(.memory, "bytes", expected: "\(blockBytes) bytes of memory", found: "none")
        }
        defer { AlignedMemory.free(copy) }
        copy.copyMemory(from: block.baseAddress!, byteCount: blockBytes)
        let zeros = [Float](repeating: 0, count: max(headDimension, valueDimension))
        inFloatMode {
            zeros.withUnsafeBytes { zeros in
                var arguments = qattn_pack_args()
                (arguments.keys, arguments.values) = (zeros.baseAddress, zeros.baseAddress)
                (arguments.key_storage, arguments.value_storage) = (QATTN_FLOAT32, QATTN_FLOAT32)
                // All rows are the same one: strides are 0.
                (arguments.key_begin, arguments.key_end) = (tokens, Self.pageTokens)
                arguments.blocks = qattn_blocks(
                    base: copy, table: nil, storage: packedStorage, head_dim: headDimension,
                    value_dim: valueDimension)
                kernels.functions.pointee.pack(&arguments)
            }
        }
        try body(UnsafeRawBufferPointer(start: copy, count: blockBytes))
    }

    // MARK: - Restoring

    /// Takes the tokens of a saved cache in the place of those held: the same bits, so that everything computed from them is
    /// the same.
    ///
    /// - Parameter bytes: of a cache that was made with the same heads, dimensions, storage, products, window, rollback, positions
    ///   and norms.
    /// - Throws: ``AttentionError`` of kind `savedCache` (not a saved cache, damaged, cut off, or of another version),
    ///   `cacheShape` (of a cache that was made otherwise), `cacheLimit`, `position` or `memory`; the cache is unchanged then.
    public mutating func restore(from bytes: RawSpan) throws(AttentionError) {
        let header = try SavedCacheHeader.read(bytes)
        let pageCount = try pagesToRestore(header, byteCount: bytes.byteCount)
        let allocated = try allocatePages(pageCount, behind: 0)
        let restored = Array(allocated.prefix(pageCount))
        for page in restored { page.beginUse() }
        bytes.withUnsafeBytes { bytes in
            var source = bytes.baseAddress! + SavedCacheHeader.byteCount
            for page in restored {
                for head in 0..<keyValueHeads {
                    page.block(head: head).copyMemory(from: source, byteCount: blockBytes)
                    source += blockBytes
                }
            }
        }
        (pages, spares) = (restored, allocated.dropFirst(pageCount).reversed())
        (freedPages, count) = (Int(header.freedPages), Int(header.count))
        tokenPositions = TokenPositions()
    }

    /// The pages of a saved cache with this header, of so many bytes in all, if this one can take them.
    private func pagesToRestore(_ header: SavedCacheHeader, byteCount: Int) throws(AttentionError) -> Int {
        try header.check(restores: self)
        let (count, freed) = (Int(header.count), Int(header.freedPages))
        let held = count - freed * Self.pageTokens
        guard held <= maximumTokens else {
            throw AttentionError(
                .cacheLimit, "bytes", expected: "at most \(maximumTokens) tokens in the cache", found: "\(held)")
        }
        try checkPositions(0..<count)
        let pageCount = SequencePlan.blocks(of: count) - freed
        let (pageBytes, overflow) = pageCount.multipliedReportingOverflow(by: pageBytes)
        guard !overflow, byteCount - SavedCacheHeader.byteCount - 8 == pageBytes else {
            throw AttentionError(
                .savedCache, "bytes", expected: "\(pageCount) pages of \(self.pageBytes) bytes",
                found: "\(byteCount) bytes in all")
        }
        return pageCount
    }

    /// Takes the tokens of a saved cache in the place of those held, as the method for spans does.
    public mutating func restore(from bytes: [UInt8]) throws(AttentionError) {
        try restore(from: bytes.span.bytes)
    }

    // MARK: - Files

    /// Writes the tokens of this cache into a file, in the place of one that may be there: it is the old one or the new
    /// one, whole, at all times, but for a file with several names (hard links), which is overwritten. Its mode and owner are
    /// kept, and a symbolic link is followed.
    ///
    /// - Throws: ``AttentionError`` of kind `file` (with the system's reason), `composition` or `memory`; the old file is
    ///   unchanged then.
    public func write(to path: String) throws(AttentionError) {
        try CacheFile.replace(path, forEachSavedPart)
    }

    /// Takes the tokens in a file in the place of those held.
    ///
    /// - Throws: ``AttentionError`` of kind `file`, or as `restore(from:)`; the cache is unchanged then.
    public mutating func read(from path: String) throws(AttentionError) {
        // What is no saved cache of this shape is not read, however long it is.
        let bytes = try CacheFile.bytes(path, after: SavedCacheHeader.byteCount) {
            beginning, size throws(AttentionError) in
            _ = try pagesToRestore(SavedCacheHeader.read(beginning.span.bytes, of: size), byteCount: size)
        }
        try restore(from: bytes)
    }
}

extension [UInt64] {
    fileprivate func withBytes(
        _ body: (UnsafeRawBufferPointer) throws(AttentionError) -> Void
    ) throws(AttentionError) {
        try withUnsafeBufferPointer { words throws(AttentionError) in try body(UnsafeRawBufferPointer(words)) }
    }
}
