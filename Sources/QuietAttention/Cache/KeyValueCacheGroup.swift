// SPDX-License-Identifier: Apache-2.0
// KeyValueCacheGroup.swift - the caches of all layers of a model, which hold the same tokens at all times.

/// The caches of all layers of a model. What is appended is appended to all of them or to none, and so is what is taken back.
///
///     var group = try KeyValueCacheGroup(layers: 24) { layer throws(AttentionError) in
///         try KeyValueCache(
///             keyValueHeads: 8, headDimension: 64, storage: .bfloat16, window: layer % 2 == 0 ? 128 : nil)
///     }
///     let logits = try group.append { step in
///         for layer in 0..<24 {
///             try step.append(layer: layer, keys: k, values: v)
///             x = try attention.attend(queries: q, cache: step[layer])     // and what else the layer does
///         }
///         return x
///     }
///     var branch = group                                                     // a fork of all layers
///
/// A value, as ``KeyValueCache`` is: copies are independent and share their pages.
public struct KeyValueCacheGroup: Sendable {
    /// One per layer, each with the same number of tokens.
    public private(set) var caches: [KeyValueCache]

    /// - Parameter caches: one per layer; their shapes, storages and windows may differ.
    /// - Throws: ``AttentionError`` of kind `cacheShape` when they do not hold the same number of tokens.
    public init(_ caches: [KeyValueCache]) throws(AttentionError) {
        for (layer, cache) in caches.enumerated() where cache.count != caches[0].count {
            throw AttentionError(
                .cacheShape, "caches[\(layer)]", expected: "\(caches[0].count) tokens, as in the first layer",
                found: "\(cache.count)")
        }
        self.caches = caches
    }

    /// - Parameters:
    ///   - layers: 0 and up.
    ///   - cache: makes the cache of a layer.
    /// - Throws: ``AttentionError`` of kind `dimension` or `cacheShape`, or what `cache` throws.
    public init(
        layers: Int, cache: (_ layer: Int) throws(AttentionError) -> KeyValueCache
    ) throws(AttentionError) {
        guard layers >= 0 else {
            throw AttentionError(.dimension, "layers", expected: "0 or more", found: "\(layers)")
        }
        var caches: [KeyValueCache] = []
        for layer in 0..<layers { caches.append(try cache(layer)) }
        try self.init(caches)
    }

    /// Tokens in each layer.
    public var count: Int { caches.first?.count ?? 0 }

    /// Bytes of memory that this group keeps from being freed.
    public var byteCount: Int { KeyValueCache.byteCount(caches) }

    /// Bytes of memory that these groups keep from being freed, where what they share counts once.
    public static func byteCount(_ groups: some Sequence<KeyValueCacheGroup>) -> Int {
        KeyValueCache.byteCount(groups.flatMap(\.caches))
    }

    /// The cache of a layer.
    ///
    /// - Precondition: `layer` is one.
    public subscript(layer: Int) -> KeyValueCache { caches[layer] }

    // MARK: - Appending

    /// Appends to all layers, one after another, while `body` computes what is appended; or, if `body` throws, to none: every
    /// cache is then as it was.
    ///
    /// - Parameter body: appends the same number of tokens to each layer, and may attend to a layer that has them.
    /// - Returns: what `body` returns.
    /// - Throws: what `body` throws, or ``AttentionError`` of kind `cacheShape` when layers ended with different numbers of
    ///   tokens.
    public mutating func append<Result>(_ body: (inout KeyValueCacheStep) throws -> Result) throws -> Result {
        guard let result = try step(body) else { throw uneven() }
        return result
    }

    /// Appends tokens to all layers or to none.
    ///
    /// - Parameters:
    ///   - keys: one array per layer, each as for `KeyValueCache.append(keys:values:)`.
    ///   - values: likewise.
    /// - Throws: ``AttentionError`` of kind `elementCount`, `cacheShape` (different numbers of tokens), `cacheLimit`,
    ///   `position` or `memory`; every cache is unchanged then.
    public mutating func append<Input: AttentionScalar>(
        keys: [[Input]], values: [[Input]]
    ) throws(AttentionError) {
        for (name, arrays) in [("keys", keys), ("values", values)] where arrays.count != caches.count {
            throw AttentionError(
                .elementCount, name, expected: "\(caches.count) arrays, one per layer", found: "\(arrays.count)")
        }
        let done: Void? = try step { step throws(AttentionError) in
            for layer in keys.indices { try step.append(layer: layer, keys: keys[layer], values: values[layer]) }
        }
        if done == nil { throw uneven() }
    }

    /// nil when layers ended with different numbers of tokens: every cache is then as it was, as when `body` throws.
    private mutating func step<Result, Failure: Error>(
        _ body: (inout KeyValueCacheStep) throws(Failure) -> Result
    ) throws(Failure) -> Result? {
        let begin = count
        var step = KeyValueCacheStep(caches)
        // The step alone has the pages now, and writes to them in place.
        caches = []
        do throws(Failure) {
            let result = try body(&step)
            let succeeded = step.end(from: begin)
            caches = step.caches
            return succeeded ? result : nil
        } catch {
            step.undo(to: begin)
            caches = step.caches
            throw error
        }
    }

    private func uneven() -> AttentionError {
        AttentionError(
            .cacheShape, "body", expected: "the same number of tokens for each layer", found: "different ones")
    }

    // MARK: - Taking back

    /// The lengths that ``truncate(to:)`` accepts beside 0.
    public var truncationRange: ClosedRange<Int> {
        caches.reduce(0) { max($0, $1.truncationRange.lowerBound) }...count
    }

    /// Takes back the tokens from position `length` on, in all layers or in none.
    ///
    /// - Parameter length: within ``truncationRange``, or 0.
    /// - Throws: ``AttentionError`` of kind `cacheRange`; every cache is unchanged then.
    public mutating func truncate(to length: Int) throws(AttentionError) {
        guard length == 0 || truncationRange.contains(length) else {
            throw AttentionError(
                .cacheRange, "length", expected: "0, or \(truncationRange.lowerBound) to \(count)", found: "\(length)")
        }
        for layer in caches.indices { try caches[layer].truncate(to: length) }
    }
}

/// What one call of ``KeyValueCacheGroup/append(_:)`` appends, layer by layer.
public struct KeyValueCacheStep: ~Copyable {
    fileprivate private(set) var caches: [KeyValueCache]

    fileprivate init(_ caches: [KeyValueCache]) {
        self.caches = caches
        for layer in caches.indices { self.caches[layer].keepsWindow = true }
    }

    /// The cache of a layer, with what was appended so far.
    ///
    /// - Precondition: `layer` is one.
    public subscript(layer: Int) -> KeyValueCache {
        var cache = caches[layer]
        cache.keepsWindow = false
        return cache
    }

    /// Appends tokens to a layer, as `KeyValueCache.append(keys:values:)` does.
    ///
    /// - Precondition: `layer` is one.
    public mutating func append<Input: AttentionScalar>(
        layer: Int, keys: [Input], values: [Input]
    ) throws(AttentionError) {
        try caches[layer].append(keys: keys, values: values)
    }

    /// Appends tokens to a layer, from memory of any storage type.
    ///
    /// - Precondition: `layer` is one.
    public mutating func append<Input: AttentionScalar>(
        layer: Int, keys: Span<Input>, values: Span<Input>
    ) throws(AttentionError) {
        try caches[layer].append(keys: keys, values: values)
    }

    /// Appends tokens to a layer, from memory of any storage type.
    ///
    /// - Precondition: `layer` is one.
    public mutating func append<Input: AttentionScalar>(
        layer: Int, keys: UnsafeBufferPointer<Input>, values: UnsafeBufferPointer<Input>
    ) throws(AttentionError) {
        try caches[layer].append(keys: keys, values: values)
    }

    /// Keeps what was appended if all layers have as much of it.
    fileprivate mutating func end(from begin: Int) -> Bool {
        guard caches.allSatisfy({ $0.count == caches[0].count }) else {
            undo(to: begin)
            return false
        }
        for layer in caches.indices { caches[layer].freeBehindWindow(ofToken: begin) }
        return true
    }

    /// Takes back what was appended.
    fileprivate mutating func undo(to begin: Int) {
        for layer in caches.indices { caches[layer].takeBack(to: begin) }
    }
}
