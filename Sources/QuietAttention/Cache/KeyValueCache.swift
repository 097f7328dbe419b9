// SPDX-License-Identifier: Apache-2.0
// KeyValueCache.swift - the keys and values of the tokens so far, packed for the kernels when they are appended.

import CKernels

/// The keys and values of one sequence, to which tokens are appended as they come.
///
///     var cache = try KeyValueCache(keyValueHeads: 8, headDimension: 128, storage: .bfloat16)
///     try cache.append(keys: k, values: v)                        // the prompt, or one token
///     let attention = try CachedAttention(queryHeads: 32, sink: .softmax1)
///     let result = try attention.attend(queries: q, cache: cache)
///     var branch = cache                                          // shares all pages
///
/// A value: copies are independent. It is stored in pages of ``pageTokens`` tokens that copies share, so a copy takes a
/// pointer per page and no keys; when two copies that share a partly filled last page both go on, one of them copies that
/// page. So a copy costs the memory of what it appends, and at most one page more. Pages never move and are never copied
/// to grow. Addresses for an eighth more than is held are reserved ahead, rounded up to whole large pages of memory (2 MB) once
/// two thirds of one are held. They take memory as tokens come, but for the last third of a large page, which is taken with the
/// first two. Several tasks may read one cache, or write to copies of it.
///
/// *Storage*. 16-bit storage rounds each element to nearest even; what comes in that type is kept exactly. int8 has one
/// scale per token, head, and of keys and values: with `amax` the largest magnitude of the token's key (value),
///
///     scale = amax / 127,    integer = round(x 127 / amax),    |x - scale integer| <= scale / 2, up to rounding in Float
///
/// *Positions*. The token appended first has position 0, the next one position ``count``, unless positions are appended with
/// tokens: those of a tree of drafts. A cache made with a position
/// encoding normalises and rotates keys as they are appended, and ``CachedAttention`` its queries; without one, keys are
/// stored as they come. Rotations whose base changes with the length of the sequence (dynamic NTK scaling) would give every
/// old key a new angle: state the length of the longest sequence to come, and all tokens are rotated as for that one.
///
/// *Sliding window*. With a ``window`` of w tokens, appending first frees the pages that no new token sees, nor any token
/// after the last ``rollbackTokens`` were taken back: all but the last w - 1 + rollbackTokens tokens before it, and the rest
/// of their first page. So what was appended last can be attended to by all its own tokens, and ``truncate(to:)`` always
/// reaches back ``rollbackTokens``, wherever pages begin. A window of fewer than 1024 tokens keeps the pages of its tokens
/// and at most one more; a longer one at most an eighth more.
///
/// *Layout*. ``layout`` is the order of dimensions of everything that is appended; queries and outputs of
/// ``CachedAttention`` have it too, unless that has a layout of its own.
///
/// *Products*. A cache of bfloat16 may be made for ``AttentionProducts/bfloat16``: tokens are then laid out as products of
/// bfloat16 read them, and magnitudes below 2^-56 become 0. ``CachedAttention`` has the same products as its caches.
///
/// *Bits*. However tokens are appended, together or one by one, and whatever was forked and truncated in between,
/// attention over a cache gives the same bits; over float32 storage, and by products of bfloat16, those of ``Attention``.
public struct KeyValueCache: Sendable {
    /// How elements are stored.
    public enum Storage: Sendable, Hashable, CaseIterable {
        case float32, float16, bfloat16, int8

        var kernelStorage: qattn_storage {
            switch self {
            case .float32: QATTN_FLOAT32
            case .float16: QATTN_FLOAT16
            case .bfloat16: QATTN_BFLOAT16
            case .int8: QATTN_INT8
            }
        }
    }

    /// Heads of the keys and values.
    public let keyValueHeads: Int
    /// Length of a key.
    public let headDimension: Int
    /// Length of a value.
    public let valueDimension: Int
    /// How elements are stored.
    public let storage: Storage
    /// Tokens that a token sees, itself included; nil: all before it.
    public let window: Int?
    /// With a window: the tokens that can always be taken back, counted from the most that there were.
    public let rollbackTokens: Int
    /// Most tokens held at once.
    public let maximumTokens: Int
    /// The order of dimensions of appended keys and values.
    public let layout: AttentionLayout
    /// How keys are rotated by their positions when they are appended, and queries when they attend.
    public let encoding: AttentionPositions
    /// How keys and queries are normalised before that; nil: not at all.
    public let queryKeyNorm: QueryKeyNorm?
    /// Which numbers attention over this cache multiplies.
    public let products: AttentionProducts
    /// The kernels that pack. The packed form is the same for all.
    public let kernels: KernelSet

    /// Tokens appended and not taken back: the position of the next one.
    public internal(set) var count = 0
    /// Those that hold tokens from `freedPages * pageTokens` on.
    var pages: [KeyValuePage] = []
    /// Whether appending frees nothing for now, so that all that is appended can be taken back.
    var keepsWindow = false
    /// Pages for tokens to come: allocated with others, or left behind by the window.
    var spares: [KeyValuePage] = []
    /// Pages that the window has left behind.
    var freedPages = 0
    /// Where tokens stand that do not stand at their place among all.
    var tokenPositions = TokenPositions()
    let blockBytes: Int
    /// Where pages come from; tests let it fail.
    var allocate: AlignedMemory.Allocate = ExtentMemory.allocate
    /// nil where keys are stored as they come.
    let preparation: RowPreparation?
    /// nil where keys are not rotated.
    let angles: RotaryAngles?

    /// Tokens of a page.
    public static let pageTokens = QATTN_KEY_BLOCK
    /// Tokens that a draft usually has at most: what can be taken back unless told otherwise.
    public static let usualRollback = 16

    /// An empty cache.
    ///
    /// - Parameters:
    ///   - keyValueHeads: 1 and up.
    ///   - headDimension: length of a key, 1...1024.
    ///   - valueDimension: length of a value, 1...1024; nil: as a key.
    ///   - storage: how elements are stored.
    ///   - window: tokens that a token sees, itself included, 1 and up; nil: all before it.
    ///   - rollbackTokens: with a window, the tokens that ``truncate(to:)`` can always take back, 0 and up. Without one all
    ///     can be.
    ///   - maximumTokens: most tokens held at once, 0 and up; nil: as many as there is memory for. A window frees whole
    ///     pages, so with one up to `window + rollbackTokens + pageTokens - 2` older tokens are held beside those being
    ///     appended.
    ///   - layout: the order of dimensions of keys and values that are appended.
    ///   - positions: how keys and queries are rotated by their positions, which count from the first token; an offset
    ///     moves them. Dynamic NTK scaling needs a length.
    ///   - queryKeyNorm: how keys and queries are normalised before that; nil: not at all.
    ///   - products: which numbers attention over this cache multiplies; products of bfloat16 are of bfloat16 storage.
    ///   - kernels: nil: the best for this CPU, or what `QUIET_ATTENTION_KERNELS` names.
    /// - Throws: ``AttentionError`` of kind `dimension`, `window`, `composition`, `overflow`, `rotaryEmbedding`, `position`,
    ///   `queryKeyNorm` or `kernelSet`.
    public init(
        keyValueHeads: Int, headDimension: Int, valueDimension: Int? = nil, storage: Storage = .float32,
        window: Int? = nil, rollbackTokens: Int = Self.usualRollback, maximumTokens: Int? = nil,
        layout: AttentionLayout = .batchHeadsSequence, positions: AttentionPositions = .none,
        queryKeyNorm: QueryKeyNorm? = nil, products: AttentionProducts = .float32, kernels: KernelSet? = nil
    ) throws(AttentionError) {
        let mode = FloatMode.enter()
        defer { mode.leave() }
        let most = AttentionShape.longestSequence
        // Of one head: checks the dimensions.
        let head = try AttentionShape(
            queryHeads: 1, queries: 0, keys: Self.pageTokens, headDimension: headDimension,
            valueDimension: valueDimension)
        guard keyValueHeads >= 1 else {
            throw AttentionError(.dimension, "keyValueHeads", expected: "1 or more", found: "\(keyValueHeads)")
        }
        if let window, window < 1 {
            throw AttentionError(.window, "window", expected: "1 token or more", found: "\(window)")
        }
        guard rollbackTokens >= 0 else {
            throw AttentionError(.dimension, "rollbackTokens", expected: "0 or more", found: "\(rollbackTokens)")
        }
        if let maximumTokens, maximumTokens < 0 {
            throw AttentionError(.dimension, "maximumTokens", expected: "0 or more", found: "\(maximumTokens)")
        }
        guard products == .float32 || storage == .bfloat16 else {
            throw AttentionError(
                .composition, "products", expected: "float32, or storage of bfloat16 for products of bfloat16",
                found: "products of bfloat16 over storage of \(storage)")
        }
        self.keyValueHeads = keyValueHeads
        self.headDimension = headDimension
        self.valueDimension = head.valueDimension
        self.storage = storage
        self.window = window
        self.rollbackTokens = min(rollbackTokens, most)
        self.layout = layout
        self.maximumTokens = min(maximumTokens ?? most, most)
        self.kernels = if let kernels { kernels } else { try KernelSet.preferred() }
        encoding = positions
        self.queryKeyNorm = queryKeyNorm
        self.products = products
        preparation = try RowPreparation(
            positions, queryKeyNorm, queryHeads: nil, keyValueHeads: keyValueHeads, headDimension: headDimension)
        try positions.checkFitsCache()
        angles = try preparation?.angles(length: 0)
        let blockBytes = qattn_block_bytes(
            Self.packedStorage(storage, products), headDimension, head.valueDimension)
        guard !blockBytes.multipliedReportingOverflow(by: keyValueHeads).overflow else {
            throw AttentionError(
                .overflow, "keyValueHeads", expected: "a page of at most \(Int.max) bytes",
                found: "\(keyValueHeads) heads of \(blockBytes) bytes")
        }
        self.blockBytes = blockBytes
    }

    /// What keys and values are packed in.
    var packedStorage: qattn_storage { Self.packedStorage(storage, products) }

    private static func packedStorage(_ storage: Storage, _ products: AttentionProducts) -> qattn_storage {
        products == .float32 ? storage.kernelStorage : products.packedStorage
    }

    /// Positions of the tokens held: from 0, or from the first token of the oldest page that the window has not left
    /// behind, up to ``count``.
    public var positions: Range<Int> { freedPages * Self.pageTokens..<count }

    /// Bytes of memory that this cache keeps from being freed: of all pages that tokens were written to, those shared with
    /// copies included, and those that were allocated together with some that are held. What large pages of memory (2 MB)
    /// hold beyond them, up to 0.7 MB each time pages are allocated, is not counted.
    public var byteCount: Int { Self.byteCount(CollectionOfOne(self)) }

    /// Bytes of memory that these caches keep from being freed, where what they share counts once.
    public static func byteCount(_ caches: some Sequence<KeyValueCache>) -> Int {
        var extents: [ObjectIdentifier: Int] = [:]
        for cache in caches {
            for page in cache.pages { extents[ObjectIdentifier(page.extent)] = page.extent.byteCount }
            for page in cache.spares { extents[ObjectIdentifier(page.extent)] = page.extent.byteCount }
        }
        return extents.values.reduce(0, +)
    }

    /// Bytes of the keys, values and scales of one token.
    package var bytesPerToken: Int {
        let elements = keyValueHeads * (headDimension + valueDimension)
        return switch storage {
        case .float32: 4 * elements
        case .float16, .bfloat16: 2 * elements
        case .int8: elements + keyValueHeads * 2 * MemoryLayout<Float>.size
        }
    }

    /// The lengths that ``truncate(to:)`` accepts beside 0. Without a window 0 is the first of them.
    public var truncationRange: ClosedRange<Int> {
        guard let window, freedPages > 0 else { return 0...count }
        // What the token at the new end sees begins with the pages held.
        return min(count, freedPages * Self.pageTokens + window - 1)...count
    }

    /// Takes back the tokens from position `length` on.
    ///
    /// - Parameter length: within ``truncationRange``, or 0, which empties the cache. With a window, what the next token sees
    ///   must still be held. It always is at ``rollbackTokens`` before the most tokens that there were, and where the last
    ///   call to `append` began.
    /// - Throws: ``AttentionError`` of kind `cacheRange`; the cache is unchanged then.
    public mutating func truncate(to length: Int) throws(AttentionError) {
        guard (0...count).contains(length) else {
            throw AttentionError(.cacheRange, "length", expected: "0 to \(count)", found: "\(length)")
        }
        guard length == 0 || truncationRange.contains(length) else {
            throw AttentionError(
                .cacheRange, "length",
                expected:
                    "0, or \(truncationRange.lowerBound) to \(count), which leave the window of \(window ?? 0) whole",
                found: "\(length)")
        }
        takeBack(to: length)
    }

    /// The same of a length that was checked.
    mutating func takeBack(to length: Int) {
        keepsWindow = false
        if length == 0 { (freedPages, spares) = (0, []) }
        let kept = SequencePlan.blocks(of: length) - freedPages
        // Those whose memory stays anyway are of use for tokens to come.
        if kept > 0 {
            let extents = [pages[kept - 1].extent] + spares.map(\.extent)
            spares += pages[kept...].filter { page in extents.contains { $0 === page.extent } }.reversed()
        }
        pages.removeLast(pages.count - kept)
        count = length
        tokenPositions.truncate(to: length)
    }

    /// Whole pages before the first token that a token at this position sees.
    func pagesBehindWindow(ofToken position: Int) -> Int {
        guard let window else { return 0 }
        return max(0, position - (min(window, AttentionShape.longestSequence) - 1)) / Self.pageTokens
    }

    /// Of a page, the blocks of all heads.
    var pageBytes: Int { keyValueHeads * blockBytes }

    /// The block of page `page`, counted from the first token of the sequence; nil for one that is not held.
    func block(page: Int, head: Int) -> UnsafeMutableRawPointer? {
        let index = page - freedPages
        guard pages.indices.contains(index) else { return nil }
        return pages[index].block(head: head)
    }
}
