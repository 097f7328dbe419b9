// SPDX-License-Identifier: Apache-2.0
// KeyValueCache+Append.swift - adds tokens to a cache, from arrays, spans and unsafe buffers.

import CKernels

extension KeyValueCache {
    /// Appends tokens.
    ///
    /// - Parameters:
    ///   - keys: `[G, tokens, D]`, or `[tokens, G, D]` if the cache's ``layout`` is `batchSequenceHeads`; G
    ///     ``keyValueHeads``, D ``headDimension``. Their count tells the number of tokens; 0 is none.
    ///   - values: `[G, tokens, E]` likewise, E ``valueDimension``.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `cacheLimit`, `position` or `memory`; the cache is
    ///   unchanged then.
    public mutating func append(keys: [Float], values: [Float]) throws(AttentionError) {
        try append(keys: keys.span, values: values.span)
    }

    /// Appends tokens, from arrays of any storage type.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`, `cacheLimit`, `position` or `memory`; the cache is
    ///   unchanged then.
    public mutating func append<Input: AttentionScalar>(keys: [Input], values: [Input]) throws(AttentionError) {
        try append(keys: keys.span, values: values.span)
    }

    /// Appends tokens, from memory of any storage type.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`, `cacheLimit`, `position` or `memory`; the cache is
    ///   unchanged then.
    public mutating func append<Input: AttentionScalar>(
        keys: Span<Input>, values: Span<Input>
    ) throws(AttentionError) {
        try keys.withUnsafeBufferPointer { keys throws(AttentionError) in
            try values.withUnsafeBufferPointer { values throws(AttentionError) in
                try append(keys: keys, values: values)
            }
        }
    }

    /// Appends tokens, from memory of any storage type.
    ///
    /// - Throws: ``AttentionError`` of kind `elementCount`, `cacheLimit`, `position` or `memory`; the cache is
    ///   unchanged then.
    public mutating func append<Input: AttentionScalar>(
        keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>
    ) throws(AttentionError) {
        let tokens = try checkedTokens(keys.count, values.count)
        guard tokens > 0, let keys = keys.baseAddress, let values = values.baseAddress else { return }
        try append(
            tokens, keys: keys, values: values, storage: Input.storage, keyRows: rows(tokens, headDimension),
            valueRows: rows(tokens, valueDimension))
    }

    /// Appends one token or more, wherever their rows are.
    mutating func append(
        _ tokens: Int, keys: UnsafeRawPointer, values: UnsafeRawPointer, storage input: AttentionStorage,
        keyRows: RowStrides, valueRows: RowStrides
    ) throws(AttentionError) {
        let begin = count
        guard tokens <= AttentionShape.longestSequence else {
            throw AttentionError(
                .cacheLimit, "tokens", expected: "at most \(AttentionShape.longestSequence)", found: "\(tokens)")
        }
        if let positions = positionsOfTokens(from: begin, tokens), let least = positions.min(),
            let most = positions.max()
        {
            try checkPositions(least..<most + 1)
        } else {
            try checkPositions(begin..<begin + tokens)
        }
        try makeRoom(tokens)
        inFloatMode {
            pack(
                keys: keys, values: values, storage: input, tokens: begin..<begin + tokens, keyRows: keyRows,
                valueRows: valueRows)
        }
    }

    private func rows(_ tokens: Int, _ dimension: Int) -> RowStrides {
        RowStrides(
            layout, packed: false, heads: keyValueHeads, sequence: tokens, total: tokens, dimension: dimension)
    }

    private func checkedTokens(_ keys: Int, _ values: Int) throws(AttentionError) -> Int {
        // The bytes of a page fit into Int, so these products do.
        let (tokens, rest) = keys.quotientAndRemainder(dividingBy: keyValueHeads * headDimension)
        guard rest == 0 else {
            throw AttentionError(
                .elementCount, "keys", expected: "a multiple of \(keyValueHeads * headDimension) elements",
                found: "\(keys)")
        }
        let (expected, overflow) = tokens.multipliedReportingOverflow(by: keyValueHeads * valueDimension)
        guard !overflow, values == expected else {
            throw AttentionError(
                .elementCount, "values", expected: "\(expected) elements for \(tokens) tokens", found: "\(values)")
        }
        return tokens
    }

    // MARK: - Room

    /// Frees what the window leaves behind, and makes the pages for so many more tokens this cache's own; or changes
    /// nothing.
    private mutating func makeRoom(_ tokens: Int) throws(AttentionError) {
        let unseen = max(freedPages, pagesBehindWindow(ofToken: count - rollbackTokens))
        let held = count - unseen * Self.pageTokens + tokens
        guard held <= maximumTokens else {
            throw AttentionError(
                .cacheLimit, "keys", expected: "at most \(maximumTokens) tokens in the cache", found: "\(held)")
        }
        guard count + tokens <= AttentionShape.longestSequence else {
            throw AttentionError(
                .cacheLimit, "keys", expected: "at most \(AttentionShape.longestSequence) tokens of a sequence",
                found: "\(count + tokens)")
        }
        let freed = keepsWindow ? freedPages : unseen
        let sharesLast = count % Self.pageTokens != 0 && !isKnownUniquelyReferenced(&pages[pages.count - 1])
        let grown = SequencePlan.blocks(of: count + tokens) - SequencePlan.blocks(of: count)
        // What the window leaves behind is of use for tokens to come.
        var behind = Array(pages.prefix(freed - freedPages))
        pages.removeFirst(behind.count)
        let added: [KeyValuePage]
        do {
            added = try takePages(grown + (sharesLast ? 1 : 0), behind: &behind)
        } catch {
            pages.insert(contentsOf: behind, at: 0)
            throw error
        }
        if sharesLast {
            let shared = pages.removeLast()
            added[0].copyBlocks(from: shared)
        }
        pages += added
        freedPages = freed
        count += tokens
    }

    /// Ends ``keepsWindow``: frees what would have been freed had the tokens from `position` on been appended together.
    mutating func freeBehindWindow(ofToken position: Int) {
        keepsWindow = false
        guard count > position else { return }
        let freed = max(freedPages, pagesBehindWindow(ofToken: position - rollbackTokens))
        if freed > freedPages, spares.isEmpty { spares = [pages[0]] }
        pages.removeFirst(freed - freedPages)
        freedPages = freed
    }

    /// Pages that are this cache's own: spares that no copy of the cache has too, some that the window left behind, and
    /// new ones. One more of those left behind is kept as a spare.
    private mutating func takePages(
        _ count: Int, behind: inout [KeyValuePage]
    ) throws(AttentionError) -> [KeyValuePage] {
        var taken: [KeyValuePage] = []
        while taken.count < count, var spare = spares.popLast() {
            // The copy that comes last to a spare page finds it its own.
            if isKnownUniquelyReferenced(&spare) { taken.append(spare) }
        }
        let own = behind.indices.filter { isKnownUniquelyReferenced(&behind[$0]) }
        let reused = own.prefix(count - taken.count)
        let missing = count - taken.count - reused.count
        do {
            let allocated = try allocatePages(missing, behind: pages.count)
            spares += allocated.dropFirst(missing).reversed()
            if spares.isEmpty, own.count > reused.count { spares = [behind[own[reused.count]]] }
            taken += reused.map { behind[$0] } + allocated.prefix(missing)
        } catch {
            spares += taken.reversed()
            throw error
        }
        for page in taken { page.beginUse() }
        return taken
    }

    /// New pages behind so many, and room for some more: an eighth of what is held, rounded up to whole large pages once two
    /// thirds of one are held. Room takes no memory before it is written to, or its large page is nearly full; allocating many
    /// pages together makes long runs of a head's blocks.
    func allocatePages(_ missing: Int, behind held: Int) throws(AttentionError) -> [KeyValuePage] {
        guard missing > 0 else { return [] }
        let (most, whole) = pagesPerExtent
        var wanted = max(missing, min(max(1, held / 8), most))
        if 3 * (held + missing) >= 2 * whole { wanted = (wanted + whole - 1) / whole * whole }
        // Room ahead is a wish: a limit on addresses may leave none.
        if wanted > missing, let pages = try? allocatePages(wanted, filled: missing, most: most) { return pages }
        return try allocatePages(missing, filled: missing, most: most)
    }

    private func allocatePages(
        _ wanted: Int, filled: Int, most: Int
    ) throws(AttentionError) -> [KeyValuePage] {
        var allocated: [KeyValuePage] = []
        while allocated.count < wanted {
            let count = min(most, wanted - allocated.count)
            allocated += try KeyValuePage.pages(
                count, heads: keyValueHeads, blockBytes: blockBytes, filled: filled - allocated.count, allocate)
        }
        return allocated
    }

    /// The most pages of an extent: as many as hold the chunk that attention reads at once, and make whole large pages of
    /// memory; and how many make one of those. An extent is freed with the last of its pages: under a window it has an eighth
    /// of what that holds, so that little is kept for nothing.
    private var pagesPerExtent: (most: Int, largePage: Int) {
        let whole = (AlignedMemory.largePage - 1) / pageBytes + 1
        let together = (SequencePlan.blocks(of: SequencePlan.chunk) + whole - 1) / whole * whole
        guard let window else { return (together, whole) }
        let most = max(1, min(together, window / Self.pageTokens / 8))
        return whole <= most ? (most / whole * whole, whole) : (most, 1)
    }

    // MARK: - Packing

    /// Packs tokens page by page, the keys of each head made ready before where something is to be done to them.
    private func pack(
        keys: UnsafeRawPointer, values: UnsafeRawPointer, storage input: AttentionStorage, tokens: Range<Int>,
        keyRows: RowStrides, valueRows: RowStrides
    ) {
        let rowFloats = angles?.rowFloats ?? 0
        let keyFloats = preparation == nil ? 0 : RowPreparation.stride(headDimension)
        withUnsafeTemporaryAllocation(
            byteCount: Self.pageTokens * (rowFloats + keyFloats) * MemoryLayout<Float>.stride,
            alignment: QATTN_ALIGNMENT
        ) { memory in
            // The tables of a page's positions, then its keys.
            let memory = memory.bindMemory(to: Float.self)
            var begin = tokens.lowerBound
            while begin < tokens.upperBound {
                let page = begin / Self.pageTokens
                let end = min((page + 1) * Self.pageTokens, tokens.upperBound)
                angles?.fill(
                    memory.baseAddress!, positions: (begin..<end).map { tokenPositions[$0] + encoding.offset }, .keys)
                let row = begin - tokens.lowerBound
                for head in 0..<keyValueHeads {
                    var arguments = qattn_pack_args()
                    arguments.keys = keys + (keyRows.offset(start: 0, head: head) + row * keyRows.row) * input.byteCount
                    arguments.values =
                        values + (valueRows.offset(start: 0, head: head) + row * valueRows.row) * input.byteCount
                    arguments.key_stride = keyRows.row
                    arguments.value_stride = valueRows.row
                    arguments.key_storage = input.kernelStorage
                    arguments.value_storage = input.kernelStorage
                    arguments.key_begin = begin - page * Self.pageTokens
                    arguments.key_end = end - page * Self.pageTokens
                    arguments.blocks = qattn_blocks(
                        base: block(page: page, head: head), table: nil, storage: packedStorage,
                        head_dim: headDimension, value_dim: valueDimension)
                    if let preparation {
                        let table = memory.baseAddress!
                        preparation.prepareKeys(
                            of: &arguments, head: head, storage: input, table: table,
                            into: table + Self.pageTokens * rowFloats,
                            kernels.functions)
                    }
                    kernels.functions.pointee.pack(&arguments)
                }
                begin = end
            }
        }
    }
}

extension RowPreparation {
    /// Prepares the keys that are to be packed, and makes the arguments refer to what comes out.
    fileprivate func prepareKeys(
        of arguments: inout qattn_pack_args, head: Int, storage: AttentionStorage, table: UnsafePointer<Float>,
        into out: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<qattn_kernels>
    ) {
        keys.prepare(
            arguments.keys, head: head, stride: arguments.key_stride, storage: storage,
            count: arguments.key_end - arguments.key_begin, table: table, into: out, kernels)
        arguments.keys = UnsafeRawPointer(out)
        arguments.key_stride = Self.stride(keys.dimension)
        arguments.key_storage = QATTN_FLOAT32
    }
}
